# SPDX-License-Identifier: Apache-2.0
"""Phi-1, 1.5 and 2: one norm for attention and ffn, which run side by side; half of each head rotates.

arXiv 2306.11644, 2309.05463. GGUF knows it as `phi2`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lilliput.architectures import decoder, decoder_program, layout
from lilliput.architectures.architecture import Json, ModelConfig, TensorEntry
from lilliput.architectures.decoder import EVERYWHERE, HuggingFaceDefaults
from lilliput.architectures.layout import Layout
from lilliput.architectures.program import Program

family = "phi2"
huggingface_types: tuple[str, ...] = ("phi",)
LAYOUT = Layout(
    outer={
        "token_embd": "model.embed_tokens",
        "output_norm": "model.final_layernorm",
    },
    block="model.layers.{}",
    parts={
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.dense",
        "ffn_up": "mlp.fc1",
        "ffn_down": "mlp.fc2",
    },
    norm="layer",
    rope="halves",
    activations=("gelu_tanh", "gelu", "relu", "silu"),
    rotates_whole_heads=False,
)
_DEFAULTS = HuggingFaceDefaults(
    context_length=2048,
    rotary_share=0.5,
    activation="gelu_new",
    epsilon=1e-5,
    epsilon_field="layer_norm_eps",
)


def config_from_huggingface(config: Mapping[str, Json]) -> ModelConfig:
    """Read config.json."""
    model = decoder.read_huggingface(config, family, LAYOUT, _DEFAULTS, EVERYWHERE)
    return replace(decoder.without_rope_factors(model), residual="parallel", head_bias=True)


def config_from_gguf(metadata: Mapping[str, Json], shapes: Mapping[str, tuple[int, ...]]) -> ModelConfig:
    """Read `phi2.*` metadata."""
    return replace(decoder.read_gguf(metadata, family, shapes, LAYOUT), residual="parallel")


def gguf_metadata(config: ModelConfig) -> dict[str, Json]:
    """The `phi2.*` keys."""
    return decoder.gguf_metadata(config, LAYOUT)


def tensor_table(config: ModelConfig) -> tuple[TensorEntry, ...]:
    """Every tensor, in file order."""
    return layout.tensor_table(config, LAYOUT)


def program(config: ModelConfig) -> Program:
    """The forward pass."""
    return decoder_program.program(config, LAYOUT)
