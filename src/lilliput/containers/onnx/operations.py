# SPDX-License-Identifier: Apache-2.0
"""Program -> ONNX graph: one small function an operation, so that every family exports by itself.

Buffers are [tokens, width] as in the Program, tokens being batch times sequence; attention looks at them as
[batch, sequence, heads, head_dim]. Keys and values of earlier tokens come in and go out as `past_key_values.N.key` and
`present.N.key`, [batch, kv_heads, positions, head_dim], which is how exporters of Hugging Face models name them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import singledispatch
from typing import Literal

import numpy as np

from lilliput.architectures.architecture import ModelConfig
from lilliput.architectures.program import (
    Activate,
    Add,
    Attention,
    CrossAttention,
    Embed,
    Experts,
    Glu,
    LayerNorm,
    Linear,
    Operation,
    Program,
    RmsNorm,
    Rope,
    RopeFrequencies,
    Scale,
    SelectOutputRows,
    Share,
    Softcap,
)
from lilliput.architectures.rope_frequencies import inverse_frequencies
from lilliput.containers.onnx.attention import (
    AttentionInputs,
    Heads,
    States,
    cross_attention,
    grouped_attention,
    standard_attention,
)
from lilliput.containers.onnx.graph import Attribute, ElementType, Graph, Port
from lilliput.containers.onnx.weights import Weights
from lilliput.errors import UnsupportedModelError

AttentionKind = Literal["grouped", "standard"]
# What a graph is of a model: all of it, or one of the two that an encoder-decoder has.
Half = Literal["whole", "encoder", "decoder"]
_FLOAT = {"to": int(ElementType.FLOAT)}
_DOUBLE = {"to": int(ElementType.DOUBLE)}
_ROWS_BY = {"token": "input_ids", "position": "position_ids", "segment": "token_type_ids"}


@dataclass(frozen=True, slots=True)
class GraphStyle:
    """What kind of graph is wanted.

    attention: "grouped" for ONNX Runtime's GroupQueryAttention, "standard" for operators that every tool has.
    has_doubles: whether rotary angles are computed in float64.  half: of an encoder-decoder.
    fixed: batch and sequence of a graph whose shapes are all known; it has no cache, and a mask only where attention is
    not causal.
    rounded: what becomes of each operation's result, given the graph, the result, the operation and its number.
    """

    attention: AttentionKind = "standard"
    has_doubles: bool = True
    half: Half = "whole"
    fixed: tuple[int, int] | None = None
    rounded: Callable[[Graph, str, Operation, int], str] | None = None


@dataclass(slots=True)
class Translation:
    """One run of `translate`.

    has_cache: whether tokens may follow earlier ones; where not, positions count from 0.
    values: buffer -> name of what it holds now.
    """

    program: Program
    graph: Graph
    weights: Weights
    context: int
    style: GraphStyle
    inputs: AttentionInputs
    shape: str
    has_cache: bool
    values: dict[str, str] = field(default_factory=dict)
    flat_ids: dict[str, str] = field(default_factory=dict)
    ropes: dict[RopeFrequencies, tuple[str, str]] = field(default_factory=dict)
    encoder_inputs: AttentionInputs | None = None

    def split_heads(self, buffer: str, heads: int, width: int) -> str:
        """[tokens, heads * width] -> [batch, sequence, heads, width]."""
        return self.graph.add("Reshape", self.values[buffer], self.shaped(heads, width))

    def with_sequences(self, value: str) -> str:
        """[tokens, width] -> [batch, sequence, width]."""
        return self.graph.add("Reshape", value, self.shaped(-1))

    def shaped(self, *rest: int) -> str:
        """The shape [batch, sequence, *rest]."""
        graph, fixed = self.graph, self.style.fixed
        if fixed is not None:
            return graph.constant([*fixed, *rest])
        return graph.add("Concat", self.shape, graph.constant(list(rest)), attributes={"axis": 0})

    def ids(self, name: str) -> str:
        """An input of ids, [tokens]; it becomes one when the first operation asks."""
        if name not in self.flat_ids:
            graph = self.graph
            if name == "position_ids" and self.style.fixed is not None:
                self.flat_ids[name] = graph.constant(list(range(self.style.fixed[1])) * self.style.fixed[0])
                return self.flat_ids[name]
            if name == "position_ids" and not self.has_cache:
                length = graph.add("Gather", self.shape, graph.constant(1))
                positions = graph.add("Range", graph.constant(0), length, graph.constant(1))
                ids = graph.add("Expand", positions, self.shape)
            else:
                ids = self.input(name)
            self.flat_ids[name] = graph.add("Reshape", ids, graph.constant([-1]))
        return self.flat_ids[name]

    def input(self, name: str) -> str:
        """An input [batch, sequence] of ids."""
        if name not in (port.name for port in self.graph.inputs):
            shape = self.style.fixed or ("batch_size", "sequence_length")
            self.graph.inputs.append(Port(name, ElementType.INT64, shape))
        return name

    def rows_of_positions(self, table: str) -> str:
        """[batch, sequence, n] of a table by position; of fixed shapes, the table holds just these rows."""
        return table if self.style.fixed else self.graph.add("Gather", table, self.input("position_ids"))

    def own_states(self, layer: int) -> States:
        """Names of a layer's keys and values, past and present."""
        part = f"{layer}.decoder" if self.style.half == "decoder" else str(layer)
        past, present = f"past_key_values.{part}", f"present.{part}"
        return f"{past}.key", f"{past}.value", f"{present}.key", f"{present}.value"

    def encoder_states(self, layer: int) -> States:
        """Names of what the encoder leaves to a layer of the decoder: as taken there, as given here."""
        taken, given = f"past_key_values.{layer}.encoder", f"present.{layer}.encoder"
        return f"{taken}.key", f"{taken}.value", f"{given}.key", f"{given}.value"

    def flat(self, value: str, width: int) -> str:
        """Back to [tokens, width]."""
        return self.graph.add("Reshape", value, self.graph.constant([-1, width]))


def translate(program: Program, weights: Weights, config: ModelConfig, style: GraphStyle) -> None:
    """Fill the graph of `weights` with a program: inputs, operations, outputs.

    Raises UnsupportedModelError naming an operation, or a field of one, that has no translation.
    """
    graph, fixed = weights.graph, style.fixed
    causal = {item.layer for item in program.operations if isinstance(item, Attention) and item.causal}
    cached = set() if fixed else causal
    total = "total_sequence_length" if cached else "sequence_length"
    graph.inputs.append(Port("input_ids", ElementType.INT64, fixed or ("batch_size", "sequence_length")))
    if fixed is None:
        graph.inputs.append(Port("attention_mask", ElementType.INT64, ("batch_size", total)))
    elif any(isinstance(item, Attention) and not item.causal for item in program.operations):
        # What follows a text cannot be seen by causal attention; other attention has to be told.
        graph.inputs.append(Port("attention_mask", ElementType.INT64, fixed))
    tokens = graph.constant(list(fixed)) if fixed else graph.add("Shape", "input_ids")
    inputs = AttentionInputs(graph, "attention_mask", tokens, fixed)
    run = Translation(program, graph, weights, config.context_length, style, inputs, tokens, bool(cached))
    for number, operation in enumerate(program.operations):
        check_known(operation)
        _translate(operation, run)
        made = operation.x if isinstance(operation, Rope) else getattr(operation, "out", None)
        if style.rounded is not None and made is not None:
            run.values[made] = style.rounded(graph, run.values[made], operation, number)
    own = "past_sequence_length", [state for state in program.states if state.layer in cached], run.own_states
    shared = program.shared_states if style.half == "decoder" else ()
    for length, states, names in (own, ("encoder_sequence_length", shared, run.encoder_states)):
        for state in states:
            shape = ("batch_size", state.kv_heads, length, state.head_dim)
            graph.inputs += [Port(name, ElementType.FLOAT, shape) for name in names(state.layer)[:2]]
    width = program.buffers[program.output]
    rows = run.with_sequences(run.values[program.output])
    if fixed is not None:
        name = "logits" if config.encoder is None else "last_hidden_state"
        graph.add_many("Identity", (rows,), (name,))
        graph.outputs.append(Port(name, ElementType.FLOAT, (*fixed, width)))
        return
    add_outputs(rows, width, inputs, config, style.half)


def add_outputs(rows: str, width: int, inputs: AttentionInputs, config: ModelConfig, half: Half) -> None:
    """What a model of its task gives. rows: [batch, sequence, width]."""
    graph, sequences = inputs.graph, ("batch_size", "sequence_length", width)
    if config.encoder is None or half != "whole" or config.encoder.head != "text":
        name = "last_hidden_state" if half == "encoder" else "logits"
        graph.add_many("Identity", (rows,), (name,))
        graph.outputs.insert(0, Port(name, ElementType.FLOAT, sequences))
        return
    first = graph.add("Gather", rows, graph.constant(0), attributes={"axis": 1})
    if config.encoder.labels:
        graph.add_many("Identity", (first,), ("logits",))
        graph.outputs.append(Port("logits", ElementType.FLOAT, ("batch_size", width)))
        return
    vector = first
    if config.encoder.pooling == "mean":
        mask = graph.add("Cast", inputs.mask, attributes=_FLOAT)
        spread = graph.add("Mul", rows, graph.add("Unsqueeze", mask, graph.constant([2])))
        sums = graph.add("ReduceSum", spread, graph.constant([1]), attributes={"keepdims": 0})
        counts = graph.add("ReduceSum", mask, graph.constant([1]), attributes={"keepdims": 1})
        vector = graph.add("Div", sums, counts)
    if config.encoder.is_normalized:
        length = graph.add("ReduceL2", vector, graph.constant([1]), attributes={"keepdims": 1})
        # As torch's normalize: a zero vector stays one.
        vector = graph.add("Div", vector, graph.add("Max", length, graph.constant(1e-12, "float32")))
    graph.add_many("Identity", (rows,), ("last_hidden_state",))
    graph.add_many("Identity", (vector,), ("sentence_embedding",))
    graph.outputs.append(Port("last_hidden_state", ElementType.FLOAT, sequences))
    graph.outputs.append(Port("sentence_embedding", ElementType.FLOAT, ("batch_size", width)))


def tensors_read(program: Program) -> frozenset[str]:
    """Names of the tensors that the operations of a program read."""
    found: set[str | None] = set()
    for operation in program.operations:
        found.add(getattr(operation, "weight", None))
        match operation:
            case Linear() | LayerNorm():
                found.add(operation.bias)
            case Experts():
                found |= {operation.gate, operation.up, operation.down}
            case Attention() if operation.bias is not None:
                found.add(operation.bias.weight)
            case Rope():
                found.add(operation.frequencies.factors)
            case _:
                pass
    return frozenset(name for name in found if name is not None)


def check_known(operation: Operation) -> None:
    """Raise UnsupportedModelError for an operation, or a field that says something new, without a translation."""
    kind = type(operation)
    if kind not in _FIELDS:
        raise UnsupportedModelError(f"the ONNX export has no translation of the operation {kind.__name__} yet")
    for item in dataclasses.fields(operation):
        if item.name not in _FIELDS[kind] and getattr(operation, item.name) != item.default:
            raise UnsupportedModelError(
                f"the ONNX export has no translation of {kind.__name__}.{item.name} = "
                f"{getattr(operation, item.name)!r} yet"
            )


@singledispatch
def _translate(operation: Operation, run: Translation) -> None:
    raise AssertionError(f"{type(operation).__name__} is in _FIELDS and has no function")


# To translate another operation, write its function here and add its fields below.
@_translate.register
def _embed(operation: Embed, run: Translation) -> None:
    ids = run.ids(_ROWS_BY[operation.by])
    if operation.offset:
        ids = run.graph.add("Add", ids, run.graph.constant(operation.offset))
    rows = run.weights.lookup(ids, operation.weight)
    if operation.scale != 1.0:
        rows = run.graph.add("Mul", rows, run.graph.constant(operation.scale, "float32"))
    run.values[operation.out] = rows


@_translate.register
def _rms_norm(operation: RmsNorm, run: Translation) -> None:
    graph, x = run.graph, run.values[operation.x]
    weight = run.weights.floats(operation.weight)
    width = run.weights.header(operation.weight).columns
    if operation.groups > 1:
        x = graph.add("Reshape", x, graph.constant([-1, operation.groups, width]))
    square = graph.add("Pow", x, graph.constant(2.0, "float32"))
    mean = graph.add("ReduceMean", square, graph.constant([-1]), attributes={"keepdims": 1})
    root = graph.add("Sqrt", graph.add("Add", mean, graph.constant(operation.epsilon, "float32")))
    normed = graph.add("Mul", graph.add("Div", x, root), weight)
    run.values[operation.out] = run.flat(normed, operation.groups * width) if operation.groups > 1 else normed


@_translate.register
def _layer_norm(operation: LayerNorm, run: Translation) -> None:
    inputs = [run.values[operation.x], run.weights.floats(operation.weight)]
    if operation.bias is not None:
        inputs.append(run.weights.floats(operation.bias))
    attributes: dict[str, Attribute] = {"axis": -1, "epsilon": float(operation.epsilon)}
    run.values[operation.out] = run.graph.add("LayerNormalization", *inputs, attributes=attributes)


@_translate.register
def _linear(operation: Linear, run: Translation) -> None:
    run.values[operation.out] = run.weights.linear(
        run.values[operation.x], operation.weight, operation.bias, operation.rows
    )


@_translate.register
def _rope(operation: Rope, run: Translation) -> None:
    tables = _rope_tables(run, operation.frequencies)
    if run.style.attention == "grouped":
        attributes = {
            "interleaved": int(operation.style == "adjacent"),
            "num_heads": operation.heads,
            # 0 stands for whole heads.
            "rotary_embedding_dim": operation.frequencies.rotary_dim % operation.head_dim,
        }
        x = run.with_sequences(run.values[operation.x])
        inputs = (x, run.input("position_ids"), *tables)
        turned = run.graph.add("RotaryEmbedding", *inputs, attributes=attributes, domain="com.microsoft")
    else:
        turned = _turned(run, operation, tables)
    run.values[operation.x] = run.flat(turned, operation.heads * operation.head_dim)


def _turned(run: Translation, operation: Rope, tables: tuple[str, str]) -> str:
    """Rotation out of standard operators: [batch, sequence, heads, head_dim]."""
    graph, half = run.graph, operation.frequencies.rotary_dim // 2
    x = run.split_heads(operation.x, operation.heads, operation.head_dim)
    rest = operation.head_dim - 2 * half
    parts = [x]
    if rest:
        parts = list(graph.add_many("Split", (x, graph.constant([2 * half, rest])), 2, attributes={"axis": -1}))
    # Pairs lie along the last axis, or the one before it.
    pair = 4 if operation.style == "adjacent" else 3
    last = [half, 2] if operation.style == "adjacent" else [2, half]
    shape = run.shaped(operation.heads, *last)
    first, second = graph.add_many(
        "Split", (graph.add("Reshape", parts[0], shape), graph.constant([1, 1])), 2, attributes={"axis": pair}
    )
    axes = graph.constant([2, pair])
    cosine, sine = (graph.add("Unsqueeze", run.rows_of_positions(table), axes) for table in tables)
    real = graph.add("Sub", graph.add("Mul", first, cosine), graph.add("Mul", second, sine))
    imaginary = graph.add("Add", graph.add("Mul", first, sine), graph.add("Mul", second, cosine))
    turned = graph.add("Concat", real, imaginary, attributes={"axis": pair})
    whole = run.shaped(operation.heads, 2 * half)
    parts[0] = graph.add("Reshape", turned, whole)
    return parts[0] if not rest else graph.add("Concat", *parts, attributes={"axis": -1})


def _rope_tables(run: Translation, frequencies: RopeFrequencies) -> tuple[str, str]:
    """Cosine and sine [context, rotary_dim / 2] float32, computed from constants when a runtime loads the file."""
    if frequencies not in run.ropes:
        graph = run.graph
        if run.style.fixed is not None:
            run.ropes[frequencies] = _fixed_tables(graph, frequencies, run.style.fixed[1])
            return run.ropes[frequencies]
        bare = dataclasses.replace(frequencies, factors=None)
        inverse, magnitude = inverse_frequencies(bare)
        kind, cast = ("float64", _DOUBLE) if run.style.has_doubles else ("float32", _FLOAT)
        angles = graph.constant(inverse, kind)
        if frequencies.factors is not None:
            factors = graph.add("Cast", run.weights.floats(frequencies.factors), attributes=cast)
            angles = graph.add("Div", angles, factors)
        steps = (graph.constant(0), graph.constant(run.context), graph.constant(1))
        positions = graph.add("Cast", graph.add("Range", *steps), attributes=cast)
        turns = graph.add("Mul", graph.add("Unsqueeze", positions, graph.constant([1])), angles)
        tables = []
        for name in ("Cos", "Sin"):
            table = graph.add(name, turns)
            if magnitude != 1.0:
                table = graph.add("Mul", table, graph.constant(magnitude, kind))
            tables.append(graph.add("Cast", table, attributes=_FLOAT) if run.style.has_doubles else table)
        run.ropes[frequencies] = (tables[0], tables[1])
    return run.ropes[frequencies]


def _fixed_tables(graph: Graph, frequencies: RopeFrequencies, length: int) -> tuple[str, str]:
    """Cosine and sine of the first positions, [1, length, rotary_dim / 2]."""
    if frequencies.factors is not None:
        raise UnsupportedModelError(
            "a graph of fixed shapes needs rotary frequencies that are known beforehand; this model keeps them in "
            f"'{frequencies.factors}'"
        )
    inverse, magnitude = inverse_frequencies(frequencies)
    angles = np.arange(length, dtype=np.float64)[None, :, None] * inverse
    cosine, sine = (graph.constant(magnitude * table, "float32") for table in (np.cos(angles), np.sin(angles)))
    return cosine, sine


@_translate.register
def _attention(operation: Attention, run: Translation) -> None:
    graph = run.graph
    heads = Heads(operation.heads, operation.kv_heads, operation.head_dim)
    states: States | None = None
    if operation.causal and run.has_cache:
        states = run.own_states(operation.layer)
        for name in states[2:]:
            shape = ("batch_size", heads.kv_count, "total_sequence_length", heads.width)
            graph.outputs.append(Port(name, ElementType.FLOAT, shape))
    if states is not None and run.style.attention == "grouped" and operation.bias is None:
        q, k, v = (run.with_sequences(run.values[name]) for name in (operation.q, operation.k, operation.v))
        out = grouped_attention(run.inputs, operation, (q, k, v), states)
    else:
        q = run.split_heads(operation.q, heads.count, heads.width)
        k, v = (run.split_heads(name, heads.kv_count, heads.width) for name in (operation.k, operation.v))
        table = None if operation.bias is None else run.weights.floats(operation.bias.weight)
        out = standard_attention(run.inputs, operation, (q, k, v), states, table)
    run.values[operation.out] = run.flat(out, heads.count * heads.width)


@_translate.register
def _share(operation: Share, run: Translation) -> None:
    if run.style.fixed is not None:
        # A graph of fixed shapes is of the encoder alone.
        return
    state = next(item for item in run.program.shared_states if item.layer == operation.layer)
    shape = ("batch_size", state.kv_heads, "sequence_length", state.head_dim)
    names = run.encoder_states(operation.layer)[2:]
    for buffer, name in zip((operation.k, operation.v), names, strict=True):
        heads = run.split_heads(buffer, state.kv_heads, state.head_dim)
        run.graph.add_many("Transpose", (heads,), (name,), attributes={"perm": (0, 2, 1, 3)})
        run.graph.outputs.append(Port(name, ElementType.FLOAT, shape))


@_translate.register
def _cross_attention(operation: CrossAttention, run: Translation) -> None:
    if run.encoder_inputs is None:
        mask = Port("encoder_attention_mask", ElementType.INT64, ("batch_size", "encoder_sequence_length"))
        run.graph.inputs.append(mask)
        run.encoder_inputs = AttentionInputs(run.graph, mask.name, run.shape)
    q = run.split_heads(operation.q, operation.heads, operation.head_dim)
    out = cross_attention(run.encoder_inputs, operation, q, run.encoder_states(operation.layer)[:2])
    run.values[operation.out] = run.flat(out, operation.heads * operation.head_dim)


@_translate.register
def _glu(operation: Glu, run: Translation) -> None:
    gate = activated(run.graph, run.values[operation.gate], operation.activation)
    run.values[operation.out] = run.graph.add("Mul", gate, run.values[operation.up])


def activated(graph: Graph, x: str, activation: str) -> str:
    """The activation of a value."""
    match activation:
        case "silu":
            return graph.add("Mul", x, graph.add("Sigmoid", x))
        case "gelu":
            return graph.add("Gelu", x)
        case "gelu_tanh":
            return graph.add("Gelu", x, attributes={"approximate": "tanh"})
        case "relu":
            return graph.add("Relu", x)
        case "tanh":
            return graph.add("Tanh", x)
        case _:
            raise UnsupportedModelError(f"the ONNX export has no translation of the activation '{activation}' yet")


@_translate.register
def _experts(operation: Experts, run: Translation) -> None:
    """Every expert on every token, those that are not used times zero: no standard operator chooses weights."""
    graph, weights, x = run.graph, run.weights, run.values[operation.x]
    chances = graph.add("Softmax", run.values[operation.router])
    used, places = graph.add_many("TopK", (chances, graph.constant([operation.used])), 2)
    if operation.normalizes:
        used = graph.add("Div", used, graph.add("ReduceSum", used, graph.constant([1]), attributes={"keepdims": 1}))
    none = graph.add("Mul", chances, graph.constant(0.0, "float32"))
    shares = graph.add("ScatterElements", none, places, used, attributes={"axis": 1})
    experts, inner, _ = weights.header(operation.gate).shape
    outer = weights.header(operation.down).shape[1]
    columns = graph.add_many("Split", (shares, graph.constant([1] * experts)), experts, attributes={"axis": 1})
    total = ""
    for expert, share in enumerate(columns):
        rows = (expert * inner, (expert + 1) * inner)
        gate = activated(graph, weights.linear(x, operation.gate, rows=rows), operation.activation)
        both = graph.add("Mul", gate, weights.linear(x, operation.up, rows=rows))
        down = weights.linear(both, operation.down, rows=(expert * outer, (expert + 1) * outer))
        part = graph.add("Mul", down, share)
        total = graph.add("Add", total, part) if total else part
    run.values[operation.out] = total


@_translate.register
def _activate(operation: Activate, run: Translation) -> None:
    run.values[operation.out] = activated(run.graph, run.values[operation.x], operation.activation)


@_translate.register
def _scale(operation: Scale, run: Translation) -> None:
    factor = run.graph.constant(operation.factor, "float32")
    run.values[operation.out] = run.graph.add("Mul", run.values[operation.x], factor)


@_translate.register
def _softcap(operation: Softcap, run: Translation) -> None:
    limit = run.graph.constant(operation.limit, "float32")
    share = run.graph.add("Tanh", run.graph.add("Div", run.values[operation.x], limit))
    run.values[operation.out] = run.graph.add("Mul", share, limit)


@_translate.register
def _add(operation: Add, run: Translation) -> None:
    run.values[operation.out] = run.graph.add("Add", run.values[operation.a], run.values[operation.b])


@_translate.register
def _select_output_rows(operation: SelectOutputRows, run: Translation) -> None:
    # Runtimes ask for every position and choose among them.
    run.values[operation.out] = run.values[operation.x]


# The fields that each translation reads: one that is added later must not be passed over in silence.
_FIELDS: Mapping[type[Operation], frozenset[str]] = {
    Embed: frozenset({"out", "weight", "scale", "by", "offset"}),
    LayerNorm: frozenset({"out", "x", "weight", "bias", "epsilon"}),
    RmsNorm: frozenset({"out", "x", "weight", "epsilon", "groups"}),
    Linear: frozenset({"out", "x", "weight", "bias", "rows"}),
    Rope: frozenset({"x", "heads", "head_dim", "frequencies", "style"}),
    Attention: frozenset(
        {"out", "q", "k", "v", "layer", "heads", "kv_heads", "head_dim", "scale", "window", "softcap", "causal", "bias"}
    ),
    Share: frozenset({"k", "v", "layer"}),
    CrossAttention: frozenset({"out", "q", "layer", "heads", "kv_heads", "head_dim", "scale"}),
    Glu: frozenset({"out", "gate", "up", "activation"}),
    Experts: frozenset({"out", "x", "router", "gate", "up", "down", "activation", "used", "normalizes"}),
    Activate: frozenset({"out", "x", "activation"}),
    Scale: frozenset({"out", "x", "factor"}),
    Softcap: frozenset({"out", "x", "limit"}),
    Add: frozenset({"out", "a", "b"}),
    SelectOutputRows: frozenset({"out", "x"}),
}
