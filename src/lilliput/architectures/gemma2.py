# SPDX-License-Identifier: Apache-2.0
"""Gemma 2: soft caps on scores and logits, a sliding window in every second layer (arXiv 2408.00118)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lilliput.architectures import decoder, decoder_program, gemma, layout
from lilliput.architectures.architecture import Json, ModelConfig, TensorEntry
from lilliput.architectures.decoder import HuggingFaceDefaults
from lilliput.architectures.gemma import LAYOUT
from lilliput.architectures.program import Program

family = "gemma2"
huggingface_types: tuple[str, ...] = ("gemma2",)
# What transformers' Gemma2Config assumes for absent fields.
_DEFAULTS = HuggingFaceDefaults(
    context_length=8192,
    kv_heads=4,
    head_dim=256,
    sliding_window=4096,
    tied=True,
    activation="gelu_pytorch_tanh",
    activation_field="hidden_activation",
)
_SOFTCAPS = (50.0, 30.0)
_EVERY = 2
# Of the 27B model, which scales scores by another width.
_LARGEST_LAYERS = 46
# What llama.cpp assumes where a file has no window.
_GGUF_WINDOW = 4096


def config_from_huggingface(config: Mapping[str, Json]) -> ModelConfig:
    """Read config.json."""
    model = gemma.read_huggingface(config, family, LAYOUT, _DEFAULTS, _SOFTCAPS)
    return gemma.with_windows(model, config, _EVERY)


def config_from_gguf(metadata: Mapping[str, Json], shapes: Mapping[str, tuple[int, ...]]) -> ModelConfig:
    """Read `gemma2.*` metadata."""
    known: dict[str, Json] = {"gemma2.attention.sliding_window": _GGUF_WINDOW, **metadata}
    model = gemma.read_gguf(known, family, shapes, LAYOUT, _EVERY)
    if model.attention_scale is None:
        model = replace(model, attention_scale=gemma.largest_model_scale(model, _LARGEST_LAYERS))
    return model


def gguf_metadata(config: ModelConfig) -> dict[str, Json]:
    """The `gemma2.*` keys."""
    return {"gemma2.attention.sliding_window": 0} | decoder.gguf_metadata(config, LAYOUT)


def tensor_table(config: ModelConfig) -> tuple[TensorEntry, ...]:
    """Every tensor, in file order."""
    return layout.tensor_table(config, LAYOUT)


def program(config: ModelConfig) -> Program:
    """The forward pass."""
    return decoder_program.program(config, LAYOUT)
