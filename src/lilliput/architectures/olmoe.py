# SPDX-License-Identifier: Apache-2.0
"""OLMoE: Mixtral's shape with many small experts, and a norm over the whole of q and of k (arXiv 2409.02060)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lilliput.architectures import decoder, decoder_program, layout
from lilliput.architectures.architecture import Json, ModelConfig, TensorEntry
from lilliput.architectures.config_fields import ConfigFields
from lilliput.architectures.decoder import Biases, HuggingFaceDefaults
from lilliput.architectures.program import Program
from lilliput.architectures.qwen3moe import LAYOUT as SMALL_EXPERTS

family = "olmoe"
huggingface_types: tuple[str, ...] = ("olmoe",)
LAYOUT = replace(SMALL_EXPERTS, norms_whole_projections=True)
# What transformers' OlmoeConfig assumes for absent fields.
_DEFAULTS = HuggingFaceDefaults(context_length=4096, epsilon=1e-5)
_EXPERTS = ("num_experts", "num_local_experts")


def config_from_huggingface(config: Mapping[str, Json]) -> ModelConfig:
    """Read config.json."""
    fields = ConfigFields(config, "config.json")
    has_bias = fields.boolean("attention_bias", default=False)
    biases = Biases(attention=has_bias, output=has_bias)
    plain = decoder.without(config, *_EXPERTS)
    model = decoder.without_rope_factors(decoder.read_huggingface(plain, family, LAYOUT, _DEFAULTS, biases))
    normalizes = fields.boolean("norm_topk_prob", default=False)
    return decoder.with_experts(model, fields, _EXPERTS, default=(64, 8), normalizes=normalizes)


def config_from_gguf(metadata: Mapping[str, Json], shapes: Mapping[str, tuple[int, ...]]) -> ModelConfig:
    """Read `olmoe.*` metadata."""
    return decoder.read_gguf(metadata, family, shapes, LAYOUT)


def gguf_metadata(config: ModelConfig) -> dict[str, Json]:
    """The `olmoe.*` keys."""
    return decoder.gguf_metadata(config, LAYOUT)


def tensor_table(config: ModelConfig) -> tuple[TensorEntry, ...]:
    """Every tensor, in file order."""
    return layout.tensor_table(config, LAYOUT)


def program(config: ModelConfig) -> Program:
    """The forward pass."""
    return decoder_program.program(config, LAYOUT)
