# SPDX-License-Identifier: Apache-2.0
"""Program -> native program: names become indices, linears that read one buffer become one group."""

from __future__ import annotations

import logging
import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from lilliput import _native
from lilliput.activations.native_input import native_input
from lilliput.activations.stored_range import INPUT_SCALE, INPUT_ZERO_POINT
from lilliput.architectures.program import (
    Activate,
    Activation,
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
    RelativeBias,
    RmsNorm,
    Rope,
    RopeFrequencies,
    Scale,
    SelectOutputRows,
    Share,
    Softcap,
)
from lilliput.architectures.relative_bias import bias_by_distance
from lilliput.architectures.rope_frequencies import inverse_frequencies
from lilliput.arrays import Array, FloatArray
from lilliput.errors import RuntimeModelError
from lilliput.formats import get_format
from lilliput.formats.native_decode import decode
from lilliput.records import QuantizedTensor
from lilliput.runtime.integer_weights import (
    InputChoice,
    IntegerWeight,
    expert_inputs,
    has_integers,
    in_blocks,
    input_choice,
    integer_weight,
    scales_of_a_row,
)

TensorByName = Callable[[str], QuantizedTensor]
# Half-open; None means all rows.
RowRange = tuple[int, int] | None
_NONE = -1
_LOG = logging.getLogger(__name__)
# Weights decoded at once.
_DECODE_WEIGHTS = 1 << 22


def lower(
    program: Program, tensor: TensorByName, activations: str = "engine", *, tells: bool = True
) -> _native.Program:
    """Resolve a program for the native engine.

    Weights are used where they lie, but for formats that the engine has no kernel for: those that are integers under
    scales run as such (runtime.integer_weights), others, and all with activations f32, are decoded to plain floats of
    the same values, and a warning says so once where `tells`.
    Raises RuntimeModelError naming the tensor or operation that the native core cannot run.
    """
    return _Lowering(program, tensor, activations, tells).run()


@dataclass(frozen=True, slots=True)
class ActivatedLinear(Linear):
    """A linear with the activation of what it gives."""

    activation: Activation | None = None


def with_activations(operations: tuple[Operation, ...]) -> tuple[Operation, ...]:
    """Join each linear with an activation of its output in place."""
    joined: list[Operation] = []
    for operation in operations:
        before = joined[-1] if joined else None
        if isinstance(operation, Activate) and type(before) is Linear and operation.out == operation.x == before.out:
            joined[-1] = ActivatedLinear(
                before.out, before.x, before.weight, before.bias, before.rows, activation=operation.activation
            )
        else:
            joined.append(operation)
    return tuple(joined)


def linear_groups(operations: tuple[Operation, ...]) -> Iterator[Operation | tuple[Linear, ...]]:
    """Join neighbouring linears that read the same buffer, which none of them writes."""
    joinable: list[Linear] = []
    for operation in operations:
        if isinstance(operation, Linear):
            if joinable and not _may_join(joinable, operation):
                yield tuple(joinable)
                joinable = []
            joinable.append(operation)
            continue
        if joinable:
            yield tuple(joinable)
            joinable = []
        yield operation
    if joinable:
        yield tuple(joinable)


def _may_join(group: list[Linear], operation: Linear) -> bool:
    outputs = {member.out for member in group}
    return operation.x == group[0].x and operation.x not in outputs and operation.out not in outputs


@dataclass(slots=True)
class _Lowering:
    """One run of `lower`: the native program under construction and the indices given so far."""

    program: Program
    tensor: TensorByName
    activations: str
    tells: bool
    native: _native.Program = field(default_factory=_native.Program)
    buffers: dict[str, int] = field(default_factory=dict)
    weights: dict[tuple[str, RowRange], int] = field(default_factory=dict)
    integers: dict[tuple[str, RowRange], int] = field(default_factory=dict)
    vectors: dict[tuple[str, RowRange], int] = field(default_factory=dict)
    ropes: dict[RopeFrequencies, int] = field(default_factory=dict)
    biases: dict[RelativeBias, int] = field(default_factory=dict)
    layers: dict[int, int] = field(default_factory=dict)
    shared_layers: dict[int, int] = field(default_factory=dict)
    mappable: dict[str, QuantizedTensor] = field(default_factory=dict)
    decoded_bytes: dict[str, int] = field(default_factory=dict)

    def run(self) -> _native.Program:
        for name, width in self.program.buffers.items():
            self.buffers[name] = self.native.add_buffer(width)
        for state in self.program.states:
            self.layers[state.layer] = self.native.add_state(state.kv_heads, state.head_dim)
        for state in self.program.shared_states:
            self.shared_layers[state.layer] = self.native.add_shared_state(state.kv_heads, state.head_dim)
        for operation in linear_groups(with_activations(self.program.operations)):
            try:
                self._add(operation)
            except ValueError as refused:
                raise RuntimeModelError(f"the model's program is not sound: {refused}") from refused
        self.native.set_output(self.buffers[self.program.output])
        if self.decoded_bytes and self.tells:
            names = ", ".join(name.upper() for name in self.decoded_bytes)
            say_decoded(names, round(sum(self.decoded_bytes.values()) / 1e6))
        return self.native

    def _add(self, operation: Operation | tuple[Linear, ...]) -> None:
        buffers = self.buffers
        match operation:
            case tuple():
                self._linears(operation)
            case Embed(out, weight, scale, by, offset):
                is_integer = has_integers(self.tensor(weight))
                index = self._integers(weight) if is_integer else self._weight(weight)
                self.native.embed(
                    out=buffers[out], weight=index, scale=scale, by=by, offset=offset, is_integer=is_integer
                )
            case RmsNorm(out, x, weight, epsilon, groups):
                self.native.rms_norm(
                    out=buffers[out], x=buffers[x], weight=self._vector(weight), epsilon=epsilon, groups=groups
                )
            case LayerNorm(out, x, weight, bias, epsilon):
                self.native.layer_norm(
                    out=buffers[out], x=buffers[x], weight=self._vector(weight), bias=self._bias(bias), epsilon=epsilon
                )
            case Rope(x, heads, head_dim, frequencies, style):
                rope = self._rope(frequencies)
                self.native.rope(x=buffers[x], heads=heads, head_dim=head_dim, frequencies=rope, style=style)
            case Attention():
                self._attention(operation)
            case CrossAttention():
                self._cross_attention(operation)
            case Share(k, v, layer):
                self.native.share(k=buffers[k], v=buffers[v], layer=self.shared_layers[layer])
            case _:
                self._add_elementwise(operation)

    def _add_elementwise(self, operation: Operation) -> None:
        buffers = self.buffers
        match operation:
            case Glu(out, gate, up, activation):
                self.native.glu(out=buffers[out], gate=buffers[gate], up=buffers[up], activation=activation)
            case Experts():
                self._experts(operation)
            case Activate(out, x, activation):
                self.native.activate(out=buffers[out], x=buffers[x], activation=activation)
            case Scale(out, x, factor):
                self.native.scale(out=buffers[out], x=buffers[x], factor=factor)
            case Softcap(out, x, limit):
                self.native.softcap(out=buffers[out], x=buffers[x], limit=limit)
            case Add(out, a, b):
                self.native.add(out=buffers[out], a=buffers[a], b=buffers[b])
            case SelectOutputRows(out, x):
                self.native.select_output_rows(out=buffers[out], x=buffers[x])
            case _:
                raise RuntimeModelError(f"the native engine has no operation for {type(operation).__name__}")

    def _experts(self, operation: Experts) -> None:
        buffers = (self.buffers[operation.out], self.buffers[operation.x], self.buffers[operation.router])
        gate, up, down = (self.tensor(name) for name in (operation.gate, operation.up, operation.down))
        inputs = expert_inputs((gate, up, down), self.activations)
        if inputs is None:
            self.native.experts(
                buffers=buffers,
                weights=(self._weight(gate.name), self._weight(up.name), self._weight(down.name)),
                activation=operation.activation,
                used=operation.used,
                normalizes=operation.normalizes,
            )
            return
        wide, inner = inputs
        self.native.integer_experts(
            buffers=buffers,
            integers=(self._integer_stack(gate), self._integer_stack(up), self._integer_stack(down)),
            inputs=(
                native_input(wide.inputs, gate.columns, wide.fixed),
                native_input(inner.inputs, down.columns, inner.fixed),
            ),
            activation=operation.activation,
            used=operation.used,
            normalizes=operation.normalizes,
        )

    def _integer_stack(self, stack: QuantizedTensor) -> int:
        """The first expert's matrix of integers; the others follow it."""
        experts, rows = stack.shape[0], stack.shape[1]
        weight = integer_weight(stack)
        found = [
            self._integer_rows(stack.name, weight, (expert * rows, (expert + 1) * rows)) for expert in range(experts)
        ]
        return found[0]

    def _attention(self, operation: Attention) -> None:
        names = (operation.out, operation.q, operation.k, operation.v)
        out, q, k, v = (self.buffers[name] for name in names)
        self.native.attention(
            buffers=(out, q, k, v),
            layer=self.layers[operation.layer],
            heads=(operation.heads, operation.kv_heads, operation.head_dim),
            scale=operation.scale,
            window=operation.window or 0,
            softcap=operation.softcap or 0.0,
            causal=operation.causal,
            bias=_NONE if operation.bias is None else self._relative_bias(operation.bias),
        )

    def _cross_attention(self, operation: CrossAttention) -> None:
        self.native.attention(
            buffers=(self.buffers[operation.out], self.buffers[operation.q], _NONE, _NONE),
            layer=self.shared_layers[operation.layer],
            heads=(operation.heads, operation.kv_heads, operation.head_dim),
            scale=operation.scale,
            window=0,
            softcap=0.0,
            causal=False,
        )

    def _relative_bias(self, bias: RelativeBias) -> int:
        if bias not in self.biases:
            values = bias_by_distance(bias, self.tensor(bias.weight).dequantize())
            self.biases[bias] = self.native.add_bias(len(values), values.reshape(-1))
        return self.biases[bias]

    def _linears(self, linears: tuple[Linear, ...]) -> None:
        """A group for each kind of input that these weights want."""
        groups: dict[tuple[InputChoice, int] | None, list[Linear]] = {}
        for linear in linears:
            tensor = self.tensor(linear.weight)
            choice = input_choice(tensor, self.activations)
            kind = None if choice is None else (choice, scales_of_a_row(tensor))
            groups.setdefault(kind, []).append(linear)
        x = self.buffers[linears[0].x]
        for kind, members in groups.items():
            if kind is None:
                parts = [self._part(linear, self._weight(linear.weight, linear.rows)) for linear in members]
                self.native.linears(x=x, parts=parts)
                continue
            choice, columns = kind[0], self.program.buffers[linears[0].x]
            parts = [self._part(linear, self._integers(linear.weight, linear.rows)) for linear in members]
            self.native.integer_linears(x=x, input=native_input(choice.inputs, columns, choice.fixed), parts=parts)

    def _part(self, linear: Linear, weight: int) -> tuple[int, int, int, str | None]:
        activation = linear.activation if isinstance(linear, ActivatedLinear) else None
        return self.buffers[linear.out], weight, self._bias(linear.bias, linear.rows), activation

    def _integers(self, name: str, rows: RowRange = None) -> int:
        if (name, rows) not in self.integers:
            self.integers[name, rows] = self._integer_rows(name, integer_weight(self.tensor(name)), rows)
        return self.integers[name, rows]

    def _integer_rows(self, name: str, weight: IntegerWeight, rows: RowRange) -> int:
        lines, points = weight.lines, weight.lines.zero_point
        return self.native.add_integers(
            name,
            _rows_of(weight.codes, rows, name),
            lines.levels,
            _rows_of(lines.scale, rows, name),
            None if points is None else _rows_of(points, rows, name),
        )

    def _weight(self, name: str, rows: RowRange = None) -> int:
        if (name, rows) not in self.weights:
            tensor = self._mappable(name)
            mapped = _rows_of(np.ascontiguousarray(tensor.planes["blocks"]).reshape(tensor.rows, -1), rows, name)
            index = self.native.add_weight(name, tensor.format.name, tensor.columns, mapped, _is_mapped(mapped))
            self.weights[name, rows] = index
        return self.weights[name, rows]

    def _mappable(self, name: str) -> QuantizedTensor:
        """A tensor in a format that the engine multiplies with."""
        if name not in self.mappable:
            tensor = self.tensor(name)
            if set(tensor.sidecars) - {INPUT_SCALE, INPUT_ZERO_POINT}:
                raise RuntimeModelError(
                    f"{name}: the engine does not know what to do with {', '.join(tensor.sidecars)} beside the weights"
                )
            if tensor.format.name not in _native.formats():
                experts = in_blocks(tensor) if len(tensor.shape) > 2 else None
                tensor = experts or self._decoded(tensor)
            self.mappable[name] = tensor
        return self.mappable[name]

    def _decoded(self, tensor: QuantizedTensor) -> QuantizedTensor:
        """The same values in a format that the engine multiplies with."""
        plain = plain_tensor(tensor)
        self.decoded_bytes[tensor.format.name] = self.decoded_bytes.get(tensor.format.name, 0) + plain.nbytes
        return plain

    def _bias(self, name: str | None, rows: RowRange = None) -> int:
        return _NONE if name is None else self._vector(name, rows)

    def _vector(self, name: str, rows: RowRange = None) -> int:
        if (name, rows) not in self.vectors:
            values = _rows_of(self.tensor(name).dequantize().reshape(-1), rows, name)
            self.vectors[name, rows] = self.native.add_vector(values)
        return self.vectors[name, rows]

    def _rope(self, frequencies: RopeFrequencies) -> int:
        if frequencies not in self.ropes:
            factors = None
            if frequencies.factors is not None:
                factors = self.tensor(frequencies.factors).dequantize().reshape(-1)
            inverse, magnitude = inverse_frequencies(frequencies, factors)
            self.ropes[frequencies] = self.native.add_rope(inverse, magnitude)
        return self.ropes[frequencies]


def _is_mapped(array: Array) -> bool:
    """Whether an array's bytes lie in a mapped file."""
    owner: object = array
    while isinstance(owner, np.ndarray | memoryview):
        owner = owner.base if isinstance(owner, np.ndarray) else owner.obj
    return isinstance(owner, mmap.mmap)


def _rows_of(array: Array, rows: RowRange, name: str) -> Array:
    """A range of rows, not copied."""
    if rows is None:
        return array
    start, end = rows
    if not 0 <= start < end <= len(array):
        raise RuntimeModelError(f"{name}: rows {start} to {end} were asked for, and it has {len(array)}")
    return array[start:end]


@cache
def say_decoded(names: str, megabytes: int) -> None:
    """Tell it the first time; opening the same file again, as comparisons do, says nothing new."""
    # Formats without kernels, and integers whose inputs were asked for as floats.
    _LOG.warning("multiplied as plain floats of the same values: %s; %d MB of memory more", names, megabytes)


def plain_tensor(tensor: QuantizedTensor) -> QuantizedTensor:
    """The same values as F16 where every one of them is an F16 number, else as F32."""
    pieces = [values.astype("<f2") for values in _float_pieces(tensor, exact_in_half=True)]
    kind = "f16"
    if sum(len(piece) for piece in pieces) != tensor.rows:
        pieces, kind = [values.astype("<f4") for values in _float_pieces(tensor)], "f32"
    blocks = np.concatenate(pieces).view(np.uint8)
    return QuantizedTensor(tensor.name, tensor.shape, get_format(kind), {"blocks": blocks})


def _float_pieces(tensor: QuantizedTensor, *, exact_in_half: bool = False) -> Iterator[FloatArray]:
    """Float32 values of some rows at a time; ends early at the first that F16 would round, where that is asked."""
    together = tensor.format.row_step or tensor.rows
    step = max(1, _DECODE_WEIGHTS // tensor.columns // together) * together
    for start in range(0, tensor.rows, step):
        if step >= tensor.rows:
            values = tensor.dequantize().reshape(tensor.rows, tensor.columns)
        else:
            part = tensor.format.row_range(tensor.planes, start, min(start + step, tensor.rows))
            values = decode(tensor.format, part, tensor.columns)
        with np.errstate(over="ignore"):
            if exact_in_half and not np.array_equal(values.astype(np.float16).astype(np.float32), values):
                return
        yield values
