# SPDX-License-Identifier: Apache-2.0
"""Qwen2 and Qwen2.5: biases on q, k and v, and a window on some layers if asked for (arXiv 2407.10671).

GGUF keeps transformers' row order: rope turns halves.
"""

from __future__ import annotations

from collections.abc import Mapping

from lilliput.architectures import decoder, decoder_program, layout
from lilliput.architectures.architecture import Json, ModelConfig, TensorEntry
from lilliput.architectures.decoder import Biases, HuggingFaceDefaults
from lilliput.architectures.layout import HALVES
from lilliput.architectures.program import Program
from lilliput.architectures.windowed_layers import read_windowed_layers

family = "qwen2"
huggingface_types: tuple[str, ...] = ("qwen2",)
# What transformers' Qwen2Config assumes for absent fields.
_DEFAULTS = HuggingFaceDefaults(context_length=32_768, kv_heads=32, sliding_window=4096)


def config_from_huggingface(config: Mapping[str, Json]) -> ModelConfig:
    """Read config.json."""
    model = decoder.read_huggingface(config, family, HALVES, _DEFAULTS, Biases(attention=True))
    return read_windowed_layers(decoder.without_rope_factors(model), config)


def config_from_gguf(metadata: Mapping[str, Json], shapes: Mapping[str, tuple[int, ...]]) -> ModelConfig:
    """Read `qwen2.*` metadata."""
    return decoder.read_gguf(metadata, family, shapes, HALVES)


def gguf_metadata(config: ModelConfig) -> dict[str, Json]:
    """The `qwen2.*` keys."""
    return decoder.gguf_metadata(config, HALVES)


def tensor_table(config: ModelConfig) -> tuple[TensorEntry, ...]:
    """Every tensor, in file order."""
    return layout.tensor_table(config, HALVES)


def program(config: ModelConfig) -> Program:
    """The forward pass."""
    return decoder_program.program(config, HALVES)
