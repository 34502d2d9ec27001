# SPDX-License-Identifier: Apache-2.0
"""A Program as integer operators of LiteRT: nothing between ids and the result is a float.

int8     inputs and results of every product, scores, probabilities, activations; a zero point where ranges are lopsided
int16    around zero: the stream that layers add to, and what lies inside of norms (a variance in 8 bits says little)
int32    biases of products, in steps of input scale times weight scale
scales   of results: the range that calibration saw (`calibration.output_ranges`); of weights: their own

A norm takes its sum of squares as a product of rows with themselves, which rounds once; sqrt(width) goes into its
weight. Masked scores are pushed below the smallest score that was seen, where they saturate: e^-10 of any other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from lilliput.architectures.encoder_half import place
from lilliput.architectures.program import (
    Activate,
    Activation,
    Add,
    Attention,
    Embed,
    Glu,
    LayerNorm,
    Linear,
    Operation,
    Program,
    RmsNorm,
    Scale,
    SelectOutputRows,
)
from lilliput.architectures.relative_bias import distance_buckets
from lilliput.arrays import Array, FloatArray
from lilliput.containers.litert.flatbuffer import Scalar
from lilliput.containers.litert.model import Grid, Model, Operator, Placed, Tensor, TensorType
from lilliput.containers.litert.model import Operation as Step
from lilliput.containers.litert.reader import ROUNDED
from lilliput.errors import ContainerError, UnsupportedModelError
from lilliput.records import TensorHeader

# Scores of what must not be seen lie so far below all others, in units of the exponent: e^-10 is a tenth of a step of
# a probability in 8 bits.
_MASKED = 10.0
# Parts of the exponent that a step of scores may be at most; above it scores take 16 bits.
_FINE = 16
_PROBABILITIES = {TensorType.INT8: Grid(1 / 256, -128), TensorType.INT16: Grid(1 / 32768)}
_PLAIN = {0: Scalar("bool", False), 1: Scalar("bool", False)}
_ADJOINT = {0: Scalar("bool", False), 1: Scalar("bool", True)}
_SIGMOIDS = Grid(1 / 256, -128)
_TANHS = Grid(1 / 128, 0)
_NO_ACTIVATION = {0: Scalar("i8", 0)}
# The second field: scales of 16-bit codes are any numbers, not powers of two.
_SUM = {0: Scalar("i8", 0), 1: Scalar("bool", False)}
Known = Mapping[str, FloatArray]


@dataclass(frozen=True, slots=True)
class Late:
    """A constant that follows from weights.

    tensor: its name in the model.  sources: weights that it follows from: floats as their values, codes as their
    scales [rows] or [1].  make: these -> codes (None where they lie in the file already) and scales.
    """

    tensor: str
    sources: tuple[str, ...]
    make: Callable[[Known], tuple[Array | None, FloatArray]]


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of the model. grid: None where its scale is only known late."""

    index: int
    shape: tuple[int, ...]
    type: TensorType
    grid: Grid | None


@dataclass(frozen=True, slots=True)
class Weight:
    """A matrix whose codes lie behind the flatbuffer. scales: how many it has."""

    header: TensorHeader
    place: Placed
    scales: int


@dataclass(slots=True)
class IntegerTranslator:
    """One run. ranges: by `place`.  weights: matrices of codes.  values: buffer -> what it holds."""

    program: Program
    length: int
    ranges: Mapping[str, tuple[float, float]]
    weights: Mapping[str, Weight]
    headers: Mapping[str, TensorHeader]
    model: Model = field(default_factory=Model)
    late: list[Late] = field(default_factory=list)
    values: dict[str, Value] = field(default_factory=dict)
    made: dict[tuple[int, TensorType], Value] = field(default_factory=dict)
    inputs: dict[str, Value] = field(default_factory=dict)
    constants: dict[str, Value] = field(default_factory=dict)
    number: int = 0

    def run(self) -> tuple[Model, tuple[Late, ...]]:
        """The model, and what is filled in later. Raises UnsupportedModelError, ContainerError."""
        self.input("input_ids", TensorType.INT32)
        for number, operation in enumerate(self.program.operations):
            self.number = number
            self._translate(operation)
        last = len(self.program.operations) - 1
        result = self._as(self.values[self.program.output], TensorType.INT8, self._range(last, "out"))
        width = self.program.buffers[self.program.output]
        shape = (1, self.length, width)
        out = self.emit(Operator.RESHAPE, [result, self._shape(shape)], shape, result, name="last_hidden_state")
        self.model.outputs = [out.index]
        return self.model, tuple(self.late)

    def _range(self, number: int, part: str) -> tuple[float, float]:
        name = place(number, self.program.operations[number], part)
        found = self.ranges.get(name)
        if found is None:
            raise ContainerError(
                f"operation {name}: its range is not known; give --statistics FILE of "
                "`lilliput calibrate MODEL --outputs` of this version"
            )
        return found

    def input(self, name: str, kind: TensorType) -> Value:
        """An input [1, length]."""
        if name not in self.inputs:
            shape = (1, self.length)
            grid = Grid() if kind is TensorType.INT8 else None
            index = self.model.add_tensor(Tensor(name, kind, shape, None, grid))
            self.model.inputs.append(index)
            self.inputs[name] = Value(index, shape, kind, grid)
        return self.inputs[name]

    def emit(
        self, operator: Operator, inputs: list[Value], shape: tuple[int, ...], like: Value | tuple[TensorType, Grid],
        options: dict[int, Scalar] | None = None, name: str = "",
    ) -> Value:  # fmt: skip
        """One operator. like: type and grid of what it gives."""
        kind, grid = (like.type, like.grid) if isinstance(like, Value) else like
        index = len(self.model.tensors)
        held = None if kind is TensorType.INT32 else grid or Grid()
        self.model.add_tensor(Tensor(name or f"t{index}", kind, shape, None, held))
        filled: dict[int, Scalar | Array] = {**(options or {})}
        if operator is Operator.RESHAPE:
            filled = {0: np.array(shape, "<i4")}
        self.model.operations.append(Step(operator, tuple(item.index for item in inputs), (index,), filled))
        return Value(index, shape, kind, grid)

    def constant(self, name: str, values: Array, kind: TensorType, grid: Grid | None = None) -> Value:
        """A constant, one of each name."""
        if name not in self.constants:
            index = self.model.add_tensor(Tensor(name, kind, values.shape, values, grid))
            self.constants[name] = Value(index, values.shape, kind, grid)
        return self.constants[name]

    def _shape(self, shape: tuple[int, ...]) -> Value:
        return self.constant(f"shape {shape}", np.array(shape, "<i4"), TensorType.INT32)

    def reshape(self, x: Value, *shape: int) -> Value:
        """The same numbers."""
        return self.emit(Operator.RESHAPE, [x, self._shape(shape)], shape, x)

    def transposed(self, x: Value, *order: int) -> Value:
        """Axes in another order."""
        permutation = self.constant(f"order {order}", np.array(order, "<i4"), TensorType.INT32)
        return self.emit(Operator.TRANSPOSE, [x, permutation], tuple(x.shape[axis] for axis in order), x)

    def _as(self, x: Value, kind: TensorType, ends: tuple[float, float] | None = None) -> Value:
        """The same values in another type: of their range, or a power of two of steps finer where they get wider."""
        if x.type is kind:
            return x
        if (x.index, kind) not in self.made:
            if ends is None:
                assert x.grid is not None
                ends = _ends(x)
            grid = eight_bits(ends) if kind is TensorType.INT8 else sixteen_bits(ends)
            self.made[x.index, kind] = self.emit(Operator.QUANTIZE, [x], x.shape, (kind, grid))
        return self.made[x.index, kind]

    def narrow(self, x: Value) -> Value:
        """In 8 bits."""
        return self._as(x, TensorType.INT8)

    def wide(self, x: Value) -> Value:
        """In 16 bits."""
        return self._as(x, TensorType.INT16)

    def rounded(
        self, name: str, shape: tuple[int, ...], values: Callable[[FloatArray], FloatArray],
        kind: TensorType = TensorType.INT16,
    ) -> Value:  # fmt: skip
        """A constant of a weight's floats, in steps of its largest one."""
        highest, dtype = (32767, "<i2") if kind is TensorType.INT16 else (127, "i1")

        def make(known: Known) -> tuple[Array, FloatArray]:
            found = values(known[name]).astype(np.float64)
            scale = np.float32(max(float(np.abs(found).max(initial=0.0)) / highest, 1e-30))
            return np.rint(found / float(scale)).astype(dtype), np.array([scale], np.float32)

        label = f"{name}{ROUNDED}"
        if label not in self.constants:
            self.late.append(Late(label, (name,), make))
        # Its scale is put in later; a value without a grid is not converted.
        held = self.constant(label, np.zeros(shape, dtype), kind, Grid())
        return replace(held, grid=None)

    def _translate(self, operation: Operation) -> None:
        match operation:
            case Embed():
                self._embed(operation)
            case LayerNorm() | RmsNorm():
                self._norm(operation)
            case Linear():
                self._linear(operation)
            case Attention():
                self._attention(operation)
            case Activate(out, x, activation):
                self.values[out] = self._activated(self.narrow(self.values[x]), activation, "out")
            case Glu(out, gate, up, activation):
                part = self._activated(self.narrow(self.values[gate]), activation, "activated")
                both = [part, self.narrow(self.values[up])]
                self.values[out] = self.emit(Operator.MUL, both, part.shape, self._eight("out"), _NO_ACTIVATION)
            case Scale(out, x, factor):
                held = self.wide(self.values[x])
                step = Grid(abs(factor) / 32767)
                sign = np.array([math.copysign(32767, factor)], "<i2")
                number = self.constant(f"factor {factor}", sign, TensorType.INT16, step)
                self.values[out] = self.emit(Operator.MUL, [held, number], held.shape, self._sixteen(), _NO_ACTIVATION)
            case Add(out, a, b):
                both = [self.wide(self.values[name]) for name in (a, b)]
                self.values[out] = self.emit(Operator.ADD, both, both[0].shape, self._sixteen(), _SUM)
            case SelectOutputRows(out, x):
                self.values[out] = self.values[x]
            case _:
                raise UnsupportedModelError(
                    f"integer files have no translation of the operation {type(operation).__name__} yet; "
                    "-o NAME.tflite has floats between its products"
                )

    def _eight(self, part: str = "out") -> tuple[TensorType, Grid]:
        return TensorType.INT8, eight_bits(self._range(self.number, part))

    def _sixteen(self, part: str = "out") -> tuple[TensorType, Grid]:
        return TensorType.INT16, sixteen_bits(self._range(self.number, part))

    def _embed(self, operation: Embed) -> None:
        header = self.headers[operation.weight]
        width, scale = header.columns, operation.scale
        if operation.by == "position" and operation.weight not in self.weights:
            rows = slice(operation.offset, operation.offset + self.length)
            shape = (self.length, width)
            self.values[operation.out] = self.rounded(
                operation.weight, shape, lambda x: scale * x.reshape(header.shape)[rows]
            )
            return
        ids = self._ids(operation)
        rows_of = {0: Scalar("i32", 0)}
        shape = (self.length, width)
        if operation.weight not in self.weights:
            table = self.rounded(operation.weight, header.shape, lambda x: scale * x.reshape(header.shape))
            found = self.emit(Operator.GATHER, [table, ids], shape, (TensorType.INT16, Grid()), rows_of)
            self._follow(found, operation.weight)
            self.values[operation.out] = replace(found, grid=None)
            return
        weight = self.weights[operation.weight]
        codes = self._codes(weight, None)
        found = self.emit(Operator.GATHER, [codes, ids], shape, (TensorType.INT8, Grid()), rows_of)
        wide = self.emit(Operator.QUANTIZE, [found], shape, (TensorType.INT16, Grid(1 / 256)))
        label = f"{operation.weight}.scale"
        steps = self.rounded_scales(operation.weight, label, weight.scales, scale)
        if weight.scales > 1:
            grid = self.model.tensors[steps.index].grid
            one = (TensorType.INT16, grid or Grid())
            steps = self.emit(Operator.GATHER, [steps, ids], (self.length, 1), one, rows_of)
            self._follow(steps, label)
        self.values[operation.out] = self.emit(Operator.MUL, [wide, steps], shape, self._sixteen(), _NO_ACTIVATION)

    def _ids(self, operation: Embed) -> Value:
        if operation.by == "position":
            places = np.arange(operation.offset, operation.offset + self.length, dtype="<i4")
            return self.constant(f"positions {operation.offset}", places, TensorType.INT32)
        name = {"token": "input_ids", "segment": "token_type_ids"}[operation.by]
        return self.reshape(self.input(name, TensorType.INT32), self.length)

    def rounded_scales(self, weight: str, label: str, count: int, factor: float) -> Value:
        """Scales of rows as a 16-bit constant [count, 1]."""

        def make(known: Known) -> tuple[Array, FloatArray]:
            scales = factor * known[weight].astype(np.float64).reshape(-1, 1)
            step = np.float32(max(float(np.abs(scales).max()) / 32767, 1e-30))
            return np.rint(scales / float(step)).astype("<i2"), np.array([step], np.float32)

        self.late.append(Late(label + ROUNDED, (weight,), make))
        return self.constant(label + ROUNDED, np.zeros((count, 1), "<i2"), TensorType.INT16, Grid())

    def _follow(self, value: Value, label: str) -> None:
        """What is looked up has the steps of its table, which are known late."""
        (table,) = (item for item in self.late if item.tensor == label + ROUNDED)

        def make(known: Known) -> tuple[None, FloatArray]:
            return None, table.make(known)[1]

        self.late.append(Late(self.model.tensors[value.index].name, table.sources, make))

    def _codes(self, weight: Weight, rows: tuple[int, int] | None) -> Value:
        """Codes of some rows, with their scales."""
        name, columns = weight.header.name, weight.header.columns
        first, end = rows or (0, weight.header.rows)
        label = f"{name}.codes" + (f".rows{first}-{end}" if rows else "")
        if label not in self.constants:
            held = Placed(weight.place.start + first * columns, (end - first) * columns)
            count = 1 if weight.scales == 1 else end - first
            tensor = Tensor(label, TensorType.INT8, (end - first, columns), held, Grid(rows=count))
            self.constants[label] = Value(self.model.add_tensor(tensor), tensor.shape, TensorType.INT8, None)

            def make(known: Known) -> tuple[None, FloatArray]:
                return None, known[name] if weight.scales == 1 else known[name][first:end]

            self.late.append(Late(label, (name,), make))
        return self.constants[label]

    def _linear(self, operation: Linear) -> None:
        if operation.weight not in self.weights:
            raise ContainerError(
                f"tensor '{operation.weight}': an integer file multiplies integers alone; choose INT8_CHANNEL_NARROW"
            )
        x = self.narrow(self.values[operation.x])
        weight = self.weights[operation.weight]
        codes = self._codes(weight, operation.rows)
        inputs = [x, codes]
        if operation.bias is not None:
            inputs.append(self._bias(operation, operation.bias, weight, x))
        options = {0: Scalar("i8", 0), 2: Scalar("bool", True)}
        shape = (self.length, codes.shape[0])
        self.values[operation.out] = self.emit(Operator.FULLY_CONNECTED, inputs, shape, self._eight(), options)

    def _bias(self, operation: Linear, bias: str, weight: Weight, x: Value) -> Value:
        assert x.grid is not None
        step = float(np.float32(x.grid.scale))
        first, end = operation.rows or (0, weight.header.rows)
        name = operation.weight

        def make(known: Known) -> tuple[Array, FloatArray]:
            scales = known[name] if weight.scales == 1 else known[name][first:end]
            steps = (step * scales.astype(np.float64)).astype(np.float32)
            wanted = known[bias].reshape(-1)[first:end] / steps.astype(np.float64)
            return np.clip(np.rint(wanted), -(2**31) + 1, 2**31 - 1).astype("<i4"), steps

        label = f"{bias}{ROUNDED}" + (f".rows{first}-{end}" if operation.rows else "")
        self.late.append(Late(label, (name, bias), make))
        count = 1 if weight.scales == 1 else end - first
        return self.constant(label, np.zeros(end - first, "<i4"), TensorType.INT32, Grid(rows=count))

    def _norm(self, operation: LayerNorm | RmsNorm) -> None:
        width = self.headers[operation.weight].columns
        if isinstance(operation, RmsNorm) and operation.groups > 1:
            raise UnsupportedModelError("integer files have no translation of norms of single heads yet")
        x = self.wide(self.values[operation.x])
        one = (self.length, 1)
        if isinstance(operation, LayerNorm):
            axis = self.constant("axis 1", np.array([1], "<i4"), TensorType.INT32)
            mean = self.emit(Operator.MEAN, [x, axis], one, self._sixteen("mean"), {0: Scalar("bool", True)})
            x = self.emit(Operator.SUB, [x, mean], x.shape, self._sixteen("centred"), _SUM)
        rows = self.reshape(x, self.length, 1, width)
        squares = self.emit(
            Operator.BATCH_MATMUL, [rows, rows], (self.length, 1, 1), self._sixteen("squares"), _ADJOINT
        )
        squares = self.reshape(squares, *one)
        least = width * operation.epsilon
        high = self._range(self.number, "squares")[1]
        step = sixteen_bits((0.0, high)).scale
        # At least one step: LiteRT refuses to take the root of 0.
        codes = np.array([max(1, round(least / step))], "<i2")
        epsilon = self.constant(f"epsilon {self.number}", codes, TensorType.INT16, Grid(step))
        grid = sixteen_bits((0.0, high + step * int(codes[0])))
        squares = self.emit(Operator.ADD, [squares, epsilon], one, (TensorType.INT16, grid), _SUM)
        inverse = self.emit(Operator.RSQRT, [squares], one, self._sixteen("inverse"))
        normed = self.emit(Operator.MUL, [x, inverse], x.shape, self._sixteen("normed"), _NO_ACTIVATION)
        root = math.sqrt(width)
        weight = self.rounded(operation.weight, (width,), lambda values: root * values.reshape(-1))
        bias = operation.bias if isinstance(operation, LayerNorm) else None
        part = "out" if bias is None else "scaled"
        result = self.emit(Operator.MUL, [normed, weight], x.shape, self._sixteen(part), _NO_ACTIVATION)
        if bias is not None:
            shift = self.rounded(bias, (width,), lambda values: values.reshape(-1))
            result = self.emit(Operator.ADD, [result, shift], x.shape, self._sixteen(), _SUM)
        self.values[operation.out] = result

    def _attention(self, operation: Attention) -> None:
        if operation.heads != operation.kv_heads or operation.causal or operation.softcap or operation.window:
            raise UnsupportedModelError(
                "integer files are of encoders: attention with shared heads, windows, caps or a causal mask has no "
                "translation yet; -o NAME.tflite has"
            )
        heads, width = operation.heads, operation.head_dim
        kind = self._kind_of_scores(operation)
        q, k, v = (
            self.transposed(self.reshape(self.narrow(self.values[name]), 1, self.length, heads, width), 0, 2, 1, 3)
            for name in (operation.q, operation.k, operation.v)
        )
        square = (1, heads, self.length, self.length)
        both = [self._as(q, kind), self._as(k, kind)]
        scores = self.emit(Operator.BATCH_MATMUL, both, square, self._of_range(kind, "scores"), _ADJOINT)
        if operation.bias is not None:
            scores = self._with_bias(operation, scores)
        scores = self._masked(operation, scores)
        scale = {0: Scalar("f32", float(operation.scale))}
        shares = self.emit(Operator.SOFTMAX, [scores], square, (kind, _PROBABILITIES[kind]), scale)
        found = self.emit(
            Operator.BATCH_MATMUL, [self.narrow(shares), v], (1, heads, self.length, width), self._eight(), _PLAIN
        )
        self.values[operation.out] = self.reshape(self.transposed(found, 0, 2, 1, 3), self.length, heads * width)

    def _kind_of_scores(self, operation: Attention) -> TensorType:
        """8 bits, or 16 where a step of 8 would change a probability by more than a part in _FINE."""
        low, high = self._range(self.number, "scores" if operation.bias is None else "biased")
        return TensorType.INT16 if (high - low) * operation.scale / 255 > 1 / _FINE else TensorType.INT8

    def _of_range(self, kind: TensorType, part: str) -> tuple[TensorType, Grid]:
        return self._eight(part) if kind is TensorType.INT8 else self._sixteen(part)

    def _with_bias(self, operation: Attention, scores: Value) -> Value:
        bias, kind = operation.bias, scores.type
        assert bias is not None
        if operation.scale != 1.0:
            raise UnsupportedModelError("integer files have no translation of a relative bias beside scaled scores yet")
        places = np.arange(self.length, dtype=np.int32)
        buckets = distance_buckets(bias, places[None, :] - places[:, None])

        def spread(values: FloatArray) -> FloatArray:
            return values.reshape(-1, operation.heads)[buckets].transpose(2, 0, 1)[None]

        table = self.rounded(bias.weight, (1, *scores.shape[1:]), spread, kind)
        return self.emit(Operator.ADD, [scores, table], scores.shape, self._of_range(kind, "biased"), _SUM)

    def _masked(self, operation: Attention, scores: Value) -> Value:
        """Scores of padding below all others."""
        low, high = self._range(self.number, "scores" if operation.bias is None else "biased")
        margin = _MASKED / operation.scale
        mask = self.reshape(self.input("attention_mask", TensorType.INT8), 1, 1, 1, self.length)
        if "penalty" not in self.values:
            one = self.constant("one", np.array([1], "i1"), TensorType.INT8, Grid())
            self.values["penalty"] = self.emit(
                Operator.SUB, [mask, one], mask.shape, (TensorType.INT8, Grid(1 / 127)), _SUM
            )
        steps = Grid((high - low + margin) / 127)
        most = self.constant(f"depth {self.number}", np.array([127], "i1"), TensorType.INT8, steps)
        hidden = self.values["penalty"]
        penalty = self.emit(Operator.MUL, [hidden, most], mask.shape, (TensorType.INT8, steps), _NO_ACTIVATION)
        grids = {TensorType.INT8: eight_bits, TensorType.INT16: sixteen_bits}
        grid = grids[scores.type]((low - margin, high))
        both = [scores, self._as(penalty, scores.type)]
        return self.emit(Operator.ADD, both, scores.shape, (scores.type, grid), _SUM)

    def _activated(self, x: Value, activation: Activation, part: str) -> Value:
        match activation:
            case "relu":
                return self.emit(Operator.RELU, [x], x.shape, self._eight(part))
            case "tanh":
                return self.emit(Operator.TANH, [x], x.shape, (TensorType.INT8, _TANHS))
            case "gelu" | "gelu_tanh":
                options = {0: Scalar("bool", activation == "gelu_tanh")}
                return self.emit(Operator.GELU, [x], x.shape, self._eight(part), options)
            case "silu":
                share = self.emit(Operator.LOGISTIC, [x], x.shape, (TensorType.INT8, _SIGMOIDS))
                return self.emit(Operator.MUL, [x, share], x.shape, self._eight(part), _NO_ACTIVATION)


def eight_bits(ends: tuple[float, float]) -> Grid:
    """Codes from -128 to 127 over a range, 0 among its values."""
    low, high = min(ends[0], 0.0), max(ends[1], 0.0)
    scale = float(np.float32((high - low) / 255)) or 1.0
    return Grid(scale, int(np.clip(np.rint(-128 - low / scale), -128, 127)))


def sixteen_bits(ends: tuple[float, float]) -> Grid:
    """Codes from -32767 to 32767 around zero."""
    return Grid(float(np.float32(max(abs(ends[0]), abs(ends[1])) / 32767)) or 1.0)


def _ends(x: Value) -> tuple[float, float]:
    """The range that a grid holds."""
    assert x.grid is not None
    lowest, highest = (-128, 127) if x.type is TensorType.INT8 else (-32767, 32767)
    return x.grid.scale * (lowest - x.grid.zero_point), x.grid.scale * (highest - x.grid.zero_point)
