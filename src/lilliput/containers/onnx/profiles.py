# SPDX-License-Identifier: Apache-2.0
"""ONNX folders out of standard operators, for runtimes that are not ONNX Runtime alone.

.qdq.onnx        weights dequantized before the product (OpenVINO, any runtime of opset 21)
.int8.onnx       8-bit inputs too: static where statistics give their ranges, else as they come; products of bytes
.tensorrt.onnx   what TensorRT's explicit quantization takes, held to its published rules (`tensorrt.lint`)
"""

from __future__ import annotations

from dataclasses import replace

from lilliput.containers.container import Contents, input_range
from lilliput.containers.onnx.container import Onnx
from lilliput.containers.onnx.dequantized import DequantizedStorage, dequantized_storage
from lilliput.containers.onnx.graph import ElementType
from lilliput.containers.onnx.integer_levels import integer_grid
from lilliput.containers.onnx.operations import AttentionKind
from lilliput.containers.onnx.reader import OnnxFile
from lilliput.containers.onnx.tensorrt import lint
from lilliput.containers.onnx.weights import PLAIN, PlainStorage, Storage
from lilliput.errors import ContainerError
from lilliput.formats import NumberFormat
from lilliput.records import Role, TensorHeader


class OnnxStandard(Onnx):
    """Weights as DequantizeLinear, floats everywhere else."""

    name = "onnx-qdq"
    suffix = ".qdq.onnx"
    float_roles: tuple[Role, ...] = (Role.TOKEN_EMBEDDING,)
    attention: AttentionKind = "standard"
    holds_text = (
        "it holds integers of 2 to 8 bits with one scale a tensor, row or group, with zero points or without "
        "(INT4_G32, INT8_CHANNEL, INT4_G128_ASYM), FP8_E4M3_CHANNEL, FP8_E4M3_TENSOR, and F32, F16, BF16"
    )

    def storage(self, number_format: NumberFormat, columns: int) -> Storage | None:
        """Codes and DequantizeLinear."""
        return PlainStorage() if number_format.name in PLAIN else dequantized_storage(number_format, columns)


class OnnxInteger(OnnxStandard):
    """8-bit weights around zero, one scale a row or tensor, and 8-bit inputs."""

    name = "onnx-int8"
    suffix = ".int8.onnx"
    uses_ranges = True
    holds_text = (
        "it holds integers with one scale a row or tensor and no zero points (INT8_CHANNEL, INT8_TENSOR, "
        "INT4_CHANNEL), and F32, F16, BF16"
    )

    def storage(self, number_format: NumberFormat, columns: int) -> Storage | None:
        """Codes of 8 bits, whatever they need."""
        storage = super().storage(number_format, columns)
        if not isinstance(storage, DequantizedStorage):
            return storage
        if storage.sharing == "block" or storage.element not in (ElementType.INT8, ElementType.INT4):
            return None
        return replace(storage, element=ElementType.INT8)

    def placed_storage(self, storage: Storage, header: TensorHeader, contents: Contents) -> Storage:
        """Static where ranges are known, else dynamic."""
        if not isinstance(storage, DequantizedStorage):
            return storage
        if not contents.input_ranges:
            return replace(storage, inputs="dynamic")
        return replace(storage, inputs="static", input_range=input_range(header, contents))


class OnnxTensorRt(OnnxStandard):
    """Symmetric, zero point 0, scales above 0: INT8 and FP8 with static inputs, INT4 weights alone."""

    name = "onnx-tensorrt"
    suffix = ".tensorrt.onnx"
    uses_ranges = True
    has_doubles = False
    holds_text = (
        "TensorRT takes positive scales and no zero points: INT8_CHANNEL_NARROW, INT8_TENSOR_NARROW, FP8_E4M3_CHANNEL, "
        "FP8_E4M3_TENSOR (these with --statistics), INT4_G128_NARROW, INT4_CHANNEL_NARROW, powers of two (_POW2), and "
        "F32, F16, BF16"
    )

    def storage(self, number_format: NumberFormat, columns: int) -> Storage | None:
        """Codes around zero."""
        storage = super().storage(number_format, columns)
        if not isinstance(storage, DequantizedStorage):
            return storage
        # Groups of 8-bit codes would need inputs quantized in groups as well.
        if storage.has_zero_point or (storage.sharing == "block" and storage.element.bits == 8):
            return None
        grid = integer_grid(number_format)
        if grid is not None and not grid.is_balanced and not grid.has_positive_scales:
            return None
        return replace(storage, has_positive_scales=True)

    def placed_storage(self, storage: Storage, header: TensorHeader, contents: Contents) -> Storage:
        """8-bit weights get 8-bit inputs: weights alone are for 4 bits."""
        if not isinstance(storage, DequantizedStorage):
            return storage
        if header.name in self._looked_up(contents):
            raise ContainerError(
                f"tensor '{header.name}': TensorRT looks up rows of floats; keep it in F16, in a recipe: "
                "{role: token_embedding, format: F16}"
            )
        if storage.element.bits == 4:
            return storage
        return replace(storage, inputs="static", input_range=input_range(header, contents))

    def check_graph(self, file: OnnxFile) -> None:
        """The published rules."""
        for violation in lint(file.constants):
            raise ContainerError(f"{file.path.name}: against TensorRT's rule '{violation.rule}': {violation.message}")
