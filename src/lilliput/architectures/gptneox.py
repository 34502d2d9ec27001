# SPDX-License-Identifier: Apache-2.0
"""GPT-NeoX and Pythia: attention and ffn read the stream side by side, a quarter of each head rotates.

arXiv 2204.06745, 2304.01373. Checkpoints keep q, k and v head by head; GGUF keeps all of q, then k, then v. llama.cpp
computes its GELU by tanh; the models were trained with the exact one, which we compute.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lilliput.architectures import decoder, decoder_program, layout
from lilliput.architectures.architecture import Json, ModelConfig, TensorEntry
from lilliput.architectures.config_fields import ConfigFields
from lilliput.architectures.decoder import Biases, HuggingFaceDefaults
from lilliput.architectures.layout import Layout
from lilliput.architectures.program import Program

family = "gptneox"
huggingface_types: tuple[str, ...] = ("gpt_neox",)
LAYOUT = Layout(
    outer={
        "token_embd": "gpt_neox.embed_in",
        "output_norm": "gpt_neox.final_layer_norm",
    },
    block="gpt_neox.layers.{}",
    parts={
        "attn_norm": "input_layernorm",
        "attn_qkv": "attention.query_key_value",
        "attn_output": "attention.dense",
        "ffn_norm": "post_attention_layernorm",
        "ffn_up": "mlp.dense_h_to_4h",
        "ffn_down": "mlp.dense_4h_to_h",
    },
    # transformers 5 calls it as everywhere else.
    head_names=("embed_out", "lm_head"),
    norm="layer",
    rope="halves",
    interleaves_heads=True,
    activations=("gelu", "gelu_tanh", "relu", "silu"),
    rotates_whole_heads=False,
)
_NAMES = {"rotary_pct": "partial_rotary_factor", "rotary_emb_base": "rope_theta"}
_DEFAULTS = HuggingFaceDefaults(
    context_length=2048,
    rotary_share=0.25,
    activation="gelu",
    epsilon=1e-5,
    epsilon_field="layer_norm_eps",
)


def config_from_huggingface(config: Mapping[str, Json]) -> ModelConfig:
    """Read config.json."""
    usual = decoder.renamed(decoder.without(config, "num_key_value_heads"), _NAMES)
    fields = ConfigFields(usual, "config.json")
    has_bias = fields.boolean("attention_bias", default=True)
    model = decoder.read_huggingface(usual, family, LAYOUT, _DEFAULTS, Biases(has_bias, has_bias, True))
    is_parallel = fields.boolean("use_parallel_residual", default=True)
    return replace(decoder.without_rope_factors(model), residual="parallel" if is_parallel else "sequential")


def config_from_gguf(metadata: Mapping[str, Json], shapes: Mapping[str, tuple[int, ...]]) -> ModelConfig:
    """Read `gptneox.*` metadata."""
    fields = ConfigFields(metadata, "GGUF metadata", "gptneox.")
    is_parallel = fields.boolean("use_parallel_residual", default=True)
    model = decoder.read_gguf(metadata, family, shapes, LAYOUT)
    return replace(model, residual="parallel" if is_parallel else "sequential")


def gguf_metadata(config: ModelConfig) -> dict[str, Json]:
    """The `gptneox.*` keys."""
    own: dict[str, Json] = {"gptneox.use_parallel_residual": config.residual == "parallel"}
    return decoder.gguf_metadata(config, LAYOUT) | own


def tensor_table(config: ModelConfig) -> tuple[TensorEntry, ...]:
    """Every tensor, in file order."""
    return layout.tensor_table(config, LAYOUT)


def program(config: ModelConfig) -> Program:
    """The forward pass."""
    return decoder_program.program(config, LAYOUT)
