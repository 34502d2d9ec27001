# SPDX-License-Identifier: Apache-2.0
"""GGUF version 3, written from the layout facts (ggml docs/gguf.md): header bytes and the place of every tensor.

Integers become uint32 and floats float32, as llama.cpp's own tools write them and its loader insists on; the few keys
with other types are listed below. Lists of integers become int32.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lilliput.architectures.architecture import Json
from lilliput.arrays import FloatArray
from lilliput.containers.container import PartLayout, Piece, PlacedTensor, Split
from lilliput.containers.gguf_types import (
    BY_NAME,
    DEFAULT_ALIGNMENT,
    MAGIC,
    MAX_AXES,
    MAX_NAME_BYTES,
    NUMPY_TYPES,
    VERSION,
    ValueType,
)
from lilliput.errors import ContainerError
from lilliput.records import TensorHeader

_TYPES_BY_KEY = {
    "split.no": ValueType.UINT16,
    "split.count": ValueType.UINT16,
    "split.tensors.count": ValueType.INT32,
    "general.sampling.top_k": ValueType.INT32,
    "tokenizer.ggml.precompiled_charsmap": ValueType.UINT8,
    "tokenizer.ggml.scores": ValueType.FLOAT32,
}
_SUFFIX = re.compile(r"\.gguf$")


def gguf_layout(
    metadata: Mapping[str, Json], headers: Sequence[TensorHeader], file_name: str, split: Split | None = None
) -> tuple[PartLayout, ...]:
    """Lay out one file or several. Keys with value None or an empty list are left out.

    Raises ContainerError for names, shapes, formats or values that GGUF cannot hold.
    """
    groups = _groups(headers, split or Split())
    if len(groups) == 1:
        return (_layout_part(metadata, groups[0], file_name),)
    stem = _SUFFIX.sub("", file_name)
    parts = []
    for number, group in enumerate(groups):
        keys: dict[str, Json] = dict(metadata) if number == 0 else {}
        keys |= {"split.no": number, "split.count": len(groups), "split.tensors.count": len(headers)}
        parts.append(_layout_part(keys, group, f"{stem}-{number + 1:05d}-of-{len(groups):05d}.gguf"))
    return tuple(parts)


def write_float_arrays(path: Path, metadata: Mapping[str, Json], arrays: Mapping[str, FloatArray]) -> None:
    """Write a small GGUF of float32 arrays (an imatrix file): the whole file at once, not published atomically."""
    position, infos, data = 0, b"", b""
    for name, array in arrays.items():
        raw = np.ascontiguousarray(array, dtype="<f4").tobytes()
        infos += _tensor_info(name, array.shape, "f32", position)
        data += raw + bytes(_padding(len(raw)))
        position = len(data)
    head = _head(metadata, len(arrays)) + infos
    path.write_bytes(head + bytes(_padding(len(head))) + data)


def _groups(headers: Sequence[TensorHeader], split: Split) -> list[list[TensorHeader]]:
    """Cut the tensors into parts, in order, by padded tensor bytes and by count."""
    groups: list[list[TensorHeader]] = [[]]
    size = 0
    for header in headers:
        padded = header.nbytes + _padding(header.nbytes)
        too_large = split.max_bytes is not None and size + padded > split.max_bytes
        too_many = split.max_tensors is not None and len(groups[-1]) >= split.max_tensors
        if groups[-1] and (too_large or too_many):
            groups.append([])
            size = 0
        groups[-1].append(header)
        size += padded
    if len(groups) > 0xFFFF:
        raise ContainerError(f"{len(groups)} parts are too many for GGUF's limit of 65535; choose larger parts")
    return groups


def _layout_part(metadata: Mapping[str, Json], headers: Sequence[TensorHeader], file_name: str) -> PartLayout:
    infos: list[bytes] = []
    offsets: list[int] = []
    position = 0
    for header in headers:
        infos.append(_tensor_info(header.name, header.shape, header.format.name, position))
        offsets.append(position)
        position += header.nbytes + _padding(header.nbytes)
    head = _head(metadata, len(headers)) + b"".join(infos)
    prefix = head + bytes(_padding(len(head)))
    placed = tuple(
        PlacedTensor(header, (Piece("planes", _plane(header), len(prefix) + offset, header.nbytes),))
        for header, offset in zip(headers, offsets, strict=True)
    )
    return PartLayout(file_name, prefix, placed, len(prefix) + position)


def _plane(header: TensorHeader) -> str:
    (plane,) = header.format.stored_planes(header.rows, header.columns)
    return plane


def _padding(count: int) -> int:
    return -count % DEFAULT_ALIGNMENT


def _head(metadata: Mapping[str, Json], tensors: int) -> bytes:
    keys = {key: value for key, value in metadata.items() if value is not None and value != []}
    encoded = b"".join(_string(key) + _value(key, value) for key, value in keys.items())
    return MAGIC + struct.pack("<IQQ", VERSION, tensors, len(keys)) + encoded


def _tensor_info(name: str, shape: tuple[int, ...], type_name: str, offset: int) -> bytes:
    if len(name.encode()) > MAX_NAME_BYTES:
        raise ContainerError(f"tensor '{name}': GGUF names may have {MAX_NAME_BYTES} bytes, this has {len(name)}")
    if not 1 <= len(shape) <= MAX_AXES or 0 in shape:
        raise ContainerError(f"tensor '{name}': GGUF cannot hold the shape {list(shape)}")
    tensor_type = BY_NAME[type_name]
    if shape[-1] % tensor_type.block_size:
        raise ContainerError(
            f"tensor '{name}': rows of {shape[-1]} weights are no multiple of {type_name.upper()}'s block of "
            f"{tensor_type.block_size}"
        )
    sizes = struct.pack(f"<{len(shape)}Q", *reversed(shape))
    return _string(name) + struct.pack("<I", len(shape)) + sizes + struct.pack("<IQ", tensor_type.number, offset)


def _string(text: str) -> bytes:
    # surrogateescape: tokens that are not valid UTF-8 go out as they came in.
    raw = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(raw)) + raw


def _value(key: str, value: Json) -> bytes:
    if isinstance(value, list):
        element = _TYPES_BY_KEY[key] if key in _TYPES_BY_KEY else _list_type(key, value)
        packed = (
            b"".join(_string(str(item)) for item in value)
            if element is ValueType.STRING
            else _numbers(key, value, element)
        )
        return struct.pack("<IIQ", ValueType.ARRAY, element, len(value)) + packed
    if isinstance(value, str):
        return struct.pack("<I", ValueType.STRING) + _string(value)
    scalar = _TYPES_BY_KEY[key] if key in _TYPES_BY_KEY else _scalar_type(key, value)
    return struct.pack("<I", scalar) + _numbers(key, [value], scalar)


def _scalar_type(key: str, value: Json) -> ValueType:
    if isinstance(value, bool):
        return ValueType.BOOL
    if isinstance(value, float):
        return ValueType.FLOAT32
    if isinstance(value, int):
        for kind in (ValueType.UINT32, ValueType.INT32, ValueType.UINT64, ValueType.INT64):
            limits = np.iinfo(NUMPY_TYPES[kind])
            if limits.min <= value <= limits.max:
                return kind
    raise ContainerError(f"metadata key '{key}': GGUF cannot hold {value!r}")


def _list_type(key: str, values: list[Json]) -> ValueType:
    kinds = {type(value) for value in values}
    if kinds == {str}:
        return ValueType.STRING
    if kinds == {bool}:
        return ValueType.BOOL
    if kinds == {int}:
        integers = [value for value in values if isinstance(value, int)]
        for kind in (ValueType.INT32, ValueType.UINT32, ValueType.INT64, ValueType.UINT64):
            limits = np.iinfo(NUMPY_TYPES[kind])
            if limits.min <= min(integers) and max(integers) <= limits.max:
                return kind
    if kinds <= {int, float}:
        return ValueType.FLOAT32
    raise ContainerError(f"metadata key '{key}': GGUF lists hold values of one kind, found {len(kinds)}")


def _numbers(key: str, values: list[Json], kind: ValueType) -> bytes:
    try:
        return np.array(values).astype(NUMPY_TYPES[kind], casting="unsafe").tobytes()
    except (OverflowError, TypeError, ValueError) as failure:
        raise ContainerError(f"metadata key '{key}': not numbers of type {kind.name}") from failure
