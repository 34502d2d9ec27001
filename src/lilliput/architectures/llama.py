# SPDX-License-Identifier: Apache-2.0
"""Llama 1 to 3, and models that share its layout under its name, such as SmolLM (arXiv 2302.13971, 2407.21783).

GGUF stores q and k rows in adjacent pairs, and llama3's rope scaling as the tensor `rope_freqs.weight`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lilliput.architectures import decoder, decoder_program, layout
from lilliput.architectures.architecture import Json, ModelConfig, TensorEntry
from lilliput.architectures.config_fields import ConfigFields
from lilliput.architectures.decoder import Biases, HuggingFaceDefaults
from lilliput.architectures.layout import ADJACENT, WITHOUT_FFN, ExpertNames, Layout
from lilliput.architectures.program import Program

family = "llama"
# What Mixtral's GGUF adds to it.
MIXTURE = replace(
    ADJACENT,
    parts=WITHOUT_FFN,
    experts=ExpertNames(
        router=("block_sparse_moe.gate", "mlp.gate"),
        gate="block_sparse_moe.experts.{}.w1",
        up="block_sparse_moe.experts.{}.w3",
        down="block_sparse_moe.experts.{}.w2",
    ),
)
huggingface_types: tuple[str, ...] = ("llama",)


def config_from_huggingface(config: Mapping[str, Json]) -> ModelConfig:
    """Read config.json. A `sliding_window` is not part of this family: transformers ignores it, and so do we."""
    fields = ConfigFields(config, "config.json")
    attention_bias = fields.boolean("attention_bias", default=False)
    biases = Biases(attention_bias, attention_bias, fields.boolean("mlp_bias", default=False))
    without_window = decoder.without(config, "sliding_window")
    return decoder.read_huggingface(without_window, family, ADJACENT, HuggingFaceDefaults(context_length=2048), biases)


def config_from_gguf(metadata: Mapping[str, Json], shapes: Mapping[str, tuple[int, ...]]) -> ModelConfig:
    """Read `llama.*` metadata; Mistral and Mixtral models arrive here too."""
    has_experts = bool(metadata.get("llama.expert_count"))
    return decoder.read_gguf(metadata, family, shapes, MIXTURE if has_experts else ADJACENT)


def gguf_metadata(config: ModelConfig) -> dict[str, Json]:
    """The `llama.*` keys."""
    return decoder.gguf_metadata(config, _layout(config))


def tensor_table(config: ModelConfig) -> tuple[TensorEntry, ...]:
    """Every tensor, in file order."""
    return layout.tensor_table(config, _layout(config))


def program(config: ModelConfig) -> Program:
    """The forward pass."""
    return decoder_program.program(config, _layout(config))


def _layout(config: ModelConfig) -> Layout:
    return MIXTURE if config.experts else ADJACENT
