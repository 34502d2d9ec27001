# SPDX-License-Identifier: Apache-2.0
"""The weights of a graph as its own operators read them, decoded to float32 without knowledge of who wrote it.

MatMulNBits and GatherBlockQuantized of ONNX Runtime; DequantizeLinear, also of rows that Gather takes; MatMulInteger
with the scales that its sums are multiplied with; plain floats.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Protocol

import numpy as np

from lilliput.arrays import Array, ByteArray, FloatArray
from lilliput.containers.onnx.constants import Constants
from lilliput.containers.onnx.graph import ElementType, External, Node
from lilliput.errors import ContainerError
from lilliput.formats.eight_bit_float import e4m3_table

# What follows a tensor's name in the names of its arrays: `.codes`, and which rows or shape of it.
_SUFFIX = re.compile(r"(\.codes)?(\.rows\d+-\d+)?(\.\d+(x\d+)*)?$")
# Weights decoded at once.
_PIECE = 1 << 22
_BLOCK_OPERATORS = ("MatMulNBits", "GatherBlockQuantized")


class StoredWeight(Protocol):
    """One weight, or some rows of one. arrays: names of its constants, codes first."""

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of its constants, the codes first."""

    def shape(self, constants: Constants) -> tuple[int, ...]:
        """[out, in], or the shape of plain floats."""

    def kind(self, constants: Constants) -> str:
        """How it is stored, in words."""

    def values(self, constants: Constants) -> Iterator[FloatArray]:
        """Float32 values, some rows at a time."""


@dataclass(frozen=True, slots=True)
class PlainWeight:
    """A weight of plain floats."""

    array: str

    @property
    def arrays(self) -> tuple[str, ...]:
        """The one constant."""
        return (self.array,)

    def shape(self, constants: Constants) -> tuple[int, ...]:
        """As stored."""
        return constants.find(self.array).shape

    def kind(self, constants: Constants) -> str:
        """The element type."""
        return constants.find(self.array).element.name.lower()

    def values(self, constants: Constants) -> Iterator[FloatArray]:
        """Float32 values."""
        flat = constants.floats(self.array).reshape(-1)
        for start in range(0, flat.size, _PIECE):
            yield flat[start : start + _PIECE].astype(np.float32)


@dataclass(frozen=True, slots=True)
class BlockWeight:
    """A weight of MatMulNBits or GatherBlockQuantized. columns: inputs of a row.  zero_point: its name, or None."""

    rows: int
    columns: int
    bits: int
    block: int
    codes: str
    scale: str
    zero_point: str | None

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of its constants, the codes first."""
        return tuple(name for name in (self.codes, self.scale, self.zero_point) if name)

    def shape(self, constants: Constants) -> tuple[int, ...]:
        """[out, in]."""
        return (self.rows, self.columns)

    def kind(self, constants: Constants) -> str:
        """Bits and blocks."""
        return f"int{self.bits}, blocks of {self.block}{' with zero points' if self.zero_point else ''}"

    def values(self, constants: Constants) -> Iterator[FloatArray]:
        """Gives (code - zero point) * scale."""
        blocks = -(-self.columns // self.block)
        codes = constants.array(self.codes).reshape(self.rows, -1)
        scale = constants.floats(self.scale).reshape(self.rows, blocks)
        points = None if self.zero_point is None else constants.array(self.zero_point).reshape(self.rows, -1)
        for part in _row_slices(self.rows, self.columns):
            levels = bit_fields(codes[part], self.bits).astype(np.float32).reshape(-1, blocks, self.block)
            zero: FloatArray | float = float(1 << (self.bits - 1))
            if points is not None:
                zero = bit_fields(points[part], self.bits)[:, :blocks, None].astype(np.float32)
            values: FloatArray = (levels - zero) * scale[part].astype(np.float32)[:, :, None]
            yield values.reshape(len(values), -1)[:, : self.columns]

    def check(self, constants: Constants) -> None:
        """Raise ContainerError where the arrays are not as large as the operator says."""
        blocks = -(-self.columns // self.block)
        points = None if self.zero_point is None else constants.find(self.zero_point).nbytes
        if (
            self.bits not in (2, 4, 8)
            or constants.find(self.codes).nbytes != self.rows * blocks * (self.block * self.bits // 8)
            or prod(constants.find(self.scale).shape) != self.rows * blocks
            or points not in (None, self.rows * -(-blocks * self.bits // 8))
        ):
            raise _misfit(constants, self.codes, self.shape(constants))


@dataclass(frozen=True, slots=True)
class DequantizedWeight:
    """A weight of DequantizeLinear or MatMulInteger. block: inputs that share a scale, 0 for one a row or for all."""

    codes: str
    scale: str
    zero_point: str | None
    block: int

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of its constants, the codes first."""
        return tuple(name for name in (self.codes, self.scale, self.zero_point) if name)

    def shape(self, constants: Constants) -> tuple[int, ...]:
        """[out, in]."""
        return constants.find(self.codes).shape

    def kind(self, constants: Constants) -> str:
        """Element type and what shares a scale."""
        shared = "one scale" if not constants.find(self.scale).shape else "a scale a row"
        shared = f"blocks of {self.block}" if self.block else shared
        points = " with zero points" if self.zero_point else ""
        return f"{constants.find(self.codes).element.name.lower()}, {shared}{points}"

    def values(self, constants: Constants) -> Iterator[FloatArray]:
        """Gives (code - zero point) * scale."""
        rows, columns = self.shape(constants)
        element = constants.find(self.codes).element
        codes = constants.array(self.codes).reshape(rows, columns)
        scale, points = self._spread(constants, self.scale), None
        if self.zero_point is not None:
            points = self._spread(constants, self.zero_point)
        repeat = self.block or columns
        for part in _row_slices(rows, columns):
            levels = e4m3_table()[codes[part]] if element is ElementType.FLOAT8E4M3FN else codes[part]
            levels = levels.astype(np.float32)
            if points is not None:
                levels = levels - np.repeat(points[part].astype(np.float32), repeat, axis=1)
            values: FloatArray = levels * np.repeat(scale[part].astype(np.float32), repeat, axis=1)
            yield values

    def check(self, constants: Constants) -> None:
        """Raise ContainerError where the arrays do not fit each other."""
        shape, scale = constants.find(self.codes).shape, constants.find(self.scale).shape
        wanted: tuple[tuple[int, ...], ...] = ((), (1,), shape[:1])
        if self.block and len(shape) == 2:
            wanted = ((shape[0], shape[1] // self.block),)
        is_whole = not self.block or (len(shape) == 2 and shape[1] % self.block == 0)
        points = scale if self.zero_point is None else constants.find(self.zero_point).shape
        if len(shape) != 2 or scale not in wanted or points != scale or not is_whole:
            raise _misfit(constants, self.codes, shape)

    def _spread(self, constants: Constants, name: str) -> Array:
        """[rows, groups] of a scale or zero point."""
        rows, columns = self.shape(constants)
        found = constants.array(name).reshape(-1)
        groups = columns // self.block if self.block else 1
        return np.broadcast_to(found.reshape(-1, groups), (rows, groups))


@dataclass(frozen=True, slots=True)
class GridWeight:
    """A weight of QONNX's Quant: floats that lie on the grid of its scales. codes: the floats."""

    codes: str
    scale: str
    width: str

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of its constants, the values first."""
        return (self.codes, self.scale)

    def shape(self, constants: Constants) -> tuple[int, ...]:
        """[out, in]."""
        return constants.find(self.codes).shape

    def kind(self, constants: Constants) -> str:
        """Bits of its integers."""
        return f"fixed point, {float(constants.floats(self.width)):g} bits"

    def values(self, constants: Constants) -> Iterator[FloatArray]:
        """The floats, each an integer of so many bits times its scale. Raises ContainerError for others."""
        values, scale = constants.floats(self.codes), constants.floats(self.scale)
        last = 2.0 ** (float(constants.floats(self.width)) - 1)
        for part in _row_slices(*self.shape(constants)):
            levels = values[part] / (scale[part] if len(scale) > 1 else scale)
            if (levels != np.rint(levels)).any() or levels.min() < -last or levels.max() > last - 1:
                raise ContainerError(
                    f"{constants.path.name}: '{self.codes}' does not lie on the ONNX grid that it names"
                )
            yield values[part].astype(np.float32)

    def check(self, constants: Constants) -> None:
        """Raise ContainerError where the arrays do not fit each other."""
        shape, scale = constants.find(self.codes).shape, constants.find(self.scale).shape
        if len(shape) != 2 or scale not in ((1, 1), (shape[0], 1)) or constants.floats(self.width).size != 1:
            raise _misfit(constants, self.codes, shape)


def find_weights(constants: Constants) -> dict[str, tuple[StoredWeight, ...]]:
    """Name -> parts in the order of their bytes, each once however many operators and shapes it is read in.

    Raises ContainerError where arrays are missing, do not fit, or are read differently by two operators.
    """
    graph = constants.graph
    producers = {name: node for node in graph.nodes for name in node.outputs}
    readers: dict[str, list[Node]] = {}
    for node in graph.nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node)
    parts: dict[str, dict[int, StoredWeight]] = {}
    taken: set[str] = set()
    for node in graph.nodes:
        weight = weight_of(node, constants, producers, readers)
        if weight is None:
            continue
        weight.check(constants)
        known = parts.setdefault(_SUFFIX.sub("", weight.codes), {})
        first = known.setdefault(constants.start(weight.codes), weight)
        if not _same_bytes(first, weight, constants):
            raise ContainerError(f"{constants.path.name}: two ONNX operators read '{weight.codes}' differently")
        taken.update(weight.arrays)
    for name, item in graph.initializers.items():
        if name not in taken and isinstance(item.data, External):
            parts.setdefault(_SUFFIX.sub("", name), {})[item.data.start] = PlainWeight(name)
    return {name: tuple(found[start] for start in sorted(found)) for name, found in parts.items()}


def weight_of(
    node: Node, constants: Constants, producers: Mapping[str, Node], readers: Mapping[str, list[Node]]
) -> BlockWeight | DequantizedWeight | GridWeight | None:
    """The weight that a node reads, where it reads one."""
    inputs = [constant_behind(name, producers) for name in node.inputs]
    zero_point = inputs[2] if len(inputs) > 2 and inputs[2] else None
    if node.operation in _BLOCK_OPERATORS:
        return block_weight(node, inputs, constants)
    if node.operation == "Quant" and len(inputs) == 4 and inputs[0] in constants.graph.initializers:
        return GridWeight(inputs[0], inputs[1], inputs[3])
    if node.operation == "DequantizeLinear" and inputs and inputs[0] in constants.graph.initializers:
        block = node.attributes.get("block_size", 0)
        if len(inputs) < 2 or not isinstance(block, int) or block < 0:
            raise ContainerError(f"{constants.path.name}: a DequantizeLinear of this ONNX file is damaged")
        return DequantizedWeight(inputs[0], inputs[1], zero_point, block)
    if node.operation == "MatMulInteger" and len(inputs) > 1 and inputs[1] in constants.graph.initializers:
        for cast in readers.get(node.outputs[0], []):
            for product in readers.get(cast.outputs[0], []):
                for factor in product.inputs:
                    scales = producers.get(factor)
                    for name in scales.inputs if scales is not None and scales.operation == "Mul" else ():
                        if name in constants.graph.initializers:
                            return DequantizedWeight(inputs[1], name, None, 0)
        raise ContainerError(f"{constants.path.name}: no scale follows the ONNX product of '{inputs[1]}'")
    return None


def block_weight(node: Node, inputs: list[str], constants: Constants) -> BlockWeight:
    """The weight of a MatMulNBits or GatherBlockQuantized. Raises ContainerError."""
    if len(inputs) < 3:
        raise ContainerError(f"{constants.path.name}: a {node.operation} of ONNX Runtime has too few inputs")
    bits, zero_point = _whole(node, "bits", 4), inputs[3] if len(inputs) > 3 and inputs[3] else None
    if node.operation == "MatMulNBits":
        rows, columns = _whole(node, "N"), _whole(node, "K")
        return BlockWeight(rows, columns, bits, _whole(node, "block_size"), inputs[1], inputs[2], zero_point)
    shape = constants.find(inputs[0]).shape
    rows, columns = shape[0] if shape else 0, prod(shape[1:]) * 8 // bits
    return BlockWeight(rows, columns, bits, _whole(node, "block_size", 128), inputs[0], inputs[2], zero_point)


def constant_behind(name: str, producers: Mapping[str, Node]) -> str:
    """The constant that a value is made from by casting, turning, or taking rows."""
    seen = producers.get(name)
    if seen is not None and seen.operation in ("Cast", "Transpose", "Gather") and seen.inputs:
        return seen.inputs[0]
    return name


def _same_bytes(one: StoredWeight, other: StoredWeight, constants: Constants) -> bool:
    """Whether two operators read one weight, under constants of other shapes."""
    if type(one) is not type(other) or one.shape(constants) != other.shape(constants):
        return False
    if one.kind(constants) != other.kind(constants):
        return False
    places = [[constants.find(name).data for name in weight.arrays] for weight in (one, other)]
    return places[0] == places[1]


def _whole(node: Node, name: str, default: int | None = None) -> int:
    value = node.attributes.get(name, default)
    if not isinstance(value, int) or value < 1:
        raise ContainerError(f"ONNX operator {node.operation}: attribute '{name}' is {value!r}, must be a whole number")
    return value


def _misfit(constants: Constants, codes: str, shape: tuple[int, ...]) -> ContainerError:
    return ContainerError(f"{constants.path.name}: the arrays of '{codes}' do not fit an ONNX weight of {list(shape)}")


def _row_slices(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, _PIECE // max(columns, 1))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def bit_fields(packed: ByteArray, bits: int) -> ByteArray:
    """uint8 [n, bytes] -> [n, bytes * 8 / bits], lowest bits first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return ((packed[:, :, None] >> shifts) & np.uint8((1 << bits) - 1)).reshape(len(packed), -1)
