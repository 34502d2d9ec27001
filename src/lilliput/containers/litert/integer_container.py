# SPDX-License-Identifier: Apache-2.0
"""LiteRT without floats: one .int8.tflite file of an encoder, every activation in 8 or 16 bits under a measured scale.

The graph is made of the Program itself (`integers`). Codes of matrices follow the flatbuffer; scales, biases and what
norms multiply with lie inside it and are put there when all tensors have passed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lilliput.architectures.architecture import ModelConfig
from lilliput.architectures.encoder_half import program_of_fixed_graphs
from lilliput.arrays import FloatArray
from lilliput.containers.container import Contents, PartLayout, Piece, PlacedTensor, Split, Written
from lilliput.containers.litert.container import PAGE, SEQUENCE, CodesStorage, LiteRt
from lilliput.containers.litert.integers import IntegerTranslator, Late, Weight
from lilliput.containers.litert.model import Model, Placed
from lilliput.containers.litert.reader import ROUNDED, decoded, fill
from lilliput.containers.onnx.reader import digest_of, value_digest
from lilliput.containers.onnx.weights import Storage
from lilliput.containers.part_writer import disk_error, write_parts
from lilliput.errors import ContainerError
from lilliput.formats import NumberFormat
from lilliput.records import QuantizedTensor


@dataclass(frozen=True, slots=True)
class IntegerLayout(PartLayout):
    """late: constants of the flatbuffer that follow from weights.  floats: tensors that travel as such constants."""

    late: tuple[Late, ...]
    floats: frozenset[str]


class IntegerLiteRt(LiteRt):
    """One file."""

    name = "litert-int8"
    suffix = ".int8.tflite"
    described = "a .tflite file of integers"
    uses_ranges = True
    holds_text = (
        "an .int8.tflite file multiplies integers with one scale a row or tensor, without zero points and without -128 "
        "(INT8_CHANNEL_NARROW, INT8_TENSOR_NARROW; INT4_CHANNEL_NARROW and others below 8 bits travel as 8); vectors "
        "in F32, F16, BF16 are rounded to 16 bits, biases to 32"
    )

    def storage(self, number_format: NumberFormat, columns: int) -> Storage | None:
        """Codes of 8 bits under positive scales, or floats that are rounded later."""
        found = super().storage(number_format, columns)
        if isinstance(found, CodesStorage):
            return CodesStorage(replace(found.inner, has_positive_scales=True))
        return found

    def layout(self, contents: Contents, file_name: str, split: Split) -> tuple[PartLayout, ...]:
        """One file. Raises ContainerError for a range that nobody measured, UnsupportedModelError."""
        if split.max_bytes is not None or split.max_tensors is not None:
            raise ContainerError("a .tflite model is one file; leave --split-max-size out")
        check_is_encoder(contents.config)
        weights, tensors, size = self.placed_codes(contents)
        model, late = self.translated(contents, weights)
        for key, value in contents.metadata.items():
            model.metadata[key] = value if isinstance(value, str) else json.dumps(value)
        prefix = model.to_bytes(PAGE)
        tensors = tuple(
            replace(item, pieces=tuple(replace(piece, start=len(prefix) + piece.start) for piece in item.pieces))
            for item in tensors
        )
        floats = frozenset(name for item in late for name in item.sources if name not in weights)
        return (IntegerLayout(file_name, prefix, tensors, len(prefix) + size, late, floats),)

    def translated(self, contents: Contents, weights: Mapping[str, Weight]) -> tuple[Model, tuple[Late, ...]]:
        """The graph, and its constants that follow from weights."""
        headers = {header.name: header for header in contents.headers}
        program = program_of_fixed_graphs(contents.architecture, contents.config)
        length = min(SEQUENCE, contents.config.context_length)
        return IntegerTranslator(program, length, contents.output_ranges, weights, headers).run()

    def placed_codes(self, contents: Contents) -> tuple[dict[str, Weight], tuple[PlacedTensor, ...], int]:
        """Matrices behind the flatbuffer; everything else has no bytes of its own."""
        read = self.read_names(contents)
        weights: dict[str, Weight] = {}
        tensors: list[PlacedTensor] = []
        position = 0
        for header in contents.headers:
            storage = self.storage_of(header, contents) if header.name in read else None
            if not isinstance(storage, CodesStorage):
                tensors.append(PlacedTensor(header, ()))
                continue
            codes, scale = storage.arrays(header)
            position += -position % PAGE
            weights[header.name] = Weight(header, Placed(position, codes.nbytes), int(np.prod(scale.shape)))
            tensors.append(PlacedTensor(header, (Piece("planes", ".codes", position, codes.nbytes),)))
            position += codes.nbytes
        return weights, tuple(tensors), position

    def write(self, parts: tuple[PartLayout, ...], tensors: Iterable[QuantizedTensor], folder: Path) -> Written:
        """Codes as they come, then the constants that follow from all of them."""
        (part,) = parts
        assert isinstance(part, IntegerLayout)
        digests: dict[str, str] = {}
        known: dict[str, FloatArray] = {}
        written = write_parts(parts, self._passing(part, tensors, known, digests), folder)
        filled = {}
        for item in part.late:
            codes, scales = item.make(known)
            filled[item.tensor] = codes, scales
            if codes is not None and ROUNDED in item.tensor:
                digests[item.tensor] = digest_of([decoded(codes, scales)], item.tensor)
        try:
            fill(written.paths[0], filled)
        except OSError as failure:
            raise disk_error(part.file_name, failure) from failure
        return Written(written.paths, digests)

    def _passing(
        self, part: IntegerLayout, tensors: Iterable[QuantizedTensor], known: dict[str, FloatArray],
        digests: dict[str, str],
    ) -> Iterator[QuantizedTensor]:  # fmt: skip
        """Tensors laid out for the file; keeps what constants follow from."""
        has_codes = {placed.header.name for placed in part.tensors if placed.pieces}
        for tensor in tensors:
            if tensor.name in part.floats:
                known[tensor.name] = tensor.dequantize()
            if tensor.name not in has_codes:
                yield replace(tensor, planes={})
                continue
            storage = self.storage(tensor.format, tensor.columns)
            if storage is None:
                # What is of another kind than planned is refused by the writer.
                yield tensor
                continue
            planes = storage.planes(tensor)
            known[tensor.name] = np.asarray(planes[".scale"], np.float32).reshape(-1)
            digests[tensor.name] = value_digest(tensor)
            yield replace(tensor, planes={".codes": planes[".codes"]})


def check_is_encoder(config: ModelConfig) -> None:
    """Raise ContainerError for a decoder, saying what its graph would need."""
    if config.encoder is None and config.task != "sequence_to_sequence":
        raise ContainerError(
            f"{config.family}: integer files are of encoders (BERT, the encoders of T5 and BART); a decoder's causal "
            "masks, rotated positions and shared heads have no translation into integers alone here; -o NAME.tflite "
            "holds it, with floats between its products"
        )
