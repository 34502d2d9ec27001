# SPDX-License-Identifier: Apache-2.0
"""How each weight lies in an ONNX file and which operators read it there.

plain    F32, F16, BF16 as they are; a Cast gives float32 where they are not
blocks   MatMulNBits and GatherBlockQuantized of ONNX Runtime (domain com.microsoft): codes of 2, 4 or 8 bits
         uint8 [out, blocks, block * bits / 8], first code in the lowest bits; scales float32 or float16 [out, blocks],
         as float32 by a Cast when the file is loaded; zero points packed like codes, [out, ceil(blocks * bits / 8)];
         without them 2^(bits - 1) is zero.
         value = scale * (code - zero point), along runs of `block` inputs, a power of two from 16 to 256.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from lilliput.arrays import Array
from lilliput.containers.onnx.graph import MICROSOFT, ElementType, External, Graph, Initializer
from lilliput.containers.onnx.integer_levels import IntegerGrid, integer_grid, integer_rows, row_pieces
from lilliput.errors import ContainerError
from lilliput.formats import NumberFormat
from lilliput.formats.scoped_number import pack_bits
from lilliput.records import QuantizedTensor, TensorHeader

PLAIN = {"f32": ElementType.FLOAT, "f16": ElementType.FLOAT16, "bf16": ElementType.BFLOAT16}
BLOCKS = (256, 128, 64, 32, 16)
# float32 arithmetic; 4 would quantize the inputs to int8 (faster, and no longer the values that were chosen).
ACCURACY_LEVEL = 1
# Half-open; None means all.
RowRange = tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Stored:
    """One array of a tensor in the data file. suffix: what follows the tensor's name."""

    suffix: str
    element: ElementType
    shape: tuple[int, ...]
    nbytes: int


class Storage(Protocol):
    """One way to store a tensor."""

    def arrays(self, header: TensorHeader) -> tuple[Stored, ...]:
        """What will be stored, in file order."""

    def planes(self, tensor: QuantizedTensor) -> dict[str, Array]:
        """The arrays of a tensor by suffix."""

    def linear(self, weights: Weights, x: str, name: str, rows: RowRange) -> str:
        """The product of x [tokens, in] and the transposed weight, or these rows of it."""

    def lookup(self, weights: Weights, ids: str, name: str) -> str:
        """Rows of the weight, [tokens, columns]."""


@dataclass(slots=True)
class Weights:
    """The weights of a graph under construction.

    places: tensor name and suffix -> where its bytes lie.  used: which of them the graph has so far.
    """

    graph: Graph
    headers: Mapping[str, TensorHeader]
    storages: Mapping[str, Storage]
    places: Mapping[tuple[str, str], External]
    used: set[tuple[str, str]] = field(default_factory=set)
    _floats: dict[tuple[str, RowRange], str] = field(default_factory=dict)

    def array(self, name: str, suffix: str, shape: tuple[int, ...] | None = None, rows: RowRange = None) -> str:
        """The constant of a stored array.

        Seen in another shape, or only some rows of it, it is a further constant of the same bytes.
        """
        stored = next(item for item in self.storages[name].arrays(self.header(name)) if item.suffix == suffix)
        place, shown = self.places[name, suffix], name + suffix
        self.used.add((name, suffix))
        natural = stored.shape
        if rows is not None:
            row_bytes = stored.nbytes // stored.shape[0]
            place = External(place.file, place.start + rows[0] * row_bytes, (rows[1] - rows[0]) * row_bytes)
            natural = (rows[1] - rows[0], *stored.shape[1:])
            shown += f".rows{rows[0]}-{rows[1]}"
        shape = shape or natural
        if shape != natural:
            shown += "." + "x".join(map(str, shape))
        self.graph.initializers[shown] = Initializer(shown, stored.element, shape, place)
        return shown

    def header(self, name: str) -> TensorHeader:
        """The header of a tensor. Raises ContainerError where the model has none."""
        if name not in self.headers:
            raise ContainerError(f"the program of this model reads tensor '{name}', which it does not have")
        return self.headers[name]

    def linear(self, x: str, name: str, bias: str | None = None, rows: RowRange = None) -> str:
        """The product x @ weight.T, and bias; of both these rows."""
        self.header(name)
        y = self.storages[name].linear(self, x, name, rows)
        return y if bias is None else self.graph.add("Add", y, self.floats(bias, rows))

    def lookup(self, ids: str, name: str) -> str:
        """Rows of a table."""
        self.header(name)
        return self.storages[name].lookup(self, ids, name)

    def floats(self, name: str, rows: RowRange = None) -> str:
        """A tensor of plain floats, or rows of it, as float32. Raises ContainerError for others."""
        if (name, rows) not in self._floats:
            kind = self.header(name).format.name
            if kind not in PLAIN:
                raise ContainerError(f"tensor '{name}' is {kind.upper()} and must be F32, F16 or BF16 in an ONNX file")
            self._floats[name, rows] = self.float_array(name, "", rows=rows)
        return self._floats[name, rows]

    def float_array(self, name: str, suffix: str, shape: tuple[int, ...] | None = None, rows: RowRange = None) -> str:
        """An array of floats as float32: runtimes compute the Cast once, when they load the file."""
        array = self.array(name, suffix, shape, rows)
        if self.graph.initializers[array].element is ElementType.FLOAT:
            return array
        return self.graph.add("Cast", array, attributes={"to": int(ElementType.FLOAT)})


def flat_shape(header: TensorHeader) -> tuple[int, ...]:
    """The shape of a vector, or [rows, columns]: stacked matrices lie below each other."""
    return header.shape if len(header.shape) < 2 else (header.rows, header.columns)


class PlainStorage:
    """Floats as they are."""

    def arrays(self, header: TensorHeader) -> tuple[Stored, ...]:
        """One array."""
        return (Stored("", PLAIN[header.format.name], flat_shape(header), header.nbytes),)

    def planes(self, tensor: QuantizedTensor) -> dict[str, Array]:
        """The bytes as they are."""
        return {"": np.asarray(tensor.planes["blocks"])}

    def linear(self, weights: Weights, x: str, name: str, rows: RowRange) -> str:
        """Gemm, which takes the weight as it lies."""
        return weights.graph.add("Gemm", x, weights.floats(name, rows), attributes={"transB": 1})

    def lookup(self, weights: Weights, ids: str, name: str) -> str:
        """Gather, and a Cast of the rows alone."""
        rows = weights.graph.add("Gather", weights.array(name, ""), ids)
        if PLAIN[weights.header(name).format.name] is ElementType.FLOAT:
            return rows
        return weights.graph.add("Cast", rows, attributes={"to": int(ElementType.FLOAT)})


@dataclass(frozen=True, slots=True)
class BlockStorage:
    """Codes in blocks, see above. block: weights that share a scale in the file, at most those of the format."""

    grid: IntegerGrid
    block: int

    def arrays(self, header: TensorHeader) -> tuple[Stored, ...]:
        """Codes, scales, zero points."""
        rows, blocks, bits = header.rows, header.columns // self.block, self.grid.bits
        packed = self.block * bits // 8
        scale = ElementType.FLOAT16 if self.grid.has_half_scales else ElementType.FLOAT
        found = [
            Stored(".codes", ElementType.UINT8, (rows, blocks, packed), rows * blocks * packed),
            Stored(".scale", scale, (rows, blocks), rows * blocks * scale.bits // 8),
        ]
        if self.grid.has_zero_point:
            across = -(-blocks * bits // 8)
            found.append(Stored(".zero_point", ElementType.UINT8, (rows, across), rows * across))
        return tuple(found)

    def planes(self, tensor: QuantizedTensor) -> dict[str, Array]:
        """Our codes and parameters, laid out for the operators."""
        found: dict[str, list[Array]] = {}
        blocks = tensor.columns // self.block
        planes = {name: np.asarray(array) for name, array in tensor.planes.items()}
        for piece in row_pieces(tensor.rows, tensor.columns, tensor.format):
            part = tensor.format.row_range(planes, piece.start, piece.stop)
            rows = integer_rows(tensor.format, part, tensor.columns, piece.stop - piece.start)
            repeat = blocks // rows.scale.shape[1]
            found.setdefault(".codes", []).append(pack_bits(rows.codes, self.grid.bits))
            scale = rows.scale.astype("<f2" if self.grid.has_half_scales else "<f4")
            found.setdefault(".scale", []).append(np.repeat(scale, repeat, axis=1))
            if rows.zero_point is not None:
                points = pack_bits(np.repeat(rows.zero_point, repeat, axis=1), self.grid.bits)
                found.setdefault(".zero_point", []).append(points)
        return {suffix: np.concatenate(parts) for suffix, parts in found.items()}

    def linear(self, weights: Weights, x: str, name: str, rows: RowRange) -> str:
        """MatMulNBits."""
        header = weights.header(name)
        outputs, columns = header.rows if rows is None else rows[1] - rows[0], header.columns
        blocks = columns // self.block
        scale = weights.float_array(name, ".scale", (outputs * blocks,), rows)
        inputs = [x, weights.array(name, ".codes", rows=rows), scale]
        if self.grid.has_zero_point:
            size = outputs * -(-blocks * self.grid.bits // 8)
            inputs.append(weights.array(name, ".zero_point", (size,), rows))
        attributes = {
            "K": columns, "N": outputs, "bits": self.grid.bits, "block_size": self.block,
            "accuracy_level": ACCURACY_LEVEL,
        }  # fmt: skip
        return weights.graph.add("MatMulNBits", *inputs, attributes=attributes, domain=MICROSOFT)

    def lookup(self, weights: Weights, ids: str, name: str) -> str:
        """GatherBlockQuantized, over the same bytes as MatMulNBits."""
        header = weights.header(name)
        shape = (header.rows, header.columns * self.grid.bits // 8)
        inputs = [weights.array(name, ".codes", shape), ids, weights.float_array(name, ".scale")]
        if self.grid.has_zero_point:
            inputs.append(weights.array(name, ".zero_point"))
        attributes = {"bits": self.grid.bits, "block_size": self.block, "gather_axis": 0, "quantize_axis": 1}
        return weights.graph.add("GatherBlockQuantized", *inputs, attributes=attributes, domain=MICROSOFT)


def block_storage(number_format: NumberFormat, columns: int) -> BlockStorage | None:
    """How MatMulNBits takes rows of so many weights of this format; None where it cannot."""
    grid = integer_grid(number_format)
    if grid is None:
        return None
    limit = grid.group or columns
    for block in BLOCKS:
        if columns % block == 0 and limit % block == 0:
            return BlockStorage(grid, block)
    return None
