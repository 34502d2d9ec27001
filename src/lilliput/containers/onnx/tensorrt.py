# SPDX-License-Identifier: Apache-2.0
"""The published rules of TensorRT's explicit quantization, checked on a graph before any GPU sees it.

types          INT8, INT4 (weights alone), FP8 E4M3; 8-bit unsigned codes are none of its types
zero-point     absent, or all zero: the scheme is symmetric
scale          a build-time constant, positive; one number, one a channel, or of the rank of the tensor for blocks
weights        a quantized weight is followed by DequantizeLinear, and that by the operator that multiplies with it
activations    quantized and dequantized again with the same scale, one scale for all of a tensor
both           8-bit weights need 8-bit inputs: weights alone are for 4 bits
operators      those of the standard domain; no DynamicQuantizeLinear, no integer products, no DOUBLE
source         NVIDIA TensorRT documentation: "Working with Quantized Types" and the operators Quantize, Dequantize
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lilliput.containers.onnx.constants import Constants
from lilliput.containers.onnx.graph import ElementType, Initializer, Node

Rule = Literal["types", "zero-point", "scale", "weights", "activations", "both", "operators"]
_CODES = (ElementType.INT8, ElementType.INT4, ElementType.FLOAT8E4M3FN)
_PRODUCTS = ("Gemm", "MatMul", "Conv")
_FORBIDDEN = ("DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv", "QGemm")


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that TensorRT would refuse. message: which constant or operator, what was found, what is allowed."""

    rule: Rule
    message: str


def lint(constants: Constants) -> tuple[Violation, ...]:
    """Every violation in a graph, in its order; none for one that keeps the rules."""
    return tuple(_Lint(constants).run())


class _Lint:
    def __init__(self, constants: Constants) -> None:
        self._constants = constants
        self._graph = constants.graph
        self._producers: Mapping[str, Node] = {name: node for node in self._graph.nodes for name in node.outputs}
        self._readers: dict[str, list[Node]] = {}
        for node in self._graph.nodes:
            for name in node.inputs:
                self._readers.setdefault(name, []).append(node)

    def run(self) -> Iterator[Violation]:
        for item in self._graph.initializers.values():
            if item.element is ElementType.DOUBLE:
                yield Violation("operators", f"constant '{item.name}' is DOUBLE; FLOAT is allowed")
        for node in self._graph.nodes:
            yield from self._operator(node)
            if node.operation in ("QuantizeLinear", "DequantizeLinear"):
                yield from self._parameters(node)
            if node.operation == "QuantizeLinear":
                yield from self._activation(node)
            elif node.operation == "DequantizeLinear" and node.inputs[0] in self._graph.initializers:
                yield from self._weight(node)
            elif node.operation == "DequantizeLinear":
                yield from self._dequantized_activation(node)

    def _operator(self, node: Node) -> Iterator[Violation]:
        if node.domain not in ("", "ai.onnx"):
            yield Violation("operators", f"{node.operation} is of domain {node.domain}; the standard one is allowed")
        if node.operation in _FORBIDDEN:
            yield Violation("operators", f"{node.operation} is no operator of it; use QuantizeLinear, DequantizeLinear")
        if node.operation == "Cast" and node.attributes.get("to") == ElementType.DOUBLE:
            yield Violation("operators", f"a Cast makes '{node.outputs[0]}' DOUBLE; FLOAT is allowed")

    def _parameters(self, node: Node) -> Iterator[Violation]:
        """Scale and zero point of either operator."""
        shown = f"{node.operation} of '{node.inputs[0]}'"
        scale = self._graph.initializers.get(node.inputs[1])
        if scale is None:
            yield Violation("scale", f"{shown}: its scale '{node.inputs[1]}' is computed; a constant is allowed")
        elif not bool(np.all(self._constants.floats(scale.name).astype(np.float32) > 0)):
            yield Violation("scale", f"{shown}: a scale is not positive")
        if len(node.inputs) > 2 and node.inputs[2]:
            point = self._graph.initializers.get(node.inputs[2])
            if point is None or bool(np.any(self._constants.array(point.name))):
                yield Violation("zero-point", f"{shown}: zero points are not all 0")

    def _weight(self, node: Node) -> Iterator[Violation]:
        """A quantized constant and what reads it."""
        codes = self._graph.initializers[node.inputs[0]]
        if codes.element not in _CODES:
            allowed = ", ".join(kind.name for kind in _CODES)
            yield Violation("types", f"weight '{codes.name}' is {codes.element.name}; {allowed} are allowed")
        scale = self._graph.initializers.get(node.inputs[1])
        if scale is not None:
            yield from _scale_shape(node, codes, scale)
        readers = self._readers.get(node.outputs[0], [])
        strangers = [reader.operation for reader in readers if reader.operation not in _PRODUCTS]
        if strangers or not readers:
            found = strangers[0] if strangers else "nothing"
            yield Violation("weights", f"weight '{codes.name}' goes into {found}; {', '.join(_PRODUCTS)} are allowed")
        if codes.element is not ElementType.INT4 and not all(self._has_quantized_input(item, node) for item in readers):
            yield Violation("both", f"weight '{codes.name}' is {codes.element.name} and its input is not quantized")

    def _activation(self, node: Node) -> Iterator[Violation]:
        readers = self._readers.get(node.outputs[0], [])
        if not readers or any(
            reader.operation != "DequantizeLinear" or reader.inputs[1] != node.inputs[1] for reader in readers
        ):
            yield Violation(
                "activations", f"QuantizeLinear of '{node.inputs[0]}' is not followed by DequantizeLinear of its scale"
            )
        scale = self._graph.initializers.get(node.inputs[1])
        if scale is not None and scale.shape not in ((), (1,)):
            yield Violation(
                "activations", f"QuantizeLinear of '{node.inputs[0]}': scales {list(scale.shape)}; one is allowed"
            )
        kind = self._code_type(node)
        if kind not in (ElementType.INT8, ElementType.FLOAT8E4M3FN):
            yield Violation(
                "types", f"QuantizeLinear of '{node.inputs[0]}' gives {kind.name}; INT8 and FLOAT8E4M3FN are allowed"
            )

    def _dequantized_activation(self, node: Node) -> Iterator[Violation]:
        before = self._producers.get(node.inputs[0])
        if before is None or before.operation != "QuantizeLinear":
            yield Violation("activations", f"DequantizeLinear of '{node.inputs[0]}' follows no QuantizeLinear")

    def _code_type(self, node: Node) -> ElementType:
        """What QuantizeLinear gives: the type of its zero point, or as an attribute says, else unsigned bytes."""
        if len(node.inputs) > 2 and node.inputs[2] in self._graph.initializers:
            return self._graph.initializers[node.inputs[2]].element
        kind = node.attributes.get("output_dtype")
        return ElementType(kind) if isinstance(kind, int) and kind in list(ElementType) else ElementType.UINT8

    def _has_quantized_input(self, reader: Node, weight: Node) -> bool:
        others = [name for name in reader.inputs[:2] if name != weight.outputs[0]]
        makers = [self._producers.get(name) for name in others]
        return all(maker is not None and maker.operation == "DequantizeLinear" for maker in makers)


def _scale_shape(node: Node, codes: Initializer, scale: Initializer) -> Iterator[Violation]:
    """One number, one a channel, or blocks along one axis."""
    axis = node.attributes.get("axis", 1)
    block = node.attributes.get("block_size", 0)
    shown = f"weight '{codes.name}' {list(codes.shape)}: scales {list(scale.shape)}"
    if not isinstance(axis, int) or not isinstance(block, int) or axis >= len(codes.shape):
        yield Violation("scale", f"{shown} along axis {axis}")
    elif scale.shape in ((), (1,)):
        return
    elif len(scale.shape) == 1:
        if scale.shape[0] != codes.shape[axis]:
            yield Violation("scale", f"{shown}, of which axis {axis} needs {codes.shape[axis]}")
    elif (
        len(scale.shape) != len(codes.shape)
        or block < 1
        or any(
            have * (block if place == axis else 1) != whole
            for place, (have, whole) in enumerate(zip(scale.shape, codes.shape, strict=True))
        )
    ):
        yield Violation("scale", f"{shown} in blocks of {block}")
