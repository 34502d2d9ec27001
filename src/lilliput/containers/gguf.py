# SPDX-License-Identifier: Apache-2.0
"""GGUF, the container of llama.cpp and everything built on it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lilliput.architectures import NOT_IN_GGUF
from lilliput.checkpoints.model_source import ModelSource
from lilliput.containers import gguf_types
from lilliput.containers.container import Contents, PartLayout, Split, Written
from lilliput.containers.gguf_metadata import file_metadata
from lilliput.containers.gguf_model import GgufModel
from lilliput.containers.gguf_writer import gguf_layout
from lilliput.containers.part_writer import verify_written, write_parts
from lilliput.errors import ContainerError
from lilliput.formats import NumberFormat
from lilliput.records import QuantizedTensor, Role


class Gguf:
    """One file or a split; headers first, then each tensor's blocks, aligned to 32 bytes."""

    name = "gguf"
    suffix = ".gguf"
    float_roles: tuple[Role, ...] = ()

    def recognises(self, path: Path) -> bool:
        """The magic, or the name where the file is too short to have one."""
        with path.open("rb") as file:
            return file.read(len(gguf_types.MAGIC)) == gguf_types.MAGIC or path.suffix == self.suffix

    def open(self, path: Path) -> ModelSource:
        """Open a file, or the split that it is a part of."""
        return GgufModel(path)

    def holds(self, number_format: NumberFormat) -> bool:
        """Formats that are ggml types."""
        return gguf_types.holds(number_format)

    def layout(self, contents: Contents, file_name: str, split: Split) -> tuple[PartLayout, ...]:
        """Headers and places. Raises ContainerError for a format that is no ggml type, or a sidecar."""
        if contents.config.family in NOT_IN_GGUF:
            name = contents.config.unknown.model_type if contents.config.unknown else contents.config.family
            raise ContainerError(
                f"GGUF has no name for {name} models, so nothing but lilliput could read the file; "
                "give -o NAME.safetensors for lilliput's own layout"
            )
        heads = {item.name for item in contents.config.prediction_heads}
        for header in contents.headers:
            if header.name in heads:
                raise ContainerError(
                    f"tensor '{header.name}' predicts further tokens, and GGUF has no place for it in this family; "
                    "give -o NAME.safetensors, or quantize the original folder to GGUF, which leaves it out and says so"
                )
            if not self.holds(header.format):
                raise ContainerError(
                    f"tensor '{header.name}': GGUF has no type for {header.format.name.upper()}; give "
                    "-o NAME.safetensors for lilliput's own layout, or choose a type that llama.cpp knows, such as Q4_K"
                )
            if contents.sidecars.get(header.name):
                raise ContainerError(f"tensor '{header.name}': GGUF cannot hold sidecars; write lilliput's own layout")
        return gguf_layout(file_metadata(contents), contents.headers, file_name, split)

    def write(self, parts: tuple[PartLayout, ...], tensors: Iterable[QuantizedTensor], folder: Path) -> Written:
        """Write the parts, one tensor in memory at a time."""
        return write_parts(parts, tensors, folder)

    def verify(self, written: Written) -> None:
        """Reopen, compare, decode."""
        verify_written(written, GgufModel(written.paths[0]))
