# SPDX-License-Identifier: Apache-2.0
"""GPT-2: learned positions, layer norms, q, k and v in one matrix (Radford et al. 2019).

Its checkpoints keep linears as [in, out] (Conv1D). GGUF has no key for scores that are not scaled, or scaled by layer
too; these are written under keys of our own, and llama.cpp would compute another function.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lilliput.architectures import decoder, decoder_program, layout
from lilliput.architectures.architecture import Json, ModelConfig, TensorEntry
from lilliput.architectures.config_fields import ConfigFields
from lilliput.architectures.decoder import EVERYWHERE, HuggingFaceDefaults
from lilliput.architectures.layout import Layout
from lilliput.architectures.program import Program

family = "gpt2"
huggingface_types: tuple[str, ...] = ("gpt2",)
LAYOUT = Layout(
    outer={
        "token_embd": "transformer.wte",
        "position_embd": "transformer.wpe",
        "output_norm": "transformer.ln_f",
    },
    block="transformer.h.{}",
    parts={
        "attn_norm": "ln_1",
        "attn_qkv": "attn.c_attn",
        "attn_output": "attn.c_proj",
        "ffn_norm": "ln_2",
        "ffn_up": "mlp.c_fc",
        "ffn_down": "mlp.c_proj",
    },
    # The first checkpoints, OpenAI's own among them, were saved without a head.
    optional_prefix="transformer.",
    norm="layer",
    is_transposed=True,
    activations=("gelu_tanh", "gelu", "relu", "silu"),
)
# GPT2Config's names of the usual fields.
_NAMES = {
    "n_positions": "max_position_embeddings",
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
}
_DEFAULTS = HuggingFaceDefaults(
    context_length=1024,
    tied=True,
    activation="gelu_new",
    activation_field="activation_function",
    epsilon=1e-5,
    epsilon_field="layer_norm_epsilon",
)


def config_from_huggingface(config: Mapping[str, Json]) -> ModelConfig:
    """Read config.json."""
    usual = decoder.renamed(decoder.without(config, "num_key_value_heads"), _NAMES)
    fields = ConfigFields(usual, "config.json")
    if fields.boolean("add_cross_attention", default=False):
        raise fields.error("add_cross_attention", "is true", "false: a decoder that stands alone")
    usual["intermediate_size"] = fields.integer("n_inner", 4 * fields.integer("hidden_size"))
    is_scaled = fields.boolean("scale_attn_weights", default=True)
    return replace(
        decoder.read_huggingface(usual, family, LAYOUT, _DEFAULTS, EVERYWHERE),
        attention_scale=None if is_scaled else 1.0,
        divides_scores_by_layer=fields.boolean("scale_attn_by_inverse_layer_idx", default=False),
    )


def config_from_gguf(metadata: Mapping[str, Json], shapes: Mapping[str, tuple[int, ...]]) -> ModelConfig:
    """Read `gpt2.*` metadata."""
    divides = ConfigFields(metadata, "GGUF metadata", "gpt2.").boolean("attention.divides_by_layer", default=False)
    return replace(decoder.read_gguf(metadata, family, shapes, LAYOUT), divides_scores_by_layer=divides)


def gguf_metadata(config: ModelConfig) -> dict[str, Json]:
    """The `gpt2.*` keys."""
    own: dict[str, Json] = {"gpt2.attention.divides_by_layer": True} if config.divides_scores_by_layer else {}
    return decoder.gguf_metadata(config, LAYOUT) | own


def tensor_table(config: ModelConfig) -> tuple[TensorEntry, ...]:
    """Every tensor, in file order."""
    return layout.tensor_table(config, LAYOUT)


def program(config: ModelConfig) -> Program:
    """The forward pass."""
    return decoder_program.program(config, LAYOUT)
