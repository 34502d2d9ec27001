# SPDX-License-Identifier: Apache-2.0
"""LiteRT: one .tflite file of known shapes, int8 weights with one scale a row, inputs of products in int8 as they come.

The graph is that of `containers.onnx` with fixed shapes: one sequence of SEQUENCE tokens, no cache, and a mask for
attention that is not causal. A product of int8 codes is LiteRT's FULLY_CONNECTED with float inputs, which its kernels
quantize row by row to int8; its scales are applied to what comes out. The embedding is looked up in codes. Of an
encoder-decoder the encoder is written.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from lilliput.architectures.encoder_half import program_of_fixed_graphs
from lilliput.architectures.program import Program
from lilliput.arrays import Array
from lilliput.containers.container import Contents, PartLayout, Split, Written
from lilliput.containers.litert.reader import LiteRtFile
from lilliput.containers.litert.translation import CODES_TO_FLOATS, PRODUCT, Translator
from lilliput.containers.onnx.container import Onnx
from lilliput.containers.onnx.dequantized import DequantizedStorage, dequantized_storage
from lilliput.containers.onnx.graph import ElementType, Graph
from lilliput.containers.onnx.integer_levels import integer_grid
from lilliput.containers.onnx.operations import GraphStyle, tensors_read, translate
from lilliput.containers.onnx.qonnx import WideStorage
from lilliput.containers.onnx.weights import PLAIN, RowRange, Storage, Stored, Weights
from lilliput.containers.part_writer import write_parts
from lilliput.errors import ContainerError
from lilliput.formats import NumberFormat
from lilliput.formats.scoped_number import ScopedNumber
from lilliput.records import QuantizedTensor, Role, TensorHeader

# Tokens of the one sequence, or the model's context where that is shorter.
SEQUENCE = 128
PAGE = 4096


@dataclass(frozen=True, slots=True)
class CodesStorage:
    """Codes int8 and scales float32, as `DequantizedStorage` lays them out."""

    inner: DequantizedStorage

    def arrays(self, header: TensorHeader) -> tuple[Stored, ...]:
        """Codes, scales."""
        codes, scale = self.inner.arrays(header)
        return codes, replace(scale, shape=scale.shape or (1,))

    def planes(self, tensor: QuantizedTensor) -> dict[str, Array]:
        """Our codes and scales."""
        return self.inner.planes(tensor)

    def linear(self, weights: Weights, x: str, name: str, rows: RowRange) -> str:
        """A product of codes, then the scales of its columns."""
        product = weights.graph.add(PRODUCT, x, weights.array(name, ".codes", rows=rows))
        of_scale = rows if self.inner.sharing == "channel" else None
        return weights.graph.add("Mul", product, weights.array(name, ".scale", rows=of_scale))

    def lookup(self, weights: Weights, ids: str, name: str) -> str:
        """Rows of codes as floats, times their scales."""
        graph = weights.graph
        found = graph.add(CODES_TO_FLOATS, graph.add("Gather", weights.array(name, ".codes"), ids))
        if self.inner.sharing == "tensor":
            return graph.add("Mul", found, weights.array(name, ".scale"))
        scale = weights.array(name, ".scale", (weights.header(name).rows, 1))
        return graph.add("Mul", found, graph.add("Gather", scale, ids))


class LiteRt(Onnx):
    """One file."""

    name = "litert"
    suffix = ".tflite"
    described = "a .tflite file"
    is_read = False
    float_roles: tuple[Role, ...] = ()
    holds_text = (
        "a .tflite file holds integers with one scale a row or tensor, without zero points and without -128 "
        "(INT8_CHANNEL_NARROW, INT8_TENSOR_NARROW; INT4_CHANNEL and others below 8 bits travel as 8), and F32, F16, "
        "BF16 (as F32)"
    )

    def recognises(self, path: Path) -> bool:
        """A file with the identifier of .tflite."""
        return False

    def storage(self, number_format: NumberFormat, columns: int) -> Storage | None:
        """Codes of 8 bits, or floats."""
        if number_format.name in PLAIN:
            return WideStorage()
        found = dequantized_storage(number_format, columns)
        signed = (ElementType.INT8, ElementType.INT4)
        grid = integer_grid(number_format)
        if found is None or grid is None or found.sharing == "block" or found.element not in signed:
            return None
        # Kernels for x86 multiply magnitudes and signs of bytes apart, and -128 has no magnitude in a byte.
        if not grid.is_balanced and isinstance(number_format, ScopedNumber) and number_format.code_bits == 8:
            return None
        return CodesStorage(replace(found, element=ElementType.INT8))

    def programs(self, contents: Contents) -> tuple[Program, ...]:
        """The program; of an encoder-decoder the encoder's, without what it makes for the decoder."""
        return (program_of_fixed_graphs(contents.architecture, contents.config),)

    def read_names(self, contents: Contents) -> frozenset[str]:
        """Tensors that the graph reads; a decoder's are left out."""
        if contents.config.task == "sequence_to_sequence":
            return tensors_read(*self.programs(contents))
        return super().read_names(contents)

    def layout(self, contents: Contents, file_name: str, split: Split) -> tuple[PartLayout, ...]:
        """One file: the flatbuffer, then the weights. Raises ContainerError, UnsupportedModelError."""
        if split.max_bytes is not None or split.max_tensors is not None:
            raise ContainerError("a .tflite model is one file; leave --split-max-size out")
        placed = self.placed(contents)
        headers = {header.name: header for header in contents.headers}
        weights = Weights(Graph(), headers, placed.storages, placed.places)
        length = min(SEQUENCE, contents.config.context_length)
        (program,) = self.programs(contents)
        translate(program, weights, contents.config, GraphStyle("standard", fixed=(1, length)))
        model = Translator(weights.graph).run()
        for key, value in contents.metadata.items():
            model.metadata[key] = value if isinstance(value, str) else json.dumps(value)
        prefix = model.to_bytes(PAGE)
        tensors = tuple(
            replace(item, pieces=tuple(replace(piece, start=len(prefix) + piece.start) for piece in item.pieces))
            for item in placed.tensors
        )
        return (PartLayout(file_name, prefix, tensors, len(prefix) + placed.size),)

    def write(self, parts: tuple[PartLayout, ...], tensors: Iterable[QuantizedTensor], folder: Path) -> Written:
        """Write the file into `folder`, one tensor in memory at a time."""
        digests: dict[str, str] = {}
        written = write_parts(parts, self.stored(parts, tensors, digests), folder)
        return Written(written.paths, digests)

    def verify(self, written: Written) -> None:
        """Reopen with our reader, decode every weight, compare the values."""
        file = LiteRtFile(written.paths[0])
        try:
            if set(file.weights) != set(written.digests):
                differing = ", ".join(sorted(set(file.weights) ^ set(written.digests))[:4])
                raise ContainerError(f"{file.path.name}: written and read tensors differ: {differing}")
            for name, digest in written.digests.items():
                if file.value_digest(name) != digest:
                    raise ContainerError(
                        f"{file.path.name}: tensor '{name}' read back differs from what was written; check the disk"
                    )
        finally:
            file.close()
