# SPDX-License-Identifier: Apache-2.0
"""Qwen3, dense: RMS norm on each head of q and k, and heads wider than hidden size / heads (arXiv 2505.09388).

GGUF keeps transformers' row order: rope turns halves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lilliput.architectures import decoder, decoder_program, layout
from lilliput.architectures.architecture import Json, ModelConfig, TensorEntry
from lilliput.architectures.config_fields import ConfigFields
from lilliput.architectures.decoder import Biases, HuggingFaceDefaults
from lilliput.architectures.layout import HALVES, STANDARD_PARTS, with_qk_norm
from lilliput.architectures.program import Program
from lilliput.architectures.windowed_layers import read_windowed_layers

family = "qwen3"
LAYOUT = replace(HALVES, parts=with_qk_norm(STANDARD_PARTS))
huggingface_types: tuple[str, ...] = ("qwen3",)
# What transformers' Qwen3Config assumes for absent fields.
_DEFAULTS = HuggingFaceDefaults(context_length=32_768, kv_heads=32, head_dim=128, sliding_window=4096)


def config_from_huggingface(config: Mapping[str, Json]) -> ModelConfig:
    """Read config.json."""
    has_bias = ConfigFields(config, "config.json").boolean("attention_bias", default=False)
    biases = Biases(attention=has_bias, output=has_bias)
    model = decoder.read_huggingface(config, family, LAYOUT, _DEFAULTS, biases)
    return read_windowed_layers(decoder.without_rope_factors(model), config)


def config_from_gguf(metadata: Mapping[str, Json], shapes: Mapping[str, tuple[int, ...]]) -> ModelConfig:
    """Read `qwen3.*` metadata."""
    return decoder.read_gguf(metadata, family, shapes, LAYOUT)


def gguf_metadata(config: ModelConfig) -> dict[str, Json]:
    """The `qwen3.*` keys."""
    return decoder.gguf_metadata(config, LAYOUT)


def tensor_table(config: ModelConfig) -> tuple[TensorEntry, ...]:
    """Every tensor, in file order."""
    return layout.tensor_table(config, LAYOUT)


def program(config: ModelConfig) -> Program:
    """The forward pass."""
    return decoder_program.program(config, LAYOUT)
