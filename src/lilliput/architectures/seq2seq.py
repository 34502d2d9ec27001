# SPDX-License-Identifier: Apache-2.0
"""The encoder-decoder that BART, its kin and T5 share: two stacks of blocks, and attention from one to the other.

A family states its `Style`: where its norms are, what it adds for positions, and how its checkpoint spells names. The
program of the encoder ends in keys and values for every block of the decoder, so that they are computed once a text.
Canonical names are those that GGUF has for T5: `enc.blk.0.attn_q`, `dec.blk.0.cross_attn_q`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Literal, TypedDict

import numpy as np

from lilliput.architectures.architecture import DecoderTraits, ModelConfig, TensorEntry
from lilliput.architectures.config_fields import ConfigFields
from lilliput.architectures.program import (
    Activate,
    Add,
    Attention,
    CrossAttention,
    Embed,
    Glu,
    KvState,
    LayerNorm,
    Linear,
    Operation,
    Program,
    RelativeBias,
    RmsNorm,
    Scale,
    SelectOutputRows,
    Share,
)
from lilliput.architectures.sources import Computed, FirstOf, Named, Rows, Source
from lilliput.errors import UnsupportedModelError
from lilliput.records import Role

EMBEDDING = "token_embd.weight"
OUTPUT = "output.weight"
OUTPUT_BIAS = "output.bias"
RELATIVE_BIAS = "attn_rel_b.weight"
Half = Literal["enc", "dec"]
# Sublayers of a block: canonical names of norm, linears and roles.
_ATTENTION_ROLES = {
    "q": Role.ATTENTION_Q,
    "k": Role.ATTENTION_K,
    "v": Role.ATTENTION_V,
    "o": Role.ATTENTION_OUTPUT,
}
_CROSS_ROLES = {
    "q": Role.CROSS_ATTENTION_Q,
    "k": Role.CROSS_ATTENTION_K,
    "v": Role.CROSS_ATTENTION_V,
    "o": Role.CROSS_ATTENTION_OUTPUT,
}


@dataclass(frozen=True, slots=True)
class Style:
    """Facts of a family.

    is_pre_norm: norms before each sublayer, and one after the last block; otherwise after each sum.
    uses_rms: norms without mean and bias, linears without bias.  norms_embeddings: a norm before the first block.
    positions: learned, with `first_position` rows before position 0; computed, as fairseq does (from `first_position`
    on) or otherwise; or relative, as biases on scores.
    has_output_bias: on the logits.
    names: canonical part -> the checkpoint's; `enc`, `dec` and their parts with {} for the block's number.
    """

    is_pre_norm: bool
    uses_rms: bool
    norms_embeddings: bool
    positions: Literal["learned", "sinusoidal", "fairseq", "relative"]
    has_output_bias: bool
    embeddings: tuple[str, ...]
    head: str
    names: Mapping[str, str] = field(default_factory=dict)
    first_position: int = 0


def traits_of(config: ModelConfig) -> DecoderTraits:
    """What only an encoder-decoder has."""
    assert config.decoder is not None
    return config.decoder


@dataclass(frozen=True, slots=True)
class AnswerTokens:
    """How answers begin and end; see DecoderTraits."""

    start: int
    ends: tuple[int, ...]
    forced_first: int | None
    forced_last: int | None
    banned: tuple[int, ...]

    def as_traits(self) -> _TokenTraits:
        """As fields of DecoderTraits."""
        return {
            "start_token_id": self.start,
            "end_token_ids": self.ends,
            "forced_first_token_id": self.forced_first,
            "forced_last_token_id": self.forced_last,
            "banned_token_ids": self.banned,
        }


class _TokenTraits(TypedDict):
    start_token_id: int
    end_token_ids: tuple[int, ...]
    forced_first_token_id: int | None
    forced_last_token_id: int | None
    banned_token_ids: tuple[int, ...]


def answer_tokens(
    fields: ConfigFields, *, default_start: int | None, default_end: int, forced_end: int | None
) -> AnswerTokens:
    """Read what transformers' `generate` reads. Raises UnsupportedModelError.

    What generation_config.json says has been put over config.json by whoever read the folder.
    """
    start = _token(fields, "decoder_start_token_id", default_start)
    if start is None:
        start = _token(fields, "bos_token_id", None)
    if start is None:
        raise fields.error("decoder_start_token_id", "is missing", "the token that answers start with")
    ends = fields.value("eos_token_id")
    return AnswerTokens(
        start=start,
        ends=_tokens(fields, "eos_token_id")
        if isinstance(ends, list)
        else tuple(end for end in (_token(fields, "eos_token_id", default_end),) if end is not None),
        forced_first=_token(fields, "forced_bos_token_id", None),
        forced_last=_token(fields, "forced_eos_token_id", forced_end),
        banned=(*_tokens(fields, "bad_words_ids"), *_tokens(fields, "suppress_tokens")),
    )


def _token(fields: ConfigFields, name: str, default: int | None) -> int | None:
    value = fields.value(name) if fields.is_written(name) else default
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise fields.error(name, f"is {value!r}", "a token id")
    return value


def _tokens(fields: ConfigFields, name: str) -> tuple[int, ...]:
    """Token ids of a list, in which each may be a list of its own. Raises UnsupportedModelError for longer ones."""
    values = fields.value(name) or []
    found: list[int] = []
    for value in values if isinstance(values, list) else [values]:
        token = value[0] if isinstance(value, list) and len(value) == 1 else value
        if isinstance(token, bool) or not isinstance(token, int):
            raise fields.error(name, f"has {value!r}", "single token ids")
        found.append(token)
    return tuple(found)


@cache
def sinusoids(rows: int, width: int) -> tuple[float, ...]:
    """Marian's positions: sines in the first half of a row, cosines in the second (arXiv 1706.03762, section 3.5)."""
    values: list[float] = []
    for position in range(rows):
        angles = [position / 10000 ** (2 * (column // 2) / width) for column in range(width)]
        values.extend(math.sin(angle) for angle in angles[0::2])
        values.extend(math.cos(angle) for angle in angles[1::2])
    return tuple(values)


@cache
def fairseq_sinusoids(rows: int, width: int, first: int) -> tuple[float, ...]:
    """M2M100's positions from `first` on, in float32 like its own: the angle at 1,000 has an error of 3e-5 there.

    Frequencies run from 1 to 1 / 10,000, both included.
    """
    half = width // 2
    frequencies = np.exp(np.arange(half, dtype=np.float32) * np.float32(-math.log(10000) / (half - 1)))
    angles = np.arange(first, first + rows, dtype=np.float32)[:, None] * frequencies
    values = np.zeros((rows, width), np.float32)
    values[:, :half], values[:, half : 2 * half] = np.sin(angles), np.cos(angles)
    return tuple(values.ravel().tolist())


def tensor_table(config: ModelConfig, style: Style) -> tuple[TensorEntry, ...]:
    """Every tensor, in file order. Copies of the shared embedding that a checkpoint may hold are tied to it."""
    hidden = config.hidden_size
    vocabulary = (config.vocab_size, hidden)
    embedding: Source = FirstOf(tuple(Named(name) for name in style.embeddings))
    entries = [TensorEntry(EMBEDDING, embedding, vocabulary, Role.TOKEN_EMBEDDING)]
    for index, name in enumerate(style.embeddings[1:]):
        entries.append(
            TensorEntry(f"copy{index}.{EMBEDDING}", Named(name), vocabulary, Role.TOKEN_EMBEDDING, tied_to=EMBEDDING)
        )
    for half in ("enc", "dec"):
        entries.extend(_half_entries(config, style, half))
    tied_to = EMBEDDING if config.tied else None
    source = Named(style.embeddings[0] if config.tied else style.head)
    entries.append(TensorEntry(OUTPUT, source, vocabulary, Role.OUTPUT, input_group="output", tied_to=tied_to))
    if style.has_output_bias:
        entries.append(TensorEntry(OUTPUT_BIAS, Named("final_logits_bias"), (1, config.vocab_size), Role.BIAS))
    return tuple(entries)


def _half_entries(config: ModelConfig, style: Style, half: Half) -> Iterator[TensorEntry]:
    hidden, traits = config.hidden_size, traits_of(config)
    if style.positions != "relative":
        shape = (config.context_length, hidden)
        source: Source
        if style.positions == "sinusoidal":
            # Some checkpoints hold them all the same.
            source = FirstOf((Named(style.names[f"{half}.position_embd"]), Computed(sinusoids(*shape))))
        elif style.positions == "fairseq":
            source = Computed(fairseq_sinusoids(*shape, style.first_position))
        else:
            total = config.context_length + style.first_position
            source = Rows(style.names[f"{half}.position_embd"], style.first_position, total, total)
        yield TensorEntry(f"{half}.position_embd.weight", source, shape, Role.POSITION_EMBEDDING)
    if style.norms_embeddings:
        yield from _norm_entries(f"{half}.token_embd_norm", style.names[f"{half}.token_embd_norm"], hidden, style)
    for layer in range(config.layers if half == "enc" else traits.layers):
        yield from _block_entries(config, style, half, layer)
    if style.is_pre_norm:
        yield from _norm_entries(f"{half}.output_norm", style.names[f"{half}.output_norm"], hidden, style)


def _norm_entries(ours: str, theirs: str, width: int, style: Style) -> Iterator[TensorEntry]:
    for kind in ("weight",) if style.uses_rms else ("weight", "bias"):
        yield TensorEntry(f"{ours}.{kind}", Named(f"{theirs}.{kind}"), (width,), Role.NORM)


def _block_entries(config: ModelConfig, style: Style, half: Half, layer: int) -> Iterator[TensorEntry]:
    block, traits = f"{half}.blk.{layer}", traits_of(config)
    hidden, ffn = config.hidden_size, config.ffn_size if half == "enc" else traits.ffn_size

    def theirs(part: str) -> str:
        return style.names[f"{half}.{part}"].format(layer)

    def linear(part: str, shape: tuple[int, int], role: Role, input_group: str) -> Iterator[TensorEntry]:
        yield TensorEntry(f"{block}.{part}.weight", Named(f"{theirs(part)}.weight"), shape, role, input_group)
        if not style.uses_rms:
            yield TensorEntry(f"{block}.{part}.bias", Named(f"{theirs(part)}.bias"), shape[:1], Role.BIAS)

    def attention(prefix: str, heads: int, roles: Mapping[str, Role]) -> Iterator[TensorEntry]:
        yield from _norm_entries(f"{block}.{prefix}_norm", theirs(f"{prefix}_norm"), hidden, style)
        inner = heads * config.head_dim
        for part, role in roles.items():
            shape = (hidden, inner) if part == "o" else (inner, hidden)
            group = "output" if part == "o" else "memory" if prefix == "cross_attn" and part != "q" else "input"
            # What the encoder leaves is one input for all blocks of the decoder.
            owner = "dec.memory" if group == "memory" else f"{block}.{prefix}_{group}"
            yield from linear(f"{prefix}_{part}", shape, role, owner)

    yield from attention("attn", config.heads if half == "enc" else traits.heads, _ATTENTION_ROLES)
    if style.positions == "relative" and (layer == 0 or traits.relative_in_every_block):
        shape = (traits.relative_buckets, config.heads if half == "enc" else traits.heads)
        name = f"{block}.{RELATIVE_BIAS}"
        yield TensorEntry(name, Named(f"{theirs('attn_rel_b')}.weight"), shape, Role.RELATIVE_BIAS)
    if half == "dec":
        yield from attention("cross_attn", traits.heads, _CROSS_ROLES)
    yield from _norm_entries(f"{block}.ffn_norm", theirs("ffn_norm"), hidden, style)
    if traits.is_gated:
        yield from linear("ffn_gate", (ffn, hidden), Role.FFN_GATE, f"{block}.ffn_input")
    up = "ffn_gated_up" if traits.is_gated and f"{half}.ffn_gated_up" in style.names else "ffn_up"
    for entry in linear(up, (ffn, hidden), Role.FFN_UP, f"{block}.ffn_input"):
        yield TensorEntry(entry.name.replace("ffn_gated_up", "ffn_up"), *_rest(entry))
    yield from linear("ffn_down", (hidden, ffn), Role.FFN_DOWN, f"{block}.ffn_down_input")


def _rest(entry: TensorEntry) -> tuple[Source, tuple[int, ...], Role, str | None]:
    return entry.source, entry.shape, entry.role, entry.input_group


def encoder_program(config: ModelConfig, style: Style) -> Program:
    """Hidden states of the text, and from them keys and values for every block of the decoder."""
    built = _Builder(config, style, "enc")
    built.embed()
    for layer in range(config.layers):
        built.self_attention(layer)
        built.feed_forward(layer)
    built.final_norm()
    traits = traits_of(config)
    widths = dict.fromkeys(("cross_k", "cross_v"), traits.heads * config.head_dim)
    for layer in range(traits.layers):
        for part in ("k", "v"):
            built.operations.append(built.linear(f"cross_{part}", built.stream, f"dec.blk.{layer}.cross_attn_{part}"))
        built.operations.append(Share("cross_k", "cross_v", layer))
    built.operations.append(SelectOutputRows("hidden", built.stream))
    # Nothing outlives its layer, so that all layers share one cache.
    states = (KvState(0, config.heads, config.head_dim),)
    buffers = built.buffers | widths | {"hidden": config.hidden_size}
    return Program(buffers, states, tuple(built.operations), "hidden", _shared_states(config))


def decoder_program(config: ModelConfig, style: Style) -> Program:
    """The next token. Rows whose logits nobody asked for are dropped after the last attention."""
    built, traits = _Builder(config, style, "dec"), traits_of(config)
    built.embed()
    for layer in range(traits.layers):
        built.self_attention(layer)
        built.cross_attention(layer, is_last=layer == traits.layers - 1)
        built.feed_forward(layer)
    built.final_norm()
    if traits.output_scale != 1.0:
        built.operations.append(Scale("normed", built.stream, traits.output_scale))
        built.stream = "normed"
    bias = OUTPUT_BIAS if style.has_output_bias else None
    built.operations.append(Linear("logits", built.stream, EMBEDDING if config.tied else OUTPUT, bias))
    states = tuple(KvState(layer, traits.heads, config.head_dim) for layer in range(traits.layers))
    buffers = built.buffers | {"logits": config.vocab_size}
    return Program(buffers, states, tuple(built.operations), "logits", _shared_states(config))


def _shared_states(config: ModelConfig) -> tuple[KvState, ...]:
    traits = traits_of(config)
    return tuple(KvState(layer, traits.heads, config.head_dim) for layer in range(traits.layers))


class _Builder:
    """The operations of one stack. stream: the buffer that holds the residual stream."""

    def __init__(self, config: ModelConfig, style: Style, half: Half) -> None:
        self._config = config
        self._style = style
        self._half = half
        self._traits = traits_of(config)
        self._heads = config.heads if half == "enc" else self._traits.heads
        self._selects = False
        hidden, inner = config.hidden_size, self._heads * config.head_dim
        ffn = config.ffn_size if half == "enc" else self._traits.ffn_size
        self.stream = "residual"
        self.operations: list[Operation] = []
        self.buffers: dict[str, int] = {
            **dict.fromkeys(("residual", "selected", "sum", "normed", "output"), hidden),
            **dict.fromkeys(("q", "k", "v", "attention", "selected_attention"), inner),
            **dict.fromkeys(("up", "gate"), ffn),
        }

    def embed(self) -> None:
        """Tokens, positions and the norm on them."""
        embedded = "sum" if self._style.norms_embeddings else "residual"
        self.operations.append(Embed(embedded, EMBEDDING, scale=self._traits.embedding_scale))
        if self._style.positions != "relative":
            self.operations.append(Embed("normed", f"{self._half}.position_embd.weight", by="position"))
            self.operations.append(Add(embedded, embedded, "normed"))
        if self._style.norms_embeddings:
            self.operations.append(self._norm("residual", "sum", f"{self._half}.token_embd_norm"))

    def self_attention(self, layer: int) -> None:
        """Tokens of this stack among themselves."""
        block = f"{self._half}.blk.{layer}"
        x = self._begin(f"{block}.attn_norm")
        self.operations += [self.linear(part, x, f"{block}.attn_{part}") for part in ("q", "k", "v")]
        is_encoder = self._half == "enc"
        self.operations.append(
            Attention(
                out="attention",
                q="q",
                k="k",
                v="v",
                layer=0 if is_encoder else layer,
                heads=self._heads,
                kv_heads=self._heads,
                head_dim=self._config.head_dim,
                scale=self._scale(),
                causal=not is_encoder,
                bias=self._bias(layer),
            )
        )
        self.operations.append(self.linear("output", "attention", f"{block}.attn_o"))
        self._end(f"{block}.attn_norm")

    def cross_attention(self, layer: int, *, is_last: bool) -> None:
        """Tokens of the decoder over those of the encoder."""
        block = f"dec.blk.{layer}"
        x = self._begin(f"{block}.cross_attn_norm")
        self.operations.append(self.linear("q", x, f"{block}.cross_attn_q"))
        heads, head_dim = self._heads, self._config.head_dim
        self.operations.append(CrossAttention("attention", "q", layer, heads, heads, head_dim, self._scale()))
        attention = "attention"
        if is_last:
            self.operations.append(SelectOutputRows("selected", self.stream))
            self.operations.append(SelectOutputRows("selected_attention", attention))
            self.stream, attention = "selected", "selected_attention"
        self.operations.append(self.linear("output", attention, f"{block}.cross_attn_o"))
        self._end(f"{block}.cross_attn_norm")

    def feed_forward(self, layer: int) -> None:
        """The ffn, gated or not."""
        block, activation = f"{self._half}.blk.{layer}", self._traits.activation
        x = self._begin(f"{block}.ffn_norm")
        if self._traits.is_gated:
            self.operations.append(self.linear("gate", x, f"{block}.ffn_gate"))
            self.operations.append(self.linear("up", x, f"{block}.ffn_up"))
            self.operations.append(Glu("up", "gate", "up", activation))
        else:
            self.operations.append(self.linear("up", x, f"{block}.ffn_up"))
            self.operations.append(Activate("up", "up", activation))
        self.operations.append(self.linear("output", "up", f"{block}.ffn_down"))
        self._end(f"{block}.ffn_norm")

    def final_norm(self) -> None:
        """The norm after the last block."""
        if self._style.is_pre_norm:
            self.operations.append(self._norm("sum", self.stream, f"{self._half}.output_norm"))
            self.stream = "sum"

    def linear(self, out: str, x: str, name: str) -> Linear:
        """With a bias where the family has them."""
        return Linear(out, x, f"{name}.weight", None if self._style.uses_rms else f"{name}.bias")

    def _begin(self, norm: str) -> str:
        """The buffer that a sublayer reads."""
        if not self._style.is_pre_norm:
            return self.stream
        self.operations.append(self._norm("normed", self.stream, norm))
        return "normed"

    def _end(self, norm: str) -> None:
        """Add what a sublayer made to the stream."""
        if self._style.is_pre_norm:
            self.operations.append(Add(self.stream, self.stream, "output"))
            return
        self.operations.append(Add("sum", self.stream, "output"))
        self.operations.append(self._norm(self.stream, "sum", norm))

    def _norm(self, out: str, x: str, name: str) -> Operation:
        if self._style.uses_rms:
            return RmsNorm(out, x, f"{name}.weight", self._config.norm_epsilon)
        return LayerNorm(out, x, f"{name}.weight", f"{name}.bias", self._config.norm_epsilon)

    def _scale(self) -> float:
        # T5 leaves the scale to its initialization.
        return 1.0 if self._style.positions == "relative" else 1.0 / math.sqrt(self._config.head_dim)

    def _bias(self, layer: int) -> RelativeBias | None:
        if self._style.positions != "relative":
            return None
        traits = self._traits
        name = f"{self._half}.blk.{layer if traits.relative_in_every_block else 0}.{RELATIVE_BIAS}"
        return RelativeBias(
            name, traits.relative_buckets, traits.relative_max_distance, bidirectional=self._half == "enc"
        )


def refuse_unshared_embeddings(fields: ConfigFields) -> None:
    """Raise UnsupportedModelError for encoders and decoders with vocabularies of their own."""
    if fields.value("share_encoder_decoder_embeddings") is False:
        raise fields.error("share_encoder_decoder_embeddings", "is false", "true")
    if fields.has("decoder_vocab_size") and fields.integer("decoder_vocab_size") != fields.integer("vocab_size"):
        raise fields.error("decoder_vocab_size", f"is {fields.value('decoder_vocab_size')}", "vocab_size")


def refuse_other_heads(fields: ConfigFields) -> None:
    """Raise UnsupportedModelError for checkpoints that do not write answers."""
    classes = fields.value("architectures")
    names = [str(name) for name in classes] if isinstance(classes, list) else []
    if names and not any(name.endswith(("ForConditionalGeneration", "MTModel", "WithLMHeadModel")) for name in names):
        raise fields.error("architectures", f"is {names[0]}", "models that write an answer (…ForConditionalGeneration)")


def not_in_gguf(family: str, what: str, found: object, allowed: object) -> UnsupportedModelError:
    """The error for what GGUF has no key for."""
    return UnsupportedModelError(
        f"GGUF has no key for {family}'s {what}, which is {found!r} here and {allowed!r} to its readers; "
        "give -o NAME.safetensors for lilliput's own layout"
    )
