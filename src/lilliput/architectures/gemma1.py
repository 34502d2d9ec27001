# SPDX-License-Identifier: Apache-2.0
"""Gemma 1: Llama with scaled embeddings, wide heads, and norms kept as what is added to 1 (arXiv 2403.08295).

Its first config.json files say "gelu" and mean the tanh form, as transformers reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lilliput.architectures import decoder, decoder_program, layout
from lilliput.architectures.architecture import Json, ModelConfig, TensorEntry
from lilliput.architectures.config_fields import ConfigFields
from lilliput.architectures.decoder import Biases, HuggingFaceDefaults
from lilliput.architectures.layout import HALVES
from lilliput.architectures.program import Program

family = "gemma"
huggingface_types: tuple[str, ...] = ("gemma",)
LAYOUT = replace(
    HALVES, norm_shift=1.0, embedding_scale="root_of_width", activations=("gelu_tanh", "gelu", "silu", "relu")
)
# What transformers' GemmaConfig assumes for absent fields.
_DEFAULTS = HuggingFaceDefaults(
    context_length=8192, kv_heads=16, head_dim=256, tied=True, activation="gelu_pytorch_tanh"
)


def config_from_huggingface(config: Mapping[str, Json]) -> ModelConfig:
    """Read config.json."""
    usual = dict(config)
    if usual.get("hidden_act") == "gelu":
        usual["hidden_act"] = _DEFAULTS.activation
    has_bias = ConfigFields(config, "config.json").boolean("attention_bias", default=False)
    biases = Biases(attention=has_bias, output=has_bias)
    return decoder.without_rope_factors(decoder.read_huggingface(usual, family, LAYOUT, _DEFAULTS, biases))


def config_from_gguf(metadata: Mapping[str, Json], shapes: Mapping[str, tuple[int, ...]]) -> ModelConfig:
    """Read `gemma.*` metadata."""
    return decoder.read_gguf(metadata, family, shapes, LAYOUT)


def gguf_metadata(config: ModelConfig) -> dict[str, Json]:
    """The `gemma.*` keys."""
    return decoder.gguf_metadata(config, LAYOUT)


def tensor_table(config: ModelConfig) -> tuple[TensorEntry, ...]:
    """Every tensor, in file order."""
    return layout.tensor_table(config, LAYOUT)


def program(config: ModelConfig) -> Program:
    """The forward pass."""
    return decoder_program.program(config, LAYOUT)
