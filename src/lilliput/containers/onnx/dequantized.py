# SPDX-License-Identifier: Apache-2.0
"""Weights for operators of the ONNX standard: codes, a scale, and DequantizeLinear before the product.

codes    INT8 or INT4 [out, in] around zero (UINT8, UINT4 with zero points), or FLOAT8E4M3FN; two INT4 to a byte, the
         first in the low bits
scale    float32: one number, [out] (axis 0), or [out, in / block] (axis 1, block_size); zero points likewise
inputs   floats; or the same numbers quantized to a scale that was measured (QuantizeLinear, DequantizeLinear); or
         quantized to 8 bits as they come (DynamicQuantizeLinear), then MatMulInteger on the codes themselves
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from lilliput.arrays import Array
from lilliput.containers.onnx.graph import Attribute, ElementType, Graph
from lilliput.containers.onnx.integer_levels import (
    IntegerGrid,
    integer_grid,
    integer_rows,
    row_pieces,
    with_positive_scales,
)
from lilliput.containers.onnx.weights import RowRange, Stored, Weights
from lilliput.errors import ContainerError
from lilliput.formats import NumberFormat
from lilliput.formats.eight_bit_float import EightBitFloat
from lilliput.formats.scoped_number import pack_bits
from lilliput.records import QuantizedTensor, TensorHeader

# Largest code of an activation: -128 stays unused, as kernels that multiply signed bytes in pairs may overflow on it.
_LARGEST = {ElementType.INT8: 127.0, ElementType.FLOAT8E4M3FN: 448.0}
_SIGNED = {8: ElementType.INT8, 4: ElementType.INT4}
_UNSIGNED = {8: ElementType.UINT8, 4: ElementType.UINT4}
Sharing = Literal["tensor", "channel", "block"]


@dataclass(frozen=True, slots=True)
class DequantizedStorage:
    """One weight. element: of the codes.  sharing, block: what one scale is for, and the columns of a block.

    has_positive_scales: scales are made positive, which the codes must allow.
    inputs: how what is multiplied with it is quantized.  input_range: largest magnitude of that, where it is static.
    """

    element: ElementType
    sharing: Sharing
    block: int
    has_zero_point: bool
    has_positive_scales: bool = False
    inputs: Literal["float", "static", "dynamic"] = "float"
    input_range: float = 0.0

    def arrays(self, header: TensorHeader) -> tuple[Stored, ...]:
        """Codes, scales, zero points."""
        rows, columns = header.rows, header.columns
        shape = self._scale_shape(rows, columns)
        count = int(np.prod(shape, dtype=np.int64))
        found = [
            Stored(".codes", self.element, (rows, columns), -(-rows * columns * self.element.bits // 8)),
            Stored(".scale", ElementType.FLOAT, shape, count * 4),
        ]
        if self.has_zero_point:
            found.append(Stored(".zero_point", self.element, shape, -(-count * self.element.bits // 8)))
        return tuple(found)

    def planes(self, tensor: QuantizedTensor) -> dict[str, Array]:
        """Our codes and parameters, laid out for the operators."""
        planes = {name: np.asarray(array) for name, array in tensor.planes.items()}
        if self.element is ElementType.FLOAT8E4M3FN:
            codes_fp8 = planes["codes"]
            scale = np.ascontiguousarray(planes["scale"], dtype="<f4")
            if self.has_positive_scales:
                # The highest bit of a code is its sign.
                codes_fp8 = np.where(scale < 0.0, codes_fp8 ^ np.uint8(0x80), codes_fp8)
                codes_fp8 = np.where(scale == 0.0, np.uint8(0), codes_fp8)
                scale = np.where(scale == 0.0, np.float32(1.0), np.abs(scale))
            shape = self._scale_shape(tensor.rows, tensor.columns)
            return {".codes": np.ascontiguousarray(codes_fp8, dtype=np.uint8), ".scale": scale.reshape(shape)}
        codes, scales, points = [], [], []
        for piece in row_pieces(tensor.rows, tensor.columns, tensor.format):
            part = tensor.format.row_range(planes, piece.start, piece.stop)
            rows = integer_rows(tensor.format, part, tensor.columns, piece.stop - piece.start)
            if self.has_positive_scales:
                rows = with_positive_scales(rows, self._grid(tensor.format).bits)
            codes.append(self._packed(rows.codes, tensor.format))
            scales.append(rows.scale)
            points.append(rows.zero_point)
        shape = self._scale_shape(tensor.rows, tensor.columns)
        scale = np.concatenate(scales)[:1] if self.sharing == "tensor" else np.concatenate(scales)
        found: dict[str, Array] = {".codes": np.concatenate(codes), ".scale": scale.astype("<f4").reshape(shape)}
        if self.has_zero_point:
            zero_point = np.concatenate([point for point in points if point is not None]).reshape(1, -1)
            found[".zero_point"] = pack_bits(zero_point, self.element.bits).reshape(-1)
        return found

    def linear(self, weights: Weights, x: str, name: str, rows: RowRange) -> str:
        """Gemm with the dequantized weight, or MatMulInteger with its codes."""
        graph = weights.graph
        if self.inputs == "dynamic":
            return self._integer_product(weights, x, name, rows)
        if self.inputs == "static":
            x = self._rounded_inputs(graph, x)
        values = self._dequantize(weights, name, rows)
        return graph.add("Gemm", x, values, attributes={"transB": 1})

    def lookup(self, weights: Weights, ids: str, name: str) -> str:
        """Gather codes and scales of the rows, then DequantizeLinear. Raises ContainerError where no tool does that."""
        if self.element.bits != 8 or self.sharing == "block" or self.element is ElementType.FLOAT8E4M3FN:
            kind = weights.header(name).format.name.upper()
            raise ContainerError(
                f"tensor '{name}': rows of {kind} cannot be looked up with standard operators; choose INT8_CHANNEL, or "
                "keep it in F16, in a recipe: {role: token_embedding, format: F16}"
            )
        graph = weights.graph
        found = [graph.add("Gather", weights.array(name, ".codes"), ids)]
        suffixes = (".scale", ".zero_point") if self.has_zero_point else (".scale",)
        for suffix in suffixes:
            array = weights.array(name, suffix)
            found.append(array if self.sharing == "tensor" else graph.add("Gather", array, ids))
        return graph.add("DequantizeLinear", *found, attributes={"axis": 0})

    def _dequantize(self, weights: Weights, name: str, rows: RowRange) -> str:
        of_scale = None if self.sharing == "tensor" else rows
        inputs = [weights.array(name, ".codes", rows=rows), weights.array(name, ".scale", rows=of_scale)]
        if self.has_zero_point:
            if rows is not None and self.element.bits < 8:
                raise ContainerError(f"tensor '{name}': packed zero points of a fused weight cannot be cut; use 8 bits")
            inputs.append(weights.array(name, ".zero_point", rows=of_scale))
        attributes: dict[str, Attribute] = {"axis": 0}
        if self.sharing == "block":
            attributes = {"axis": 1, "block_size": self.block}
        return weights.graph.add("DequantizeLinear", *inputs, attributes=attributes)

    def _rounded_inputs(self, graph: Graph, x: str) -> str:
        """QuantizeLinear and DequantizeLinear around zero, one scale for all."""
        kind = ElementType.FLOAT8E4M3FN if self.element is ElementType.FLOAT8E4M3FN else ElementType.INT8
        scale = graph.constant(self.input_range / _LARGEST[kind], "float32")
        if kind is ElementType.INT8:
            zero = graph.constant(0, "int8")
            codes = graph.add("QuantizeLinear", x, scale, zero)
            return graph.add("DequantizeLinear", codes, scale, zero)
        codes = graph.add("QuantizeLinear", x, scale, attributes={"output_dtype": int(kind)})
        return graph.add("DequantizeLinear", codes, scale)

    def _integer_product(self, weights: Weights, x: str, name: str, rows: RowRange) -> str:
        """Products of bytes, summed in int32, times both scales."""
        graph = weights.graph
        codes, x_scale, x_zero = graph.add_many("DynamicQuantizeLinear", (x,), 3)
        weight = graph.add("Transpose", weights.array(name, ".codes", rows=rows), attributes={"perm": (1, 0)})
        sums = graph.add("MatMulInteger", codes, weight, x_zero)
        scale = weights.array(name, ".scale", rows=None if self.sharing == "tensor" else rows)
        both = graph.add("Mul", x_scale, scale)
        return graph.add("Mul", graph.add("Cast", sums, attributes={"to": int(ElementType.FLOAT)}), both)

    def _scale_shape(self, rows: int, columns: int) -> tuple[int, ...]:
        match self.sharing:
            case "tensor":
                return ()
            case "channel":
                return (rows,)
            case _:
                return (rows, columns // self.block)

    def _grid(self, number_format: NumberFormat) -> IntegerGrid:
        grid = integer_grid(number_format)
        assert grid is not None, number_format.name
        return grid

    def _packed(self, codes: Array, number_format: NumberFormat) -> Array:
        """Codes of the grid as the element type has them."""
        grid, bits = self._grid(number_format), self.element.bits
        if not self.has_zero_point:
            # From codes whose zero is the middle of theirs to two's complement of as many bits as are stored.
            codes = (codes.astype(np.int16) - (1 << (grid.bits - 1))).astype(np.int8).view(np.uint8)
            codes = codes & np.uint8((1 << bits) - 1)
        return pack_bits(codes, bits)


def dequantized_storage(number_format: NumberFormat, columns: int) -> DequantizedStorage | None:
    """How DequantizeLinear takes rows of so many weights of this format; None where it cannot."""
    if isinstance(number_format, EightBitFloat):
        name = number_format.region.name
        if number_format.name not in ("fp8_e4m3_channel", "fp8_e4m3_tensor"):
            return None
        sharing: Sharing = "channel" if name == "channel" else "tensor"
        return DequantizedStorage(ElementType.FLOAT8E4M3FN, sharing, 0, has_zero_point=False)
    grid = integer_grid(number_format)
    if grid is None or (grid.bits < 8 and columns % 2):
        return None
    element = (_UNSIGNED if grid.has_zero_point else _SIGNED)[max(grid.bits, 4)]
    if grid.group is not None:
        return DequantizedStorage(element, "block", grid.group, grid.has_zero_point)
    sharing = "tensor" if number_format.row_step is None else "channel"
    return DequantizedStorage(element, sharing, 0, grid.has_zero_point)
