# SPDX-License-Identifier: Apache-2.0
"""GPT-J: attention and ffn read one norm side by side, a part of each head rotates in adjacent pairs.

The 6B model is Wang and Komatsuzaki's (2021); CodeGen shares the idea and not the layout. llama.cpp lists the name
without running it: models travel in our own layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lilliput.architectures import decoder, decoder_program, layout
from lilliput.architectures.architecture import Json, ModelConfig, TensorEntry
from lilliput.architectures.config_fields import ConfigFields
from lilliput.architectures.decoder import Biases, HuggingFaceDefaults
from lilliput.architectures.layout import Layout
from lilliput.architectures.program import Program, RopeFrequencies
from lilliput.architectures.rope_scaling import DEFAULT_BASE

family = "gptj"
huggingface_types: tuple[str, ...] = ("gptj",)
LAYOUT = Layout(
    outer={"token_embd": "transformer.wte", "output_norm": "transformer.ln_f"},
    block="transformer.h.{}",
    parts={
        "attn_norm": "ln_1",
        "attn_q": "attn.q_proj",
        "attn_k": "attn.k_proj",
        "attn_v": "attn.v_proj",
        "attn_output": "attn.out_proj",
        "ffn_up": "mlp.fc_in",
        "ffn_down": "mlp.fc_out",
    },
    norm="layer",
    rope="adjacent",
    keeps_pairs=True,
    activations=("gelu_tanh", "gelu", "relu", "silu"),
    rotates_whole_heads=False,
)
# GPTJConfig's names of the usual fields.
_NAMES = {
    "n_positions": "max_position_embeddings",
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
}
_DEFAULTS = HuggingFaceDefaults(
    context_length=2048,
    activation="gelu_new",
    activation_field="activation_function",
    epsilon=1e-5,
    epsilon_field="layer_norm_epsilon",
)


def config_from_huggingface(config: Mapping[str, Json]) -> ModelConfig:
    """Read config.json."""
    usual = decoder.renamed(decoder.without(config, "num_key_value_heads", "rope_parameters"), _NAMES)
    fields = ConfigFields(usual, "config.json")
    usual["intermediate_size"] = fields.integer("n_inner", 4 * fields.integer("hidden_size"))
    model = decoder.read_huggingface(usual, family, LAYOUT, _DEFAULTS, Biases(ffn=True))
    rotary_dim = model.head_dim if fields.is_written("rotary_dim") else 64
    rope = RopeFrequencies(DEFAULT_BASE, fields.integer("rotary_dim", rotary_dim))
    if rope.rotary_dim > model.head_dim or rope.rotary_dim % 2:
        raise fields.error("rotary_dim", f"is {rope.rotary_dim}", f"an even number up to {model.head_dim}")
    return replace(model, rope=rope, residual="parallel", head_bias=True)


def config_from_gguf(metadata: Mapping[str, Json], shapes: Mapping[str, tuple[int, ...]]) -> ModelConfig:
    """Read `gptj.*` metadata, as our own layout keeps it."""
    return replace(decoder.read_gguf(metadata, family, shapes, LAYOUT), residual="parallel")


def gguf_metadata(config: ModelConfig) -> dict[str, Json]:
    """The `gptj.*` keys."""
    return decoder.gguf_metadata(config, LAYOUT)


def tensor_table(config: ModelConfig) -> tuple[TensorEntry, ...]:
    """Every tensor, in file order."""
    return layout.tensor_table(config, LAYOUT)


def program(config: ModelConfig) -> Program:
    """The forward pass."""
    return decoder_program.program(config, LAYOUT)
