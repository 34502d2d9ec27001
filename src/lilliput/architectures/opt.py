# SPDX-License-Identifier: Apache-2.0
"""OPT: learned positions that start at the third row, layer norms, ReLU (arXiv 2205.01068).

The 350M model normalises after each sum, has no last norm, and embeds tokens in fewer dimensions. GGUF does not know
the family: quantized models travel in our own layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lilliput.architectures import decoder, decoder_program, layout
from lilliput.architectures.architecture import Json, ModelConfig, TensorEntry
from lilliput.architectures.config_fields import ConfigFields
from lilliput.architectures.decoder import EVERYWHERE, Biases, HuggingFaceDefaults
from lilliput.architectures.layout import EMBEDDING, Layout
from lilliput.architectures.program import Program

family = "opt"
huggingface_types: tuple[str, ...] = ("opt",)
LAYOUT = Layout(
    outer={
        "token_embd": "model.decoder.embed_tokens",
        "position_embd": "model.decoder.embed_positions",
        "token_embd_proj": "model.decoder.project_in",
        "output_norm": "model.decoder.final_layer_norm",
        "output_proj": "model.decoder.project_out",
    },
    block="model.decoder.layers.{}",
    parts={
        "attn_norm": "self_attn_layer_norm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.out_proj",
        "ffn_norm": "final_layer_norm",
        "ffn_up": "fc1",
        "ffn_down": "fc2",
    },
    optional_prefix="model.",
    norm="layer",
    position_offset=2,
    activations=("relu", "gelu", "gelu_tanh", "silu"),
)
# torch.nn.LayerNorm's epsilon, which OPT never sets.
_DEFAULTS = HuggingFaceDefaults(
    context_length=2048, tied=True, activation="relu", activation_field="activation_function", epsilon=1e-5
)


def config_from_huggingface(config: Mapping[str, Json]) -> ModelConfig:
    """Read config.json."""
    fields = ConfigFields(config, "config.json")
    usual = decoder.without(config, "rms_norm_eps", "num_key_value_heads")
    usual["intermediate_size"] = fields.integer("ffn_dim", 3072)
    if not fields.boolean("layer_norm_elementwise_affine", default=True):
        raise fields.error("layer_norm_elementwise_affine", "is false", "true")
    norms_before = fields.boolean("do_layer_norm_before", default=True)
    biases = EVERYWHERE if fields.boolean("enable_bias", default=True) else Biases()
    model = decoder.read_huggingface(usual, family, LAYOUT, _DEFAULTS, biases)
    return replace(
        model,
        residual="sequential" if norms_before else "norm_after",
        has_output_norm=norms_before and not fields.boolean("_remove_final_layer_norm", default=False),
        embedding_size=fields.integer("word_embed_proj_dim", model.hidden_size),
    )


def config_from_gguf(metadata: Mapping[str, Json], shapes: Mapping[str, tuple[int, ...]]) -> ModelConfig:
    """Read `opt.*` metadata, as our own layout keeps it."""
    norms_after = ConfigFields(metadata, "metadata", "opt.").boolean("norm_after", default=False)
    return replace(
        decoder.read_gguf(metadata, family, shapes, LAYOUT),
        residual="norm_after" if norms_after else "sequential",
        has_output_norm="output_norm.weight" in shapes,
        embedding_size=shapes[EMBEDDING][1] if EMBEDDING in shapes else None,
    )


def gguf_metadata(config: ModelConfig) -> dict[str, Json]:
    """The `opt.*` keys."""
    own: dict[str, Json] = {"opt.norm_after": True} if config.residual == "norm_after" else {}
    return decoder.gguf_metadata(config, LAYOUT) | own


def tensor_table(config: ModelConfig) -> tuple[TensorEntry, ...]:
    """Every tensor, in file order."""
    return layout.tensor_table(config, LAYOUT)


def program(config: ModelConfig) -> Program:
    """The forward pass."""
    return decoder_program.program(config, LAYOUT)
