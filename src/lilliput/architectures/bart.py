# SPDX-License-Identifier: Apache-2.0
"""BART: an encoder-decoder with learned positions and norms after each sum (arXiv 1910.13461).

GGUF has no name for it: its models travel in lilliput's own layout.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from lilliput.architectures import encoder, seq2seq
from lilliput.architectures.architecture import NO_ROPE, DecoderTraits, Json, ModelConfig, TensorEntry
from lilliput.architectures.config_fields import ConfigFields
from lilliput.architectures.program import Program
from lilliput.architectures.seq2seq import Style
from lilliput.errors import UnsupportedModelError

family = "bart"
huggingface_types: tuple[str, ...] = ("bart",)
EMBEDDINGS = ("model.shared.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")
# The parts of a block, as BART, mBART and Marian spell them.
_BLOCK = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_o": "self_attn.out_proj",
    "attn_norm": "self_attn_layer_norm",
    "cross_attn_q": "encoder_attn.q_proj",
    "cross_attn_k": "encoder_attn.k_proj",
    "cross_attn_v": "encoder_attn.v_proj",
    "cross_attn_o": "encoder_attn.out_proj",
    "cross_attn_norm": "encoder_attn_layer_norm",
    "ffn_up": "fc1",
    "ffn_down": "fc2",
    "ffn_norm": "final_layer_norm",
}
_OUTSIDE = {
    "position_embd": "embed_positions.weight",
    "token_embd_norm": "layernorm_embedding",
    "output_norm": "layer_norm",
}
_HALVES = {"enc": "model.encoder", "dec": "model.decoder"}
NAMES: Mapping[str, str] = {
    **{
        f"{half}.{ours}": f"{root}.layers.{{}}.{theirs}"
        for half, root in _HALVES.items()
        for ours, theirs in _BLOCK.items()
    },
    **{f"{half}.{ours}": f"{root}.{theirs}" for half, root in _HALVES.items() for ours, theirs in _OUTSIDE.items()},
}
STYLE = Style(
    is_pre_norm=False, uses_rms=False, norms_embeddings=True, positions="learned", has_output_bias=True,
    embeddings=EMBEDDINGS, head="lm_head.weight", names=NAMES, first_position=2,
)  # fmt: skip
_FORCED_END = 2


def config_from_huggingface(config: Mapping[str, Json]) -> ModelConfig:
    """Read config.json."""
    fields = ConfigFields(config, "config.json")
    answers = seq2seq.answer_tokens(fields, default_start=2, default_end=2, forced_end=_FORCED_END)
    return read(fields, family, answers)


def read(fields: ConfigFields, name: str, answers: seq2seq.AnswerTokens) -> ModelConfig:
    """Fields that BART, mBART and Marian share. Raises UnsupportedModelError naming what has no equivalent here."""
    seq2seq.refuse_other_heads(fields)
    hidden_size, heads = fields.integer("d_model"), fields.integer("encoder_attention_heads")
    decoder_heads = fields.integer("decoder_attention_heads", heads)
    for field, count in (("encoder_attention_heads", heads), ("decoder_attention_heads", decoder_heads)):
        if hidden_size % count or count != heads:
            raise fields.error(field, f"is {count}", f"a divisor of d_model {hidden_size}, the same in both halves")
    layers = fields.integer("encoder_layers")
    return ModelConfig(
        family=name,
        vocab_size=fields.integer("vocab_size"),
        context_length=fields.integer("max_position_embeddings", 1024),
        hidden_size=hidden_size,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        head_dim=hidden_size // heads,
        ffn_size=fields.integer("encoder_ffn_dim"),
        norm_epsilon=1e-5,
        rope=NO_ROPE,
        tied=fields.boolean("tie_word_embeddings", default=True),
        decoder=DecoderTraits(
            layers=fields.integer("decoder_layers", layers),
            heads=decoder_heads,
            ffn_size=fields.integer("decoder_ffn_dim"),
            activation=encoder.activation_of(fields, "activation_function"),
            embedding_scale=math.sqrt(hidden_size) if fields.boolean("scale_embedding", default=False) else 1.0,
            **answers.as_traits(),
        ),
    )


def config_from_gguf(metadata: Mapping[str, Json], shapes: Mapping[str, tuple[int, ...]]) -> ModelConfig:
    """There is no such GGUF. Raises UnsupportedModelError."""
    raise no_gguf(family)


def gguf_metadata(config: ModelConfig) -> dict[str, Json]:
    """There is no such GGUF. Raises UnsupportedModelError."""
    raise no_gguf(config.family)


def no_gguf(name: str) -> UnsupportedModelError:
    """The error for who asks for a GGUF of such a family."""
    return UnsupportedModelError(
        f"GGUF has no architecture '{name}'; give -o NAME.safetensors for lilliput's own layout, which runs here"
    )


def tensor_table(config: ModelConfig) -> tuple[TensorEntry, ...]:
    """Every tensor, in file order."""
    return seq2seq.tensor_table(config, STYLE)


def encoder_program(config: ModelConfig) -> Program:
    """The forward pass over the text."""
    return seq2seq.encoder_program(config, STYLE)


def program(config: ModelConfig) -> Program:
    """The forward pass over the answer."""
    return seq2seq.decoder_program(config, STYLE)
