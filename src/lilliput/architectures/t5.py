# SPDX-License-Identifier: Apache-2.0
"""T5, Flan-T5, mT5 and UMT5: relative positions as biases on scores, RMS norms before each sublayer.

Only the first block of each half has biases, which all its blocks share; UMT5 has them in every block. Where the head
is the embedding, hidden states are scaled before it; llama.cpp does not do so.
Sources: arXiv 1910.10683, 2210.11416, 2304.09151.
"""

from __future__ import annotations

from collections.abc import Mapping

from lilliput.architectures import seq2seq
from lilliput.architectures.architecture import NO_ROPE, DecoderTraits, Json, ModelConfig, TensorEntry
from lilliput.architectures.config_fields import ConfigFields
from lilliput.architectures.encoder import ACTIVATIONS
from lilliput.architectures.program import Activation, Program
from lilliput.architectures.seq2seq import Style

family = "t5"
huggingface_types: tuple[str, ...] = ("t5", "mt5", "umt5")
# llama.cpp has this number in its code.
_GGUF_MAX_DISTANCE = 128
_SELF, _CROSS, _FFN = {"enc": 0, "dec": 0}, {"dec": 1}, {"enc": 1, "dec": 2}
_HALVES = {"enc": "encoder", "dec": "decoder"}
NAMES: Mapping[str, str] = {
    **{f"{half}.output_norm": f"{root}.final_layer_norm" for half, root in _HALVES.items()},
    **{
        f"{half}.{ours}": f"{_HALVES[half]}.block.{{}}.layer.{index}.{theirs}"
        for ours, theirs, places in (
            ("attn_norm", "layer_norm", _SELF),
            *((f"attn_{part}", f"SelfAttention.{part}", _SELF) for part in "qkvo"),
            ("attn_rel_b", "SelfAttention.relative_attention_bias", _SELF),
            ("cross_attn_norm", "layer_norm", _CROSS),
            *((f"cross_attn_{part}", f"EncDecAttention.{part}", _CROSS) for part in "qkvo"),
            ("ffn_norm", "layer_norm", _FFN),
            ("ffn_up", "DenseReluDense.wi", _FFN),
            ("ffn_gate", "DenseReluDense.wi_0", _FFN),
            ("ffn_gated_up", "DenseReluDense.wi_1", _FFN),
            ("ffn_down", "DenseReluDense.wo", _FFN),
        )
        for half, index in places.items()
    },
}
STYLE = Style(
    is_pre_norm=True, uses_rms=True, norms_embeddings=False, positions="relative", has_output_bias=False,
    embeddings=("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"),
    head="lm_head.weight", names=NAMES,
)  # fmt: skip


def config_from_huggingface(config: Mapping[str, Json]) -> ModelConfig:
    """Read config.json."""
    fields = ConfigFields(config, "config.json")
    seq2seq.refuse_other_heads(fields)
    is_umt5 = fields.value("model_type") == "umt5"
    answers = seq2seq.answer_tokens(fields, default_start=_start(fields), default_end=1, forced_end=None)
    activation, is_gated = _feed_forward(fields)
    # In transformers a config that says nothing ties, and one that ties scales unless it says otherwise.
    is_tied = fields.boolean("tie_word_embeddings", default=True)
    # mT5 has the layers of T5 1.1 and never scales.
    is_scaled = fields.boolean("scale_decoder_outputs", default=is_tied and fields.value("model_type") != "mt5")
    hidden_size, heads = fields.integer("d_model"), fields.integer("num_heads")
    layers, ffn_size = fields.integer("num_layers"), fields.integer("d_ff")
    return ModelConfig(
        family=family,
        vocab_size=fields.integer("vocab_size"),
        context_length=fields.integer("n_positions", 512),
        hidden_size=hidden_size,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        head_dim=fields.integer("d_kv", 64),
        ffn_size=ffn_size,
        norm_epsilon=fields.number("layer_norm_epsilon", 1e-6),
        rope=NO_ROPE,
        tied=is_tied,
        decoder=DecoderTraits(
            layers=fields.integer("num_decoder_layers", layers),
            heads=heads,
            ffn_size=ffn_size,
            activation=activation,
            is_gated=is_gated,
            output_scale=_usual_scale(hidden_size, is_tied=is_scaled),
            relative_buckets=fields.integer("relative_attention_num_buckets", 32),
            relative_max_distance=fields.integer("relative_attention_max_distance", 128),
            relative_in_every_block=is_umt5,
            **answers.as_traits(),
        ),
    )


def _start(fields: ConfigFields) -> int:
    """T5 starts answers with its padding token."""
    value = fields.value("pad_token_id")
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _feed_forward(fields: ConfigFields) -> tuple[Activation, bool]:
    # What the family's config class assumes.
    usual = "relu" if fields.value("model_type") == "t5" else "gated-gelu"
    words = fields.text("feed_forward_proj", usual)
    name = words.removeprefix("gated-")
    is_gated = name != words
    # transformers takes the old name of the gated one for the approximation.
    name = "gelu_new" if words == "gated-gelu" else name
    if name not in ACTIVATIONS:
        raise fields.error("feed_forward_proj", f"is '{words}'", ", ".join([*ACTIVATIONS, "gated-gelu"]))
    return ACTIVATIONS[name], is_gated


def config_from_gguf(metadata: Mapping[str, Json], shapes: Mapping[str, tuple[int, ...]]) -> ModelConfig:
    """Read `t5.*` metadata."""
    fields = ConfigFields(metadata, "GGUF metadata", "t5.")
    embedding = shapes.get(seq2seq.EMBEDDING, (0, 0))
    hidden_size, heads = fields.integer("embedding_length"), fields.integer("attention.head_count")
    layers, ffn_size = fields.integer("block_count"), fields.integer("feed_forward_length")
    is_gated, is_tied = "dec.blk.0.ffn_gate.weight" in shapes, seq2seq.OUTPUT not in shapes
    tokens = ConfigFields(metadata, "GGUF metadata", "tokenizer.ggml.")
    end = tokens.value("eos_token_id")
    start = fields.value("decoder_start_token_id")
    return ModelConfig(
        family=family,
        vocab_size=embedding[0] or fields.integer("vocab_size"),
        context_length=fields.integer("context_length", 512),
        hidden_size=hidden_size,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        head_dim=fields.integer("attention.key_length", hidden_size // heads),
        ffn_size=ffn_size,
        norm_epsilon=fields.number("attention.layer_norm_rms_epsilon"),
        rope=NO_ROPE,
        tied=is_tied,
        decoder=DecoderTraits(
            layers=fields.integer("decoder_block_count", layers),
            heads=heads,
            ffn_size=ffn_size,
            start_token_id=start if isinstance(start, int) else 0,
            end_token_ids=(end if isinstance(end, int) else 1,),
            activation="gelu_tanh" if is_gated else "relu",
            is_gated=is_gated,
            output_scale=fields.number("decoder_output_scale", _usual_scale(hidden_size, is_tied=is_tied)),
            relative_buckets=fields.integer("attention.relative_buckets_count"),
            relative_max_distance=_GGUF_MAX_DISTANCE,
            relative_in_every_block=f"enc.blk.1.{seq2seq.RELATIVE_BIAS}" in shapes,
        ),
    )


def gguf_metadata(config: ModelConfig) -> dict[str, Json]:
    """The `t5.*` keys. Raises UnsupportedModelError for what llama.cpp does not take from a file."""
    traits = seq2seq.traits_of(config)
    usual: Activation = "gelu_tanh" if traits.is_gated else "relu"
    for what, found, allowed in (
        ("activation", traits.activation, usual),
        ("relative_attention_max_distance", traits.relative_max_distance, _GGUF_MAX_DISTANCE),
        ("forced tokens", (traits.forced_first_token_id, traits.forced_last_token_id), (None, None)),
        ("banned tokens", traits.banned_token_ids, ()),
    ):
        if found != allowed:
            raise seq2seq.not_in_gguf("T5", what, found, allowed)
    own: dict[str, Json] = {}
    if traits.output_scale != _usual_scale(config.hidden_size, is_tied=config.tied):
        # A key of our own: llama.cpp never scales, which changes no order of the logits.
        own["t5.decoder_output_scale"] = traits.output_scale
    return own | {
        "t5.vocab_size": config.vocab_size,
        "t5.context_length": config.context_length,
        "t5.embedding_length": config.hidden_size,
        "t5.block_count": config.layers,
        "t5.decoder_block_count": traits.layers,
        "t5.feed_forward_length": config.ffn_size,
        "t5.attention.head_count": config.heads,
        "t5.attention.key_length": config.head_dim,
        "t5.attention.value_length": config.head_dim,
        "t5.attention.layer_norm_epsilon": config.norm_epsilon,
        "t5.attention.layer_norm_rms_epsilon": config.norm_epsilon,
        "t5.attention.relative_buckets_count": traits.relative_buckets,
        "t5.decoder_start_token_id": traits.start_token_id,
    }


def _usual_scale(hidden_size: int, *, is_tied: bool) -> float:
    """On hidden states before a head that is the embedding."""
    return hidden_size**-0.5 if is_tied else 1.0


def tensor_table(config: ModelConfig) -> tuple[TensorEntry, ...]:
    """Every tensor, in file order."""
    return seq2seq.tensor_table(config, STYLE)


def encoder_program(config: ModelConfig) -> Program:
    """The forward pass over the text."""
    return seq2seq.encoder_program(config, STYLE)


def program(config: ModelConfig) -> Program:
    """The forward pass over the answer."""
    return seq2seq.decoder_program(config, STYLE)
