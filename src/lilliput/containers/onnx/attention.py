# SPDX-License-Identifier: Apache-2.0
"""Attention over earlier and new keys: ONNX Runtime's GroupQueryAttention, or operators that every tool has.

grouped    com.microsoft GroupQueryAttention: fast, what onnxruntime-genai wants. Sequences of a batch start at
           position 0 and are padded on the right.
standard   MatMul, masks, Softmax: padding on either side, told by attention_mask.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from lilliput.architectures.program import Attention
from lilliput.containers.onnx.graph import MICROSOFT, Attribute, ElementType, Graph

# Scores of keys that a query does not see: the lowest float32, after whose exponential nothing is left.
_HIDDEN = float(np.finfo(np.float32).min)


@dataclass(frozen=True, slots=True)
class Heads:
    """Of queries, of keys and values, and the width of one."""

    count: int
    kv_count: int
    width: int


@dataclass(slots=True)
class AttentionInputs:
    """What all layers share, made when the first asks. mask: [batch, total] of 0 and 1.  shape: [batch, sequence]."""

    graph: Graph
    mask: str
    shape: str
    _lengths: tuple[str, str] | None = None
    _masks: dict[int | None, str] = field(default_factory=dict)

    def lengths(self) -> tuple[str, str]:
        """int32 [batch], keys of each sequence less one; int32 scalar, keys in all."""
        if self._lengths is None:
            graph, to_int32 = self.graph, {"to": int(ElementType.INT32)}
            counts = graph.add("ReduceSum", self.mask, graph.constant([1]), attributes={"keepdims": 0})
            last = graph.add("Cast", graph.add("Sub", counts, graph.constant(1)), attributes=to_int32)
            total = graph.add("Gather", graph.add("Shape", self.mask), graph.constant(1))
            self._lengths = (last, graph.add("Cast", total, attributes=to_int32))
        return self._lengths

    def hidden_scores(self, window: int | None) -> str:
        """float32 [batch, 1, 1, sequence, total], added to scores: 0 where a query sees a key."""
        if window not in self._masks:
            graph = self.graph
            new = graph.add("Gather", self.shape, graph.constant(1))
            total = graph.add("Gather", graph.add("Shape", self.mask), graph.constant(1))
            first, one = graph.constant(0), graph.constant(1)
            keys = graph.add("Range", first, total, one)
            queries = graph.add("Range", graph.add("Sub", total, new), total, one)
            age = graph.add("Sub", graph.add("Unsqueeze", queries, graph.constant([1])), keys)
            seen = graph.add("GreaterOrEqual", age, first)
            if window is not None:
                seen = graph.add("And", seen, graph.add("Less", age, graph.constant(window)))
            real = graph.add("Cast", self.mask, attributes={"to": int(ElementType.BOOL)})
            seen = graph.add("And", seen, graph.add("Unsqueeze", real, graph.constant([1, 2, 3])))
            zero, hidden = graph.constant(0.0, "float32"), graph.constant(_HIDDEN, "float32")
            self._masks[window] = graph.add("Where", seen, zero, hidden)
        return self._masks[window]


def grouped_attention(
    inputs: AttentionInputs, operation: Attention, vectors: tuple[str, str, str], states: tuple[str, str, str, str]
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
    inputs: AttentionInputs, operation: Attention, vectors: tuple[str, str, str], states: tuple[str, str, str, str]
) -> str:
    """The same with vectors [batch, sequence, heads, head_dim], from which [batch, sequence, heads, head_dim]."""
    graph, width = inputs.graph, operation.head_dim
    kv_heads, sharing = operation.kv_heads, operation.heads // operation.kv_heads
    q, k, v = (graph.add("Transpose", vector, attributes={"perm": (0, 2, 1, 3)}) for vector in vectors)
    for past, new, present in ((states[0], k, states[2]), (states[1], v, states[3])):
        graph.add_many("Concat", (past, new), (present,), attributes={"axis": 2})
    keys, values = (graph.add("Unsqueeze", present, graph.constant([2])) for present in states[2:])
    # Heads that share keys become an axis of their own: [batch, kv_heads, sharing, sequence, head_dim].
    q = graph.add("Reshape", q, graph.constant([0, kv_heads, sharing, -1, width]))
    scores = graph.add("MatMul", q, graph.add("Transpose", keys, attributes={"perm": (0, 1, 2, 4, 3)}))
    scores = graph.add("Mul", scores, graph.constant(operation.scale, "float32"))
    if operation.softcap is not None:
        cap = graph.constant(operation.softcap, "float32")
        scores = graph.add("Mul", graph.add("Tanh", graph.add("Div", scores, cap)), cap)
    shares = graph.add("Softmax", graph.add("Add", scores, inputs.hidden_scores(operation.window)))
    out = graph.add("Reshape", graph.add("MatMul", shares, values), graph.constant([0, operation.heads, -1, width]))
    return graph.add("Transpose", out, attributes={"perm": (0, 2, 1, 3)})
