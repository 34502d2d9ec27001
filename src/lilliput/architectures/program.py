# SPDX-License-Identifier: Apache-2.0
"""The forward pass as data: a flat list of operations over named buffers and named state.

A family emits plain operations, never fused ones; the runtime lowers and fuses by pattern. Every buffer is
float32 [tokens, width]; a weight is named by its canonical tensor name and multiplies as x @ weight.T.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# "gelu" is the exact one, of the error function.
Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "tanh"]


@dataclass(frozen=True, slots=True)
class Embed:
    """out = scale * weight[row]: of the token, of its position plus `offset`, or of its segment (BERT's sentence).

    Rows of a position table bound the context: a token at position p reads row p + offset.
    """

    out: str
    weight: str
    scale: float = 1.0
    by: Literal["token", "position", "segment"] = "token"
    offset: int = 0


@dataclass(frozen=True, slots=True)
class RmsNorm:
    """out = x / sqrt(mean(x²) + epsilon) * weight, over each of `groups` equal parts of a row (heads for q/k norm).

    weight: [width / groups].
    """

    out: str
    x: str
    weight: str
    epsilon: float
    groups: int = 1


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """out = (x - mean(x)) / sqrt(variance(x) + epsilon) * weight + bias."""

    out: str
    x: str
    weight: str
    bias: str | None
    epsilon: float


@dataclass(frozen=True, slots=True)
class Linear:
    """out = x @ weight.T + bias.

    rows: half-open range of the rows of weight and bias that this reads, for weights that a file keeps fused
    (`attn_qkv`); None means all. Nothing is copied.
    """

    out: str
    x: str
    weight: str
    bias: str | None = None
    rows: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class RopeFrequencies:
    """Inverse frequencies and magnitude, resolved once at load.

    base, rotary_dim: frequency i is base^(-2 i / rotary_dim).  factors: tensor [rotary_dim / 2] that divides them.
    linear_factor: positions are divided by it.  yarn: interpolation by parts (arXiv 2309.00071), or None.
    """

    base: float
    rotary_dim: int
    linear_factor: float = 1.0
    factors: str | None = None
    yarn: YarnScaling | None = None


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """YaRN: arXiv 2309.00071, section 3.2. attention_factor None means 0.1 ln(factor) + 1."""

    factor: float
    original_context: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotate the first rotary_dim of each head of x in place.

    style "adjacent": pairs (2i, 2i+1), as GGUF stores Llama; "halves": pairs (i, i + rotary_dim/2), as transformers.
    """

    x: str
    heads: int
    head_dim: int
    frequencies: RopeFrequencies
    style: Literal["adjacent", "halves"]


@dataclass(frozen=True, slots=True)
class RelativeBias:
    """A number for each head and each bucket of distances, added to scores (T5: arXiv 1910.10683, section 2.1).

    weight: tensor [buckets, heads].  Distances from max_distance on share the last bucket.
    bidirectional: half of the buckets are for keys after the query; otherwise those count as distance 0.
    """

    weight: str
    buckets: int
    max_distance: int
    bidirectional: bool


@dataclass(frozen=True, slots=True)
class Attention:
    """Store k and v in the cache of `layer`, then out = softmax(scale q kᵀ + bias + mask) v.

    window: keys older than this many positions are masked, or None.  softcap: c tanh(s / c) on scores, or None.
    causal: keys after the query are masked. Without, a sequence has to come in one pass, and layers may share a cache.
    """

    out: str
    q: str
    k: str
    v: str
    layer: int
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    window: int | None = None
    softcap: float | None = None
    causal: bool = True
    bias: RelativeBias | None = None


@dataclass(frozen=True, slots=True)
class Share:
    """Leave k and v of all tokens to the decoder's program, in shared state `layer`."""

    k: str
    v: str
    layer: int


@dataclass(frozen=True, slots=True)
class CrossAttention:
    """out = softmax(scale q kᵀ) v over the keys and values that the encoder's program left in shared state `layer`."""

    out: str
    q: str
    layer: int
    heads: int
    kv_heads: int
    head_dim: int
    scale: float


@dataclass(frozen=True, slots=True)
class Glu:
    """out = activation(gate) * up."""

    out: str
    gate: str
    up: str
    activation: Activation


@dataclass(frozen=True, slots=True)
class Experts:
    """out = sum over the `used` experts e of each token of p_e * down_e (activation(gate_e x) * up_e x).

    router: buffer with one logit an expert; the largest are used, the lower expert of equal ones.
    p: softmax over all logits; normalizes: divided by its sum over the used ones.
    gate, up, down: weights [experts, out, in].
    """

    out: str
    x: str
    router: str
    gate: str
    up: str
    down: str
    activation: Activation
    used: int
    normalizes: bool


@dataclass(frozen=True, slots=True)
class Activate:
    """out = activation(x)."""

    out: str
    x: str
    activation: Activation


@dataclass(frozen=True, slots=True)
class Scale:
    """out = factor * x."""

    out: str
    x: str
    factor: float


@dataclass(frozen=True, slots=True)
class Softcap:
    """out = limit * tanh(x / limit)."""

    out: str
    x: str
    limit: float


@dataclass(frozen=True, slots=True)
class Add:
    """out = a + b."""

    out: str
    a: str
    b: str


@dataclass(frozen=True, slots=True)
class SelectOutputRows:
    """Keep only the rows whose logits were asked for; operations after it run on those alone."""

    out: str
    x: str


Operation = (
    Embed
    | RmsNorm
    | LayerNorm
    | Linear
    | Rope
    | Attention
    | CrossAttention
    | Share
    | Glu
    | Experts
    | Activate
    | Scale
    | Softcap
    | Add
    | SelectOutputRows
)


@dataclass(frozen=True, slots=True)
class KvState:
    """The cache of one layer: keys and values, each [context, kv_heads * head_dim]."""

    layer: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True, slots=True)
class Program:
    """buffers: width of each named buffer.  output: the buffer that holds the logits [selected rows, vocab_size].

    output: of an encoder, its hidden states or what its head makes of them.
    shared_states: what an encoder's program leaves to its decoder's, the same in both.

    `Add`, `Activate`, `Scale` and `Softcap` may write onto an input and `Rope` works in place; every other `out` is a
    buffer of its own.
    """

    buffers: dict[str, int]
    states: tuple[KvState, ...]
    operations: tuple[Operation, ...]
    output: str
    shared_states: tuple[KvState, ...] = ()
