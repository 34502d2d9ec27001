# SPDX-License-Identifier: Apache-2.0
"""lilliput's own layout: one safetensors file that holds every number format and its sidecars (docs/format.md)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import numpy as np
from pydantic import TypeAdapter, ValidationError

from lilliput.activations.stored_range import inputs_beside, range_specs
from lilliput.architectures import architecture_of
from lilliput.architectures.architecture import Json, ModelConfig
from lilliput.arrays import Array
from lilliput.checkpoints.fingerprint import model_fingerprint
from lilliput.checkpoints.model_source import ModelSource, Provenance
from lilliput.checkpoints.safetensors_reader import MAX_HEADER_BYTES, SafetensorsFile
from lilliput.checkpoints.table_check import checked_table
from lilliput.containers.container import Contents, PartLayout, Piece, PlacedTensor, Split, Written
from lilliput.containers.part_writer import verify_written, write_parts
from lilliput.containers.side_files import embedded_files
from lilliput.errors import ContainerError, FormatError, TokenizerError
from lilliput.formats import NumberFormat, PlaneSpec, get_format
from lilliput.records import QuantizedTensor, Role, TensorHeader
from lilliput.text.vocabulary import Vocabulary

VERSION = 1
# Every array starts at a multiple of this, counted from the start of the file: one cache line.
ALIGNMENT = 64
_MARK = b'{"__metadata__":{"format":"lilliput"'
_DTYPES = {
    "|u1": "U8",
    "|i1": "I8",
    "<u2": "U16",
    "<i2": "I16",
    "<u4": "U32",
    "<i4": "I32",
    "<u8": "U64",
    "<i8": "I64",
    "<f2": "F16",
    "<f4": "F32",
    "<f8": "F64",
    "|b1": "BOOL",
}
_NUMPY = {spelled: numpy for numpy, spelled in _DTYPES.items()}
_CONFIG = TypeAdapter(ModelConfig)
_VOCABULARY = TypeAdapter(Vocabulary)
T = TypeVar("T")


class LilliputSafetensors:
    """One file; every plane and sidecar is a safetensors tensor of its own."""

    name = "lilliput"
    suffix = ".safetensors"
    float_roles: tuple[Role, ...] = ()
    holds_ranges = True

    def recognises(self, path: Path) -> bool:
        """The first bytes, which our writer always puts there."""
        with path.open("rb") as file:
            return file.read(8 + len(_MARK))[8:] == _MARK

    def open(self, path: Path) -> ModelSource:
        """Open a file. Raises ContainerError, also for a layout version newer than ours."""
        return LilliputModel(path)

    def holds(self, number_format: NumberFormat) -> bool:
        """Every format whose planes have a dtype that safetensors knows."""
        specs = number_format.stored_planes(1, number_format.block_size).values()
        return all(spec.dtype.newbyteorder("<").str in _DTYPES for spec in specs)

    def layout(self, contents: Contents, file_name: str, split: Split) -> tuple[PartLayout, ...]:
        """Header and places. Raises ContainerError when asked to split, or for a header above safetensors' limit."""
        if split != Split():
            raise ContainerError("lilliput's own layout is always one file; write GGUF to split a model")
        arrays, placed, position = _place(contents)
        header = _header_bytes(contents, arrays)
        if len(header) - 8 > MAX_HEADER_BYTES:
            raise ContainerError(f"{file_name}: a header of {len(header)} bytes is above safetensors' limit")
        moved = tuple(
            PlacedTensor(
                tensor.header,
                tuple(
                    Piece(piece.kind, piece.name, piece.start + len(header), piece.nbytes) for piece in tensor.pieces
                ),
            )
            for tensor in placed
        )
        return (PartLayout(file_name, header, moved, len(header) + position),)

    def write(self, parts: tuple[PartLayout, ...], tensors: Iterable[QuantizedTensor], folder: Path) -> Written:
        """Write the file, one tensor in memory at a time."""
        return write_parts(parts, tensors, folder)

    def verify(self, written: Written) -> None:
        """Reopen, compare, decode."""
        verify_written(written, LilliputModel(written.paths[0]))


class LilliputModel:
    """One opened file. Every array is a view of the map."""

    container = "lilliput"

    def __init__(self, path: Path) -> None:
        """Open a file. Raises ContainerError."""
        self.path = path
        self._file = SafetensorsFile(path, ContainerError)
        self._fingerprint: str | None = None
        metadata = self._file.metadata
        version = metadata.get("lilliput.version", "")
        if metadata.get("format") != "lilliput" or not version.isdigit():
            raise ContainerError(f"{path.name}: not a file of lilliput's own layout; give the model's folder instead")
        if int(version) != VERSION:
            raise ContainerError(
                f"{path.name}: layout version {version}, this lilliput reads version {VERSION}; upgrade lilliput"
            )
        self._metadata = metadata
        self.config = self._validated("lilliput.config", _CONFIG)
        self.architecture = architecture_of(self.config.family)
        general, extra = self._object("lilliput.general"), self._object("lilliput.extra")
        self.provenance = Provenance(general, extra)
        # What GGUF keeps as keys of the file: where it came from, how it was made.
        self.metadata: Mapping[str, Json] = {f"general.{key}": value for key, value in general.items()} | extra
        self._sidecars: dict[str, tuple[str, ...]] = {}
        self._headers = self._read_headers()

    @property
    def headers(self) -> Mapping[str, TensorHeader]:
        """Canonical name -> header, in file order."""
        return self._headers

    @property
    def weight_files(self) -> tuple[Path, ...]:
        """The one file."""
        return (self.path,)

    def source_name(self, name: str) -> str:
        """This layout uses canonical names."""
        return name

    def tensor(self, name: str) -> QuantizedTensor:
        """One tensor, mapped."""
        header = self.headers[name]
        planes = {
            plane: self._array(f"{name}.{plane}") for plane in header.format.stored_planes(header.rows, header.columns)
        }
        sidecars = {key: self._array(f"{name}.sidecar.{key}") for key in self._sidecars[name]}
        return QuantizedTensor(name, header.shape, header.format, planes, sidecars)

    def release(self, name: str) -> None:
        """Give the memory of a tensor's pages back."""
        header = self.headers[name]
        for plane in header.format.stored_planes(header.rows, header.columns):
            self._file.release(f"{name}.{plane}")

    def vocabulary(self) -> Vocabulary:
        """The tokenizer. Raises TokenizerError when the file has none."""
        if "lilliput.vocabulary" not in self._metadata:
            raise TokenizerError(f"{self.path.name}: this file carries no tokenizer")
        return self._validated("lilliput.vocabulary", _VOCABULARY)

    def fingerprint(self) -> str:
        """sha256 over config, tokenizer and every tensor's bytes."""
        self._fingerprint = self._fingerprint or model_fingerprint(self)
        return self._fingerprint

    def close(self) -> None:
        """Let go of the map."""
        self._file.close()

    def _json(self, key: str) -> object:
        try:
            return json.loads(self._metadata[key])
        except KeyError:
            raise ContainerError(f"{self.path.name}: metadata '{key}' is missing") from None
        except (ValueError, RecursionError) as failure:
            raise ContainerError(f"{self.path.name}: metadata '{key}' is not valid JSON: {failure}") from failure

    def _object(self, key: str) -> dict[str, Json]:
        found = self._json(key)
        if not isinstance(found, dict):
            raise ContainerError(f"{self.path.name}: metadata '{key}' is not a JSON object")
        return found

    def _validated(self, key: str, adapter: TypeAdapter[T]) -> T:
        try:
            return adapter.validate_python(self._object(key))
        except ValidationError as failure:
            first = failure.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ContainerError(f"{self.path.name}: metadata '{key}', field {where}: {first['msg']}") from failure

    def _array(self, stored: str) -> Array:
        tensor = self._file.tensors[stored]
        data = self._file.data(stored)
        dtype = np.dtype(_NUMPY[tensor.dtype])
        # A file that another tool wrote again may not be aligned.
        data = data if data.ctypes.data % dtype.alignment == 0 else data.copy()
        return data.view(dtype).reshape(tensor.shape)

    def _read_headers(self) -> dict[str, TensorHeader]:
        headers: dict[str, TensorHeader] = {}
        expected: set[str] = set()
        for name, entry in self._object("lilliput.tensors").items():
            header, sidecars = self._entry(name, entry)
            headers[name] = header
            self._sidecars[name] = sidecars
            for plane, spec in header.format.stored_planes(header.rows, header.columns).items():
                stored = self._file.tensors.get(f"{name}.{plane}")
                if stored is None:
                    raise ContainerError(f"{self.path.name}: tensor '{name}' has no plane '{plane}'")
                if (stored.dtype, stored.shape) != (_DTYPES[spec.dtype.newbyteorder("<").str], spec.shape):
                    raise ContainerError(
                        f"{self.path.name}: plane '{name}.{plane}' is {stored.dtype} {list(stored.shape)}, "
                        f"{header.format.name.upper()} {list(header.shape)} implies {list(spec.shape)}"
                    )
                expected.add(f"{name}.{plane}")
            expected |= {f"{name}.sidecar.{key}" for key in sidecars}
            self._check_range(header)
        stray = [name for name in self._file.tensors if name not in expected and not name.startswith("padding.")]
        absent = sorted(expected - self._file.tensors.keys())
        if stray or absent:
            raise ContainerError(f"{self.path.name}: arrays and tensor list disagree on '{(stray + absent)[0]}'")
        self._check_table(headers)
        return headers

    def _entry(self, name: str, entry: Json) -> tuple[TensorHeader, tuple[str, ...]]:
        found = entry if isinstance(entry, dict) else {}
        shape, kind, sidecars = found.get("shape"), found.get("format"), found.get("sidecars", [])
        if (
            not isinstance(kind, str)
            or not isinstance(shape, list)
            or not all(isinstance(axis, int) and axis > 0 for axis in shape)
            or not isinstance(sidecars, list)
        ):
            raise ContainerError(f"{self.path.name}: tensor '{name}' needs a format and a shape")
        try:
            number_format = get_format(kind)
            axes = tuple(axis for axis in shape if isinstance(axis, int))
            number_format.check_columns(name, axes[-1] if axes else 1)
        except FormatError as failure:
            raise ContainerError(f"{self.path.name}: tensor '{name}': {failure}") from failure
        names = tuple(str(key) for key in sidecars)
        return TensorHeader(name, axes, number_format, inputs_beside(number_format, names)), names

    def _check_range(self, header: TensorHeader) -> None:
        """What lies beside a weight with static inputs is one number of each kind."""
        for key, spec in (range_specs(header.inputs) if header.inputs is not None else {}).items():
            stored = self._file.tensors.get(f"{header.name}.sidecar.{key}")
            if stored is not None and (stored.dtype, stored.shape) != (_DTYPES[spec.dtype.str], spec.shape):
                raise ContainerError(
                    f"{self.path.name}: '{stored.name}' is {stored.dtype} {list(stored.shape)}, the range of inputs "
                    f"is {_DTYPES[spec.dtype.str]} {list(spec.shape)}"
                )

    def _check_table(self, headers: Mapping[str, TensorHeader]) -> None:
        entries = checked_table(self.architecture, self.config, self.path, len(headers), ContainerError)
        table = {entry.name: entry for entry in entries if entry.tied_to is None}
        for name, entry in table.items():
            if name not in headers and not entry.optional:
                raise ContainerError(f"{self.path.name}: tensor '{name}' is missing")
        for name, header in headers.items():
            if name not in table or header.shape != table[name].shape:
                raise ContainerError(
                    f"{self.path.name}: tensor '{name}' {list(header.shape)} is not part of {self.config.family} "
                    "as its config describes it"
                )


def _place(contents: Contents) -> tuple[dict[str, object], list[PlacedTensor], int]:
    """Entries of the safetensors header, places counted from its end, and the data's size."""
    arrays: dict[str, object] = {}
    placed: list[PlacedTensor] = []
    position = 0
    for header in contents.headers:
        pieces: list[Piece] = []
        planes = header.format.stored_planes(header.rows, header.columns)
        for key, spec in planes.items():
            position = _add(arrays, f"{header.name}.{key}", spec, position)
            pieces.append(Piece("planes", key, position - spec.nbytes, spec.nbytes))
        for key, spec in contents.sidecars.get(header.name, {}).items():
            position = _add(arrays, f"{header.name}.sidecar.{key}", spec, position)
            pieces.append(Piece("sidecars", key, position - spec.nbytes, spec.nbytes))
        placed.append(PlacedTensor(header, tuple(pieces)))
    return arrays, placed, position


def _add(arrays: dict[str, object], name: str, spec: PlaneSpec, position: int) -> int:
    """Append one array, with a padding array before it where needed, since safetensors allows no holes."""
    gap = -position % ALIGNMENT
    if gap:
        arrays[f"padding.{position}"] = {"dtype": "U8", "shape": [gap], "data_offsets": [position, position + gap]}
        position += gap
    dtype = _DTYPES[spec.dtype.newbyteorder("<").str]
    end = position + spec.nbytes
    arrays[name] = {"dtype": dtype, "shape": list(spec.shape), "data_offsets": [position, end]}
    return end


def _header_bytes(contents: Contents, arrays: Mapping[str, object]) -> bytes:
    tensors = {
        header.name: {
            "format": header.format.name,
            "shape": list(header.shape),
            "sidecars": list(contents.sidecars.get(header.name, {})),
        }
        for header in contents.headers
    }
    extra = dict(contents.provenance.extra) | embedded_files(contents.provenance.side_files) | dict(contents.metadata)
    if contents.preset:
        extra["lilliput.preset"] = contents.preset
    metadata = {
        "format": "lilliput",
        "lilliput.version": str(VERSION),
        "lilliput.config": _compact(asdict(contents.config)),
        "lilliput.general": _compact(dict(contents.provenance.general)),
        "lilliput.extra": _compact(extra),
        "lilliput.tensors": _compact(tensors),
    }
    if contents.vocabulary is not None:
        metadata["lilliput.vocabulary"] = _compact(asdict(contents.vocabulary))
    header = _compact({"__metadata__": metadata} | dict(arrays)).encode("ascii")
    # Spaces at the end are part of the format; they put the first array on an aligned byte.
    header += b" " * (-(8 + len(header)) % ALIGNMENT)
    return len(header).to_bytes(8, "little") + header


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), default=dict)
