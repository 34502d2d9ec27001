# SPDX-License-Identifier: Apache-2.0
"""Where a model can be rewritten without a change of its function, read off its Program.

A Program says who makes each vector and who reads it. A vector that only linear layers read may be divided channel by
channel, if those layers' columns are multiplied; a residual stream that only linear layers write to and only RMS norms
read may be turned by any orthogonal matrix. So no family states its edges by hand, and a family that is added later is
refused by itself where it has something (a norm on the stream, say) that a rewrite would not survive.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields

from lilliput.architectures.program import Add, Attention, Embed, Glu, LayerNorm, Linear, Operation, Program, RmsNorm
from lilliput.architectures.program import SelectOutputRows as Select
from lilliput.errors import UnsupportedModelError


@dataclass(frozen=True, slots=True)
class HeadLayout:
    """Channels made as [kv_heads, head_dim] and read as [kv_heads, sharing, head_dim]."""

    kv_heads: int
    sharing: int
    head_dim: int


@dataclass(frozen=True, slots=True)
class FoldableEdge:
    """A vector between layers whose channels may be divided: rows of the makers by s, columns of the readers times s.

    name: of the layer that makes it (`blk.0.ffn_up`).  makers: tensors with a row, or an element, for each channel.
    readers: weights with a column for each channel.  heads: for values of attention, which several heads may share.
    """

    name: str
    makers: tuple[str, ...]
    readers: tuple[str, ...]
    heads: HeadLayout | None = None


@dataclass(frozen=True, slots=True)
class FoldableEdges:
    """edges: in the order of the program.  refused: name of an edge that is like them -> why it is none."""

    edges: tuple[FoldableEdge, ...]
    refused: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ResidualStream:
    """Everything that touches the sum that runs through the blocks.

    embeddings: tables whose rows are its first vectors.  writers: weights, and biases, with a row a channel.
    norms: each norm's weight -> the linear weights that read the norm.
    """

    width: int
    embeddings: tuple[str, ...]
    writers: tuple[str, ...]
    norms: Mapping[str, tuple[str, ...]]


def foldable_edges(program: Program) -> FoldableEdges:
    """Every edge that may be scaled: norm -> linears, values -> attention output, up -> down."""
    flow = _Flow(program)
    edges: list[FoldableEdge] = []
    refused: dict[str, str] = {}
    for step in flow.steps:
        for name, makers, value, heads in _candidates(step):
            if fault := flow.fault_of(makers, value):
                refused[name] = fault
            else:
                edges.append(FoldableEdge(name, makers, value.reading_weights(), heads))
    return FoldableEdges(tuple(edges), refused)


def residual_stream(program: Program) -> ResidualStream:
    """The stream that starts at the embedding. Raises UnsupportedModelError for what an orthogonal matrix would change.

    The message starts with the name of the tensor that stands in the way.
    """
    flow = _Flow(program)
    embeddings: list[str] = []
    writers: list[str] = []
    norms: dict[str, tuple[str, ...]] = {}
    for step in flow.steps:
        read = [value for value in step.inputs.values() if value.is_stream]
        match step.operation:
            case Embed(weight=weight):
                embeddings.append(weight)
                step.output.is_stream = True
            case Add():
                if read:
                    others = [value for value in step.inputs.values() if not value.is_stream]
                    writers.extend(name for value in others for name in _written(value))
                    step.output.is_stream = True
            case RmsNorm(weight=weight, groups=1):
                if read:
                    norms[weight] = step.output.reading_weights()
                    flow.refuse(weight, flow.fault_of((weight,), step.output))
            case other:
                if read:
                    raise UnsupportedModelError(f"{_name(other)}: {_kind(other)} reads the residual stream itself")
    for name in writers:
        flow.refuse(name, flow.fault_of_use(name))
    return ResidualStream(_width(program), tuple(embeddings), tuple(writers), norms)


@dataclass(eq=False)
class _Value:
    """What a buffer holds between two writes to it."""

    step: _Step | None = None
    readers: list[_Step] = field(default_factory=list)
    is_stream: bool = False

    def reading_weights(self) -> tuple[str, ...]:
        """Weights of the linears that read it, each once."""
        names = (step.operation.weight for step in self.readers if isinstance(step.operation, Linear))
        return tuple(dict.fromkeys(names))


@dataclass(eq=False)
class _Step:
    operation: Operation
    inputs: dict[str, _Value]
    output: _Value


class _Flow:
    """A program with every buffer split into the values that it holds one after the other."""

    def __init__(self, program: Program) -> None:
        self.steps: list[_Step] = []
        # Rows of a fused weight that read one value are one use of it.
        self._uses: dict[str, set[object]] = defaultdict(set)
        present: dict[str, _Value] = {}
        for operation in program.operations:
            if isinstance(operation, Select):
                # Fewer rows, the same channels.
                present[operation.out] = present.setdefault(operation.x, _Value())
                continue
            inputs: dict[str, _Value] = {}
            for part in fields(operation):
                word = getattr(operation, part.name)
                if not isinstance(word, str):
                    continue
                if word not in program.buffers:
                    self._uses[word].add(inputs["x"] if isinstance(operation, Linear) else object())
                elif part.name != "out":
                    inputs[part.name] = present.setdefault(word, _Value())
            # What has no `out` works in place.
            target: str = getattr(operation, "out", "") or getattr(operation, "x", "")
            step = _Step(operation, inputs, _Value())
            step.output.step = step
            for value in inputs.values():
                value.readers.append(step)
            present[target] = step.output
            self.steps.append(step)

    def fault_of_use(self, name: str) -> str | None:
        """Why a tensor may not be rewritten: other operations use it too."""
        if len(self._uses[name]) <= 1:
            return None
        is_table = any(isinstance(step.operation, Embed) and step.operation.weight == name for step in self.steps)
        return "is both the embedding and the output head (tied)" if is_table else "is used in several places"

    def fault_of(self, makers: tuple[str, ...], value: _Value) -> str | None:
        """Why what reads `value` cannot undo a change of its makers, or None. The reason names the tensor."""
        for step in value.readers:
            if not isinstance(step.operation, Linear):
                return f"{_kind(step.operation)} reads it, which is not linear in it"
        if not value.readers:
            return "nothing reads it"
        for name in (*makers, *value.reading_weights()):
            if fault := self.fault_of_use(name):
                return f"{name} {fault}"
        return None

    def refuse(self, name: str, fault: str | None) -> None:
        """Raise UnsupportedModelError for a fault."""
        if fault is not None:
            raise UnsupportedModelError(f"{name}: {fault}")


def _candidates(step: _Step) -> Iterator[tuple[str, tuple[str, ...], _Value, HeadLayout | None]]:
    """Name, makers and value of what would be an edge if only linears read it."""
    match step.operation:
        case RmsNorm(weight=weight, groups=1):
            yield weight.removesuffix(".weight"), (weight,), step.output, None
        case LayerNorm(weight=weight, bias=bias):
            vectors = (weight,) if bias is None else (weight, bias)
            yield weight.removesuffix(".weight"), vectors, step.output, None
        case Glu():
            up = step.inputs["up"]
            if (makers := _sole_maker(up)) and up is not step.inputs["gate"]:
                yield makers[0].removesuffix(".weight"), makers, step.output, None
        case Attention(heads=heads, kv_heads=kv_heads, head_dim=head_dim):
            if makers := _sole_maker(step.inputs["v"]):
                layout = HeadLayout(kv_heads, heads // kv_heads, head_dim)
                yield makers[0].removesuffix(".weight"), makers, step.output, layout


def _sole_maker(value: _Value) -> tuple[str, ...]:
    """Weight and bias of the linear that makes a value for one reader; nothing where it is made otherwise."""
    if value.step is None or not isinstance(value.step.operation, Linear) or len(value.readers) != 1:
        return ()
    linear = value.step.operation
    if linear.rows is not None:
        # The other rows of the fused weight make something else.
        return ()
    return (linear.weight,) if linear.bias is None else (linear.weight, linear.bias)


def _written(value: _Value) -> tuple[str, ...]:
    makers = _sole_maker(value)
    if not makers:
        source = value.step.operation if value.step is not None else None
        what = f"{_name(source)}: {_kind(source)}" if source is not None else "the residual stream: something else"
        raise UnsupportedModelError(f"{what} writes to the residual stream, and it is not a linear layer of its own")
    return makers


def _name(operation: Operation) -> str:
    return str(getattr(operation, "weight", None) or getattr(operation, "out", None) or getattr(operation, "x", ""))


def _kind(operation: Operation) -> str:
    return f"operation {type(operation).__name__}"


def _width(program: Program) -> int:
    return next(program.buffers[step.out] for step in program.operations if isinstance(step, Embed))
