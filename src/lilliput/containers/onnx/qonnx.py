# SPDX-License-Identifier: Apache-2.0
"""QONNX: arbitrary-precision fixed point for FPGA flows (FINN, hls4ml), as floats on a grid and Quant operators.

layout   each weight float32 [out, in], already on its grid, then Quant (domain qonnx.custom_op.general) with inputs
         scale, zero point 0 and bit width; attributes signed, narrow, rounding_mode.  value = scale * integer
scales   powers of two, one a row or tensor: the hardware shifts
inputs   of products: 8 bits under the smallest power of two that holds the range that statistics saw; floats without
results  of operations, where statistics know their ranges (`calibrate --outputs`): 8 bits likewise, 16 for the stream
         that layers add to, norms and the logits; so nothing between two products is off a grid. What a norm or a
         softmax does inside is its own
shapes   fixed: one sequence of SEQUENCE tokens, no cache, no mask
source   github.com/fastmachinelearning/qonnx, docs/qonnx-custom-ops
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from lilliput.architectures.encoder_half import place
from lilliput.architectures.program import Add, Embed, LayerNorm, Operation, RmsNorm, Scale
from lilliput.arrays import Array
from lilliput.containers.container import Contents
from lilliput.containers.onnx.graph import Attribute, ElementType, Graph
from lilliput.containers.onnx.operations import GraphStyle, Half
from lilliput.containers.onnx.profiles import OnnxStandard
from lilliput.containers.onnx.weights import PLAIN, PlainStorage, RowRange, Storage, Stored, Weights, flat_shape
from lilliput.errors import ContainerError
from lilliput.formats import NumberFormat
from lilliput.formats.fixed_point import FixedPoint
from lilliput.formats.integer_power_scale import PowerScaleInteger
from lilliput.formats.region_search import power_of_two
from lilliput.records import QuantizedTensor, TensorHeader

DOMAIN = "qonnx.custom_op.general"
# Tokens of the one sequence, or the model's context where that is shorter.
SEQUENCE = 32
_INPUT_BITS, _STREAM_BITS = 8, 16
_QUANT: dict[str, Attribute] = {"signed": 1, "narrow": 0, "rounding_mode": "ROUND"}


@dataclass(frozen=True, slots=True)
class FixedPointStorage:
    """Floats on a grid. bits: of its integers.  is_of_rows: a scale a row.  input_range: of inputs, None for floats."""

    number_format: NumberFormat
    bits: int
    is_of_rows: bool
    input_range: float | None = None

    def arrays(self, header: TensorHeader) -> tuple[Stored, ...]:
        """Values and scales."""
        count = header.rows if self.is_of_rows else 1
        return (
            Stored("", ElementType.FLOAT, (header.rows, header.columns), header.rows * header.columns * 4),
            Stored(".scale", ElementType.FLOAT, (count, 1), count * 4),
        )

    def planes(self, tensor: QuantizedTensor) -> dict[str, Array]:
        """The decoded values, exactly, and their scales."""
        if isinstance(tensor.format, FixedPoint):
            step = tensor.format.values(np.ones((1, 1)), {}) - tensor.format.values(np.zeros((1, 1)), {})
        else:
            step = power_of_two(np.asarray(tensor.planes["exponent"]))
        return {
            "": tensor.dequantize().reshape(tensor.rows, -1).astype("<f4"),
            ".scale": np.asarray(step, dtype="<f4").reshape(-1, 1),
        }

    def linear(self, weights: Weights, x: str, name: str, rows: RowRange) -> str:
        """Gemm of what Quant gives."""
        graph = weights.graph
        if self.input_range is not None:
            x = _quant(graph, x, graph.constant(power_step(self.input_range, _INPUT_BITS), "float32"), _INPUT_BITS)
        return graph.add("Gemm", x, self._rounded(weights, name, rows), attributes={"transB": 1})

    def lookup(self, weights: Weights, ids: str, name: str) -> str:
        """Rows of what Quant gives."""
        return weights.graph.add("Gather", self._rounded(weights, name, None), ids)

    def _rounded(self, weights: Weights, name: str, rows: RowRange) -> str:
        scale = weights.array(name, ".scale", rows=rows if self.is_of_rows else None)
        return _quant(weights.graph, weights.array(name, "", rows=rows), scale, self.bits)


class WideStorage(PlainStorage):
    """Floats as float32: executors of QONNX go through numpy, which has no BF16."""

    def arrays(self, header: TensorHeader) -> tuple[Stored, ...]:
        """One array."""
        return (Stored("", ElementType.FLOAT, flat_shape(header), header.rows * header.columns * 4),)

    def planes(self, tensor: QuantizedTensor) -> dict[str, Array]:
        """The same values."""
        return {"": tensor.dequantize().astype("<f4")}

    def lookup(self, weights: Weights, ids: str, name: str) -> str:
        """Gather."""
        return weights.graph.add("Gather", weights.array(name, ""), ids)


class Qonnx(OnnxStandard):
    """Fixed point with power-of-two scales."""

    name = "qonnx"
    suffix = ".qonnx"
    uses_ranges = True
    is_read = False
    holds_text = (
        "QONNX folders hold powers of two as scales: INT8_CHANNEL_POW2 and other INT<bits>_CHANNEL_POW2, _TENSOR_POW2, "
        "FIXED<m>.<n>, and F32, F16, BF16"
    )

    def storage(self, number_format: NumberFormat, columns: int) -> Storage | None:
        """Fixed point; what has groups does not broadcast."""
        if number_format.name in PLAIN:
            return WideStorage()
        if isinstance(number_format, FixedPoint):
            return FixedPointStorage(number_format, number_format.code_bits, is_of_rows=False)
        if isinstance(number_format, PowerScaleInteger) and number_format.region.columns is None:
            is_of_rows = number_format.region.rows is not None
            return FixedPointStorage(number_format, number_format.code_bits, is_of_rows)
        return None

    def placed_storage(self, storage: Storage, header: TensorHeader, contents: Contents) -> Storage:
        """With the range of its inputs, where statistics know it."""
        if isinstance(storage, FixedPointStorage):
            return replace(storage, input_range=contents.input_ranges.get(header.name))
        return storage

    def graph_style(self, contents: Contents, half: Half) -> GraphStyle:
        """All shapes known, and results on grids where their ranges are."""
        fixed = 1, min(SEQUENCE, contents.config.context_length)
        ranges = contents.output_ranges
        if half != "whole" or not ranges:
            return GraphStyle("standard", half=half, fixed=fixed)
        (program,) = self.programs(contents)

        def rounded(graph: Graph, value: str, operation: Operation, number: int) -> str:
            ends = ranges.get(place(number, operation))
            if ends is None:
                raise ContainerError(
                    f"operation {place(number, operation)}: its range is not known; calibrate this model with "
                    "--outputs anew, or leave --statistics out"
                )
            bits = result_bits(operation, is_last=number == len(program.operations) - 1)
            step = power_step(max(-ends[0], ends[1]), bits)
            return _quant(graph, value, graph.constant(step, "float32"), bits)

        return GraphStyle("standard", half=half, fixed=fixed, rounded=rounded)


def result_bits(operation: Operation, *, is_last: bool) -> int:
    """Bits of an operation's result."""
    return _STREAM_BITS if is_last or isinstance(operation, Add | Embed | LayerNorm | RmsNorm | Scale) else _INPUT_BITS


def power_step(largest: float, bits: int) -> float:
    """The smallest power of two whose codes reach a magnitude."""
    return 2.0 ** math.ceil(math.log2(max(largest, 1e-30) / (2 ** (bits - 1) - 1)))


def _quant(graph: Graph, x: str, scale: str, bits: int) -> str:
    point, width = graph.constant(0.0, "float32"), graph.constant(float(bits), "float32")
    return graph.add("Quant", x, scale, point, width, attributes=_QUANT, domain=DOMAIN)
