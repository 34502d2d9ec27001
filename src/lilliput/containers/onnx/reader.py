# SPDX-License-Identifier: Apache-2.0
"""Weights of an ONNX file as its own operators see them, decoded to float32 without knowledge of who wrote it.

MatMulNBits and GatherBlockQuantized of ONNX Runtime, DequantizeLinear of ONNX, and plain floats. Names are those of
the initializers, less the suffix of the codes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from lilliput.arrays import Array, ByteArray, FloatArray
from lilliput.checkpoints.mapped_file import MappedFile, update_digest
from lilliput.containers.onnx.graph import ElementType, External, Graph, Initializer, Node, read_graph
from lilliput.containers.part_writer import decoded_pieces
from lilliput.errors import ContainerError
from lilliput.records import QuantizedTensor

# The graph, in a folder of ours.
MODEL = "model.onnx"
_SUFFIX = re.compile(r"(\.codes)?(\.rows\d+-\d+)?(\.\d+(x\d+)*)?$")
_NUMPY = {
    ElementType.FLOAT: "<f4", ElementType.FLOAT16: "<f2", ElementType.INT8: "i1", ElementType.UINT8: "u1",
}  # fmt: skip
# Weights decoded at once.
_PIECE = 1 << 22


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
        """Names of its constants."""
        return tuple(name for name in (self.codes, self.scale, self.zero_point) if name)


@dataclass(frozen=True, slots=True)
class PlainWeight:
    """A weight of plain floats."""

    array: str

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of its constants."""
        return (self.array,)


class OnnxFile:
    """An opened ONNX file and the external files beside it, mapped."""

    def __init__(self, path: Path) -> None:
        """Open a file. Raises ContainerError where it is damaged or something is missing."""
        self.path = path
        try:
            self.graph: Graph = read_graph(path.read_bytes())
        except OSError as failure:
            raise ContainerError(f"{path}: cannot be read: {failure.strerror or failure}") from failure
        self._files: dict[str, MappedFile] = {}
        self.weights = self._found_weights()

    def values(self, name: str) -> Iterator[FloatArray]:
        """Float32 values of a weight, some rows at a time; of one that operators read in parts, part after part."""
        for weight in self.weights[name]:
            yield from self._plain_values(weight) if isinstance(weight, PlainWeight) else self._block_values(weight)

    def value_digest(self, name: str) -> str:
        """sha256 of a weight's float32 values. Raises ContainerError where one is NaN or infinite."""
        return _digest(self.values(name), name)

    def nbytes(self, name: str) -> int:
        """Stored bytes of a weight."""
        arrays = [array for weight in self.weights[name] for array in weight.arrays]
        return sum(self._constant(array).nbytes for array in arrays)

    def shape(self, name: str) -> tuple[int, ...]:
        """[out, in], or the shape of plain floats."""
        parts = [
            self._constant(part.array).shape if isinstance(part, PlainWeight) else (part.rows, part.columns)
            for part in self.weights[name]
        ]
        return (sum(part[0] for part in parts), *parts[0][1:]) if parts[0] else ()

    def kind(self, name: str) -> str:
        """How a weight is stored, in words."""
        first = self.weights[name][0]
        if isinstance(first, PlainWeight):
            return self._constant(first.array).element.name.lower()
        return f"int{first.bits}, blocks of {first.block}{' with zero points' if first.zero_point else ''}"

    def close(self) -> None:
        """Let go of the maps."""
        for file in self._files.values():
            file.close()
        self._files.clear()

    def array(self, name: str) -> Array:
        """A constant as it lies in the file, in its shape; BF16 and packed elements as raw bytes."""
        item = self._constant(name)
        data = self._bytes(item)
        kind = _NUMPY.get(item.element)
        if kind is None:
            return data
        if data.ctypes.data % np.dtype(kind).itemsize:
            data = data.copy()
        return data.view(kind).reshape(item.shape)

    def _found_weights(self) -> dict[str, tuple[BlockWeight | PlainWeight, ...]]:
        """Name -> parts in the order of their bytes, each once however many operators and shapes it is read in."""
        parts: dict[str, dict[int, BlockWeight | PlainWeight]] = {}
        taken: set[str] = set()
        casts = {node.outputs[0]: node.inputs[0] for node in self.graph.nodes if node.operation == "Cast"}
        for node in self.graph.nodes:
            # What is cast when the file is loaded counts as the constant that it is made from.
            weight = self._block_weight(node, [casts.get(name, name) for name in node.inputs])
            if weight is None:
                continue
            known = parts.setdefault(_weight_name(weight.codes), {})
            if not self._same_bytes(known.setdefault(self._start(weight.codes), weight), weight):
                raise ContainerError(f"{self.path.name}: two operators read '{weight.codes}' differently")
            taken.update(weight.arrays)
        for name, item in self.graph.initializers.items():
            if name not in taken and isinstance(item.data, External):
                parts.setdefault(_weight_name(name), {})[item.data.start] = PlainWeight(name)
        return {name: tuple(found[start] for start in sorted(found)) for name, found in parts.items()}

    def _block_weight(self, node: Node, inputs: Sequence[str]) -> BlockWeight | None:
        """The weight of a node that reads one in blocks, its arrays as large as it says."""
        if node.operation not in ("MatMulNBits", "GatherBlockQuantized"):
            return None
        if len(inputs) < 3:
            raise ContainerError(f"{self.path.name}: a {node.operation} of ONNX Runtime has too few inputs")
        bits, zero_point = _whole(node, "bits", 4), inputs[3] if len(inputs) > 3 and inputs[3] else None
        if node.operation == "MatMulNBits":
            rows, columns = _whole(node, "N"), _whole(node, "K")
            codes, scale, block = inputs[1], inputs[2], _whole(node, "block_size")
        else:
            codes, scale, block = inputs[0], inputs[2], _whole(node, "block_size", 128)
            shape = self._constant(codes).shape
            rows, columns = shape[0] if shape else 0, prod(shape[1:]) * 8 // bits
        weight = BlockWeight(rows, columns, bits, block, codes, scale, zero_point)
        blocks = -(-columns // block)
        points = None if zero_point is None else self._constant(zero_point).nbytes
        if (
            bits not in (2, 4, 8)
            or self._constant(codes).nbytes != rows * blocks * (block * bits // 8)
            or prod(self._constant(scale).shape) != rows * blocks
            or points not in (None, rows * -(-blocks * bits // 8))
        ):
            raise ContainerError(
                f"{self.path.name}: the arrays of '{codes}' do not fit a {rows} x {columns} ONNX weight of {bits} "
                f"bits in blocks of {block}"
            )
        return weight

    def _start(self, name: str) -> int:
        item = self._constant(name)
        return item.data.start if isinstance(item.data, External) else 0

    def _same_bytes(self, one: BlockWeight | PlainWeight, other: BlockWeight) -> bool:
        """Whether two operators read one weight, under constants of other shapes."""
        if isinstance(one, PlainWeight):
            return False
        places = [[self._constant(name).data for name in weight.arrays] for weight in (one, other)]
        sizes = [(weight.rows, weight.columns, weight.bits, weight.block) for weight in (one, other)]
        return places[0] == places[1] and sizes[0] == sizes[1]

    def _plain_values(self, weight: PlainWeight) -> Iterator[FloatArray]:
        item = self._constant(weight.array)
        data = self.array(weight.array)
        if item.element is ElementType.BFLOAT16:
            data = (data.view("<u2").astype(np.uint32) << 16).view(np.float32)
        elif item.element not in (ElementType.FLOAT, ElementType.FLOAT16):
            raise ContainerError(f"ONNX constant '{weight.array}' is of {item.element.name}, not of floats")
        flat = data.reshape(-1)
        for start in range(0, flat.size, _PIECE):
            yield flat[start : start + _PIECE].astype(np.float32)

    def _block_values(self, weight: BlockWeight) -> Iterator[FloatArray]:
        blocks = -(-weight.columns // weight.block)
        codes = self.array(weight.codes).reshape(weight.rows, -1)
        scale = self.array(weight.scale).reshape(weight.rows, blocks)
        points = None if weight.zero_point is None else self.array(weight.zero_point).reshape(weight.rows, -1)
        step = max(1, _PIECE // weight.columns)
        for start in range(0, weight.rows, step):
            part = slice(start, start + step)
            levels = _fields(codes[part], weight.bits).astype(np.float32).reshape(-1, blocks, weight.block)
            zero: FloatArray | float = float(1 << (weight.bits - 1))
            if points is not None:
                zero = _fields(points[part], weight.bits)[:, :blocks, None].astype(np.float32)
            values: FloatArray = (levels - zero) * scale[part].astype(np.float32)[:, :, None]
            yield values.reshape(len(values), -1)[:, : weight.columns]

    def _constant(self, name: str) -> Initializer:
        if name not in self.graph.initializers:
            raise ContainerError(f"{self.path.name}: an operator reads '{name}', which is no constant of the file")
        return self.graph.initializers[name]

    def _bytes(self, item: Initializer) -> ByteArray:
        if isinstance(item.data, bytes):
            return np.frombuffer(item.data, dtype=np.uint8)
        place = item.data
        if place.file not in self._files:
            self._files[place.file] = MappedFile(self.path.parent / place.file, ContainerError)
        file = self._files[place.file]
        if place.start + place.nbytes > file.size:
            raise ContainerError(f"{place.file}: cut off; '{item.name}' ends at {place.start + place.nbytes}")
        return file.data[place.start : place.start + place.nbytes]


def value_digest(tensor: QuantizedTensor) -> str:
    """sha256 of a tensor's float32 values. Raises ContainerError where one is NaN or infinite."""
    return _digest(decoded_pieces(tensor), tensor.name)


def _digest(pieces: Iterator[FloatArray], name: str) -> str:
    digest = hashlib.sha256()
    for values in pieces:
        if not np.isfinite(values).all():
            raise ContainerError(f"tensor '{name}' decodes to {'NaN' if np.isnan(values).any() else 'infinity'}")
        # A zero may carry a sign on one way and none on the other.
        update_digest(digest, np.ascontiguousarray(values + np.float32(0.0)).reshape(-1).view(np.uint8))
    return digest.hexdigest()


def _whole(node: Node, name: str, default: int | None = None) -> int:
    value = node.attributes.get(name, default)
    if not isinstance(value, int) or value < 1:
        raise ContainerError(f"ONNX operator {node.operation}: attribute '{name}' is {value!r}, must be a whole number")
    return value


def _weight_name(array: str) -> str:
    """The tensor's name, without what follows it: `.codes`, and which rows or shape of it."""
    return _SUFFIX.sub("", array)


def _fields(packed: ByteArray, bits: int) -> ByteArray:
    """uint8 [n, bytes] -> [n, bytes * 8 / bits], lowest bits first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return ((packed[:, :, None] >> shifts) & np.uint8((1 << bits) - 1)).reshape(len(packed), -1)
