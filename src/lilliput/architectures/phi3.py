# SPDX-License-Identifier: Apache-2.0
"""Phi-3 and Phi-4: Llama with q, k and v in one matrix and gate and up in another (arXiv 2404.14219).

Models of 128k tokens scale rope by factors that differ below and above their first context (longrope): refused. A part
of each head may stand still (Phi-4-mini). llama.cpp ignores the sliding window, our engine keeps to it.
"""

from __future__ import annotations

from collections.abc import Mapping

from lilliput.architectures import decoder, decoder_program, layout
from lilliput.architectures.architecture import Json, ModelConfig, TensorEntry
from lilliput.architectures.decoder import Biases, HuggingFaceDefaults
from lilliput.architectures.layout import STANDARD_OUTER, Layout
from lilliput.architectures.program import Program

family = "phi3"
huggingface_types: tuple[str, ...] = ("phi3",)
LAYOUT = Layout(
    outer=STANDARD_OUTER,
    block="model.layers.{}",
    parts={
        "attn_norm": "input_layernorm",
        "attn_qkv": "self_attn.qkv_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_up": "mlp.gate_up_proj",
        "ffn_down": "mlp.down_proj",
    },
    rope="halves",
    fuses_gate=True,
    rotates_whole_heads=False,
)
_DEFAULTS = HuggingFaceDefaults(context_length=4096, rotary_share=1.0, epsilon=1e-5)


def config_from_huggingface(config: Mapping[str, Json]) -> ModelConfig:
    """Read config.json."""
    return decoder.without_rope_factors(decoder.read_huggingface(config, family, LAYOUT, _DEFAULTS, Biases()))


def config_from_gguf(metadata: Mapping[str, Json], shapes: Mapping[str, tuple[int, ...]]) -> ModelConfig:
    """Read `phi3.*` metadata."""
    return decoder.read_gguf(metadata, family, shapes, LAYOUT)


def gguf_metadata(config: ModelConfig) -> dict[str, Json]:
    """The `phi3.*` keys. llama.cpp's converter writes a window of 0 for none, and so do we."""
    return {"phi3.attention.sliding_window": 0} | decoder.gguf_metadata(config, LAYOUT)


def tensor_table(config: ModelConfig) -> tuple[TensorEntry, ...]:
    """Every tensor, in file order."""
    return layout.tensor_table(config, LAYOUT)


def program(config: ModelConfig) -> Program:
    """The forward pass."""
    return decoder_program.program(config, LAYOUT)
