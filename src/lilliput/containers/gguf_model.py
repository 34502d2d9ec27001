# SPDX-License-Identifier: Apache-2.0
"""A GGUF file, or all parts of a split one, as a ModelSource."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from lilliput.architectures import architecture_for_gguf
from lilliput.architectures.architecture import Json
from lilliput.checkpoints.fingerprint import model_fingerprint
from lilliput.checkpoints.mapped_file import planes_of_bytes
from lilliput.checkpoints.model_source import Provenance
from lilliput.checkpoints.table_check import checked_table
from lilliput.containers.gguf_reader import GgufFile
from lilliput.containers.gguf_types import format_of
from lilliput.errors import ContainerError
from lilliput.records import QuantizedTensor, TensorHeader
from lilliput.text.gguf_metadata import KEYS, vocabulary_from_metadata
from lilliput.text.vocabulary import Vocabulary

# `general.*` keys that say how this file is stored, not what the model is.
STORAGE_KEYS = frozenset(("architecture", "file_type", "quantization_version", "alignment"))
# Rotary frequencies that converters of 2023 stored a copy of in every block; llama.cpp skips them too.
_IGNORED = (".attn_rot_embd.weight", ".attn_rot_embd")
_PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def open_parts(path: Path) -> tuple[GgufFile, ...]:
    """The file, or every part of the split that it belongs to, first part first.

    Raises ContainerError: a missing part, a part of another model, a split whose name was changed.
    """
    first = GgufFile(path)
    count = first.metadata.get("split.count", 1)
    if not isinstance(count, int) or not 1 <= count <= 99999:
        raise ContainerError(f"{path.name}: split.count is {count!r}; 1 to 99999 is possible")
    if count == 1:
        return (first,)
    named = _PART.fullmatch(path.name)
    if named is None or int(named["count"]) != count:
        raise ContainerError(
            f"{path.name}: this is one of {count} parts; its name must end in -00001-of-{count:05d}.gguf"
        )
    first.close()
    parts: list[GgufFile] = []
    for number in range(1, count + 1):
        name = f"{named['stem']}-{number:05d}-of-{count:05d}.gguf"
        if not path.with_name(name).is_file():
            raise ContainerError(f"{name}: part {number} of {count} is missing; put it beside {path.name}")
        parts.append(GgufFile(path.with_name(name)))
    _check_parts(parts)
    return tuple(parts)


def _check_parts(parts: list[GgufFile]) -> None:
    seen: dict[str, str] = {}
    for index, part in enumerate(parts):
        found = (part.metadata.get("split.no"), part.metadata.get("split.count"))
        if found != (index, len(parts)):
            raise ContainerError(f"{part.path.name}: says it is part {found[0]} of {found[1]}, its name says otherwise")
        for name in part.tensors:
            if name in seen:
                raise ContainerError(f"tensor '{name}' is in two parts: {seen[name]} and {part.path.name}")
            seen[name] = part.path.name
    total = parts[0].metadata.get("split.tensors.count", len(seen))
    if total != len(seen):
        raise ContainerError(f"{parts[0].path.name}: promises {total} tensors, its {len(parts)} parts hold {len(seen)}")


class GgufModel:
    """One opened model. Every tensor is a view of the mapped file."""

    container = "gguf"

    def __init__(self, path: Path) -> None:
        """Open a file or split. Raises ContainerError or UnsupportedModelError."""
        self.path = path
        self._parts = open_parts(path)
        self._holder = {name: part for part in self._parts for name in part.tensors if not name.endswith(_IGNORED)}
        self._fingerprint: str | None = None
        self._vocabulary: Vocabulary | None = None
        self.metadata: Mapping[str, Json] = self._parts[0].metadata
        kind = self.metadata.get("general.type", "model")
        if kind != "model":
            raise ContainerError(
                f"{path.name}: holds {kind!r} data, not a model; `lilliput inspect` shows what is in it"
            )
        self.architecture = architecture_for_gguf(self.metadata)
        if not self._holder:
            raise ContainerError(f"{path.name}: holds a vocabulary without weights, so there is no model to open")
        shapes = {name: part.tensors[name].shape for name, part in self._holder.items()}
        self.config = self.architecture.config_from_gguf(self.metadata, shapes)
        self._check_table(shapes)
        self._headers = {
            name: TensorHeader(name, shapes[name], format_of(name, part.tensors[name].type))
            for name, part in self._holder.items()
        }
        self.provenance = self._read_provenance()

    @property
    def headers(self) -> Mapping[str, TensorHeader]:
        """Canonical name -> header, in file order."""
        return self._headers

    @property
    def weight_files(self) -> tuple[Path, ...]:
        """All parts."""
        return tuple(part.path for part in self._parts)

    def source_name(self, name: str) -> str:
        """GGUF's names are the canonical ones."""
        return name

    def tensor(self, name: str) -> QuantizedTensor:
        """One tensor, mapped."""
        header = self.headers[name]
        planes = planes_of_bytes(header.format, header.rows, header.columns, self._holder[name].data(name))
        return QuantizedTensor(name, header.shape, header.format, planes)

    def release(self, name: str) -> None:
        """Give the memory of a tensor's pages back."""
        self._holder[name].release(name)

    def vocabulary(self) -> Vocabulary:
        """The tokenizer from `tokenizer.ggml.*`."""
        self._vocabulary = self._vocabulary or vocabulary_from_metadata(self.metadata)
        return self._vocabulary

    def fingerprint(self) -> str:
        """sha256 over config, tokenizer and every tensor's bytes, split or not."""
        self._fingerprint = self._fingerprint or model_fingerprint(self)
        return self._fingerprint

    def close(self) -> None:
        """Let go of the maps."""
        for part in self._parts:
            part.close()

    def _check_table(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        table = checked_table(self.architecture, self.config, self.path, len(shapes), ContainerError)
        expected = {entry.name: entry for entry in table if entry.tied_to is None}
        missing = [name for name, entry in expected.items() if name not in shapes and not entry.optional]
        if missing:
            raise ContainerError(
                f"{self.path.name}: {len(missing)} tensors missing that {self.architecture.family} needs: "
                f"{', '.join(missing[:4])}{' …' if len(missing) > 4 else ''}"
            )
        for name, shape in shapes.items():
            if name not in expected:
                raise ContainerError(
                    f"{self.path.name}: tensor '{name}' is not part of {self.architecture.family}; "
                    "ignoring it would change the model, so it is refused"
                )
            if shape != expected[name].shape:
                raise ContainerError(
                    f"{self.path.name}: tensor '{name}' has shape {list(shape)}, the metadata implies "
                    f"{list(expected[name].shape)}"
                )

    def _read_provenance(self) -> Provenance:
        general: dict[str, Json] = {}
        extra: dict[str, Json] = {}
        rebuilt = self.architecture.gguf_metadata(self.config).keys() | KEYS
        for key, value in self.metadata.items():
            if key.startswith("general."):
                if key.removeprefix("general.") not in STORAGE_KEYS:
                    general[key.removeprefix("general.")] = value
            elif key not in rebuilt and not key.startswith("split."):
                extra[key] = value
        return Provenance(general, extra)
