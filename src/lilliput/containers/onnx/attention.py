# SPDX-License-Identifier: Apache-2.0
"""Attention over earlier and new keys: ONNX Runtime's GroupQueryAttention, or operators that every tool has.

grouped    com.microsoft GroupQueryAttention: fast, what onnxruntime-genai wants. Sequences of a batch start at
           position 0 and are padded on the right.
standard   MatMul, masks, Softmax: padding on either side, told by attention_mask.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from lilliput.architectures.program import Attention, CrossAttention, RelativeBias
from lilliput.architectures.relative_bias import distance_buckets
from lilliput.containers.onnx.graph import MICROSOFT, Attribute, ElementType, Graph

# Scores of keys that a query does not see: the lowest float32, after whose exponential nothing is left.
# Past key and value, present key and value.
States = tuple[str, str, str, str]
_HIDDEN = float(np.finfo(np.float32).min)


@dataclass(frozen=True, slots=True)
class Heads:
    """Of queries, of keys and values, and the width of one."""

    count: int
    kv_count: int
    width: int


@dataclass(slots=True)
class AttentionInputs:
    """What all layers share, made when the first asks. mask: [batch, total] of 0 and 1.  shape: [batch, sequence].

    fixed: batch and sequence where they are known and nothing is masked for padding.
    """

    graph: Graph
    mask: str
    shape: str
    fixed: tuple[int, int] | None = None
    _lengths: tuple[str, str] | None = None
    _masks: dict[tuple[int | None, bool], str] = field(default_factory=dict)
    _ages: str | None = None
    _biases: dict[RelativeBias, str] = field(default_factory=dict)

    def lengths(self) -> tuple[str, str]:
        """int32 [batch], keys of each sequence less one; int32 scalar, keys in all."""
        if self._lengths is None:
            graph, to_int32 = self.graph, {"to": int(ElementType.INT32)}
            counts = graph.add("ReduceSum", self.mask, graph.constant([1]), attributes={"keepdims": 0})
            last = graph.add("Cast", graph.add("Sub", counts, graph.constant(1)), attributes=to_int32)
            total = graph.add("Gather", graph.add("Shape", self.mask), graph.constant(1))
            self._lengths = (last, graph.add("Cast", total, attributes=to_int32))
        return self._lengths

    def ages(self) -> str:
        """int64 [sequence, total]: a query's position less a key's."""
        if self._ages is None and self.fixed is not None:
            places = np.arange(self.fixed[1])
            self._ages = self.graph.constant(places[:, None] - places)
        if self._ages is None:
            graph = self.graph
            new = graph.add("Gather", self.shape, graph.constant(1))
            total = graph.add("Gather", graph.add("Shape", self.mask), graph.constant(1))
            keys = graph.add("Range", graph.constant(0), total, graph.constant(1))
            queries = graph.add("Range", graph.add("Sub", total, new), total, graph.constant(1))
            self._ages = graph.add("Sub", graph.add("Unsqueeze", queries, graph.constant([1])), keys)
        return self._ages

    def hidden_scores(self, window: int | None, *, causal: bool) -> str:
        """float32 [batch, 1, 1, sequence or 1, total], added to scores: 0 where a query sees a key."""
        if (window, causal) not in self._masks and self.fixed is not None:
            self._masks[window, causal] = self._fixed_scores(window) if causal else self._mask_scores()
        if (window, causal) not in self._masks:
            graph = self.graph
            real = graph.add("Cast", self.mask, attributes={"to": int(ElementType.BOOL)})
            seen = graph.add("Unsqueeze", real, graph.constant([1, 2, 3]))
            if causal:
                age = self.ages()
                near = graph.add("GreaterOrEqual", age, graph.constant(0))
                if window is not None:
                    near = graph.add("And", near, graph.add("Less", age, graph.constant(window)))
                seen = graph.add("And", near, seen)
            zero, hidden = graph.constant(0.0, "float32"), graph.constant(_HIDDEN, "float32")
            self._masks[window, causal] = graph.add("Where", seen, zero, hidden)
        return self._masks[window, causal]

    def _fixed_scores(self, window: int | None) -> str:
        """The same for causal attention whose shapes are known: [sequence, sequence]."""
        assert self.fixed is not None
        places = np.arange(self.fixed[1])
        ages = places[:, None] - places
        is_seen = (ages >= 0) & (ages < (window or ages.size))
        return self.graph.constant(np.where(is_seen, 0.0, _HIDDEN), "float32")

    def _mask_scores(self) -> str:
        """The same for other attention, out of arithmetic alone."""
        graph = self.graph
        real = graph.add("Cast", self.mask, attributes={"to": int(ElementType.FLOAT)})
        less = graph.add("Sub", real, graph.constant(1.0, "float32"))
        scores = graph.add("Mul", less, graph.constant(-_HIDDEN, "float32"))
        return graph.add("Unsqueeze", scores, graph.constant([1, 2, 3]))

    def relative_bias(self, bias: RelativeBias, table: str, kv_heads: int) -> str:
        """float32 [kv_heads, sharing, sequence, total]. table: [buckets, heads]."""
        if bias not in self._biases:
            graph, far = self.graph, bias.max_distance
            distances = np.arange(-far, far + 1, dtype=np.int32)
            by_distance = graph.add("Gather", table, graph.constant(distance_buckets(bias, distances)))
            ends = (graph.constant(-far), graph.constant(far))
            distance = graph.add("Clip", graph.add("Neg", self.ages()), *ends)
            found = graph.add("Gather", by_distance, graph.add("Add", distance, graph.constant(far)))
            self._biases[bias] = graph.add("Transpose", found, attributes={"perm": (2, 0, 1)})
        shape = self.graph.add("Shape", self.ages())
        whole = self.graph.add("Concat", self.graph.constant([kv_heads, -1]), shape, attributes={"axis": 0})
        return self.graph.add("Reshape", self._biases[bias], whole)


def grouped_attention(
    inputs: AttentionInputs, operation: Attention, vectors: tuple[str, str, str], states: States
) -> str:
    """Vectors q, k, v [batch, sequence, width]; states: past key, past value, present key, present value.

    Returns [batch, sequence, heads * head_dim].
    """
    graph = inputs.graph
    attributes: dict[str, Attribute] = {
        "num_heads": operation.heads,
        "kv_num_heads": operation.kv_heads,
        "scale": float(operation.scale),
    }
    if operation.window is not None:
        attributes["local_window_size"] = operation.window
    if operation.softcap is not None:
        attributes["softcap"] = float(operation.softcap)
    out, _, _ = graph.add_many(
        "GroupQueryAttention", (*vectors, states[0], states[1], *inputs.lengths()),
        (graph.fresh("attention"), states[2], states[3]), attributes=attributes, domain=MICROSOFT,
    )  # fmt: skip
    return out


def standard_attention(
    inputs: AttentionInputs,
    operation: Attention,
    vectors: tuple[str, str, str],
    states: States | None,
    table: str | None,
) -> str:
    """The same with vectors [batch, sequence, heads, head_dim], from which [batch, sequence, heads, head_dim].

    states: None where no token has an earlier one.  table: of the relative bias, [buckets, heads].
    """
    graph, kv_heads = inputs.graph, operation.kv_heads
    q, k, v = (graph.add("Transpose", vector, attributes={"perm": (0, 2, 1, 3)}) for vector in vectors)
    if states is not None:
        graph.add_many("Concat", (states[0], k), (states[2],), attributes={"axis": 2})
        graph.add_many("Concat", (states[1], v), (states[3],), attributes={"axis": 2})
        k, v = states[2:]
    biases = []
    if operation.bias is not None and table is not None:
        biases.append(inputs.relative_bias(operation.bias, table, kv_heads))
    biases.append(inputs.hidden_scores(operation.window, causal=operation.causal))
    return _weighted(graph, operation, (q, k, v), biases)


def cross_attention(inputs: AttentionInputs, operation: CrossAttention, q: str, states: tuple[str, str]) -> str:
    """Over the encoder's keys and values [batch, kv_heads, positions, head_dim]. inputs: the mask of its tokens.

    q, and the result: [batch, sequence, heads, head_dim].
    """
    graph = inputs.graph
    q = graph.add("Transpose", q, attributes={"perm": (0, 2, 1, 3)})
    return _weighted(graph, operation, (q, *states), [inputs.hidden_scores(None, causal=False)])


def _weighted(
    graph: Graph, operation: Attention | CrossAttention, vectors: tuple[str, str, str], biases: list[str]
) -> str:
    """softmax(scale q k^T + biases) v, of vectors [batch, heads, positions, head_dim]."""
    kv_heads, sharing, width = operation.kv_heads, operation.heads // operation.kv_heads, operation.head_dim
    q, *rest = vectors
    keys, values = (graph.add("Unsqueeze", item, graph.constant([2])) for item in rest)
    # Heads that share keys become an axis of their own: [batch, kv_heads, sharing, sequence, head_dim].
    q = graph.add("Reshape", q, graph.constant([0, kv_heads, sharing, -1, width]))
    scores = graph.add("MatMul", q, graph.add("Transpose", keys, attributes={"perm": (0, 1, 2, 4, 3)}))
    if operation.scale != 1.0:
        scores = graph.add("Mul", scores, graph.constant(operation.scale, "float32"))
    if isinstance(operation, Attention) and operation.softcap is not None:
        cap = graph.constant(operation.softcap, "float32")
        scores = graph.add("Mul", graph.add("Tanh", graph.add("Div", scores, cap)), cap)
    for bias in biases:
        scores = graph.add("Add", scores, bias)
    shares = graph.add("Softmax", scores)
    out = graph.add("Reshape", graph.add("MatMul", shares, values), graph.constant([0, operation.heads, -1, width]))
    return graph.add("Transpose", out, attributes={"perm": (0, 2, 1, 3)})
