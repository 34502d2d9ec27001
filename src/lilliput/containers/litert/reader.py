# SPDX-License-Identifier: Apache-2.0
"""Weights of a .tflite file: tables of the flatbuffer followed to tensors and buffers, nothing else of it read."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from lilliput.arrays import Array, ByteArray, FloatArray
from lilliput.checkpoints.mapped_file import MappedFile
from lilliput.containers.litert.model import IDENTIFIER, TensorType
from lilliput.containers.onnx.reader import digest_of
from lilliput.errors import ContainerError

_DTYPES = {
    TensorType.FLOAT32: "<f4", TensorType.INT32: "<i4", TensorType.INT16: "<i2", TensorType.INT8: "i1",
}  # fmt: skip
# Ends the names of constants that are floats rounded to integers.
ROUNDED = ".rounded"
_SUFFIX = re.compile(r"(\.rows\d+-\d+)?(\.\d+(x\d+)*)?$")
_PIECE = 1 << 22


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor of the file. start, nbytes: its values, where they are constants; counted from the file's start.

    is_outside: whether they lie behind the flatbuffer.  scales: where those of its codes lie, float32, and how many.
    """

    name: str
    type: TensorType
    shape: tuple[int, ...]
    start: int
    nbytes: int
    is_outside: bool
    scales: tuple[int, int]


class LiteRtFile:
    """An opened file, mapped. weights: tensor name -> its parts in the order of their bytes."""

    def __init__(self, path: Path) -> None:
        """Open a file. Raises ContainerError where it is damaged."""
        self.path = path
        self._file = MappedFile(path, ContainerError)
        try:
            self.everything = {item.name: item for item in self._all_tensors()}
        except (struct.error, IndexError, ValueError, OverflowError, MemoryError) as failure:
            raise ContainerError(f"{path.name}: damaged .tflite file: {failure}") from failure
        self.tensors = {
            name: item for name, item in self.everything.items() if item.is_outside or (item.nbytes and ROUNDED in name)
        }
        self.weights = self._found()

    def values(self, name: str) -> Iterator[FloatArray]:
        """Float32 values of a weight, some rows at a time."""
        for codes in self.weights[name]:
            item = self.tensors[codes]
            array = self._array(item)
            if ROUNDED in item.name:
                yield decoded(array, self.scales_of(item.name))
                continue
            if item.type is not TensorType.INT8:
                for start in range(0, array.size, _PIECE):
                    yield array.reshape(-1)[start : start + _PIECE]
                continue
            scale = self._scale(item)
            step = max(1, _PIECE // item.shape[1])
            for start in range(0, item.shape[0], step):
                part = slice(start, start + step)
                yield array[part].astype(np.float32) * (scale[part] if scale.size > 1 else scale)

    def value_digest(self, name: str) -> str:
        """sha256 of a weight's float32 values. Raises ContainerError where one is NaN or infinite."""
        return digest_of(self.values(name), name)

    def close(self) -> None:
        """Let go of the map."""
        self._file.close()

    def _scale(self, codes: StoredTensor) -> Array:
        """The scales of codes: of the same rows, in whatever shape an operator reads them. [rows, 1] or [1, 1]."""
        base = codes.name.replace(".codes", ".scale")
        found = [item for name, item in self.tensors.items() if name == base or re.sub(r"\.\d+x1$", "", name) == base]
        found += [item for name, item in self.tensors.items() if name == _SUFFIX.sub("", base) and item.shape == (1,)]
        if not found and codes.scales[1] in (1, codes.shape[0]):
            return self.scales_of(codes.name).reshape(-1, 1)
        if not found or prod(found[0].shape) not in (1, codes.shape[0]):
            raise ContainerError(f"{self.path.name}: codes '{codes.name}' have no scales that fit")
        return self._array(found[0]).reshape(-1, 1)

    def scales_of(self, name: str) -> FloatArray:
        """The scales that a tensor itself has: one, or one a row."""
        start, count = self.everything[name].scales
        return np.frombuffer(self._file.data[start : start + 4 * count].tobytes(), "<f4")

    def _found(self) -> dict[str, tuple[str, ...]]:
        parts: dict[str, dict[int, str]] = {}
        for name, item in self.tensors.items():
            if ROUNDED in name:
                parts[name] = {item.start: name}
            elif ".scale" not in name:
                whole = _SUFFIX.sub("", name).removesuffix(".codes")
                parts.setdefault(whole, {})[item.start] = name
        return {name: tuple(found[start] for start in sorted(found)) for name, found in parts.items()}

    def _array(self, item: StoredTensor) -> Array:
        data = self._file.data[item.start : item.start + item.nbytes]
        if data.size != item.nbytes or item.nbytes != prod(item.shape) * np.dtype(_DTYPES[item.type]).itemsize:
            raise ContainerError(f"{self.path.name}: tensor '{item.name}' {list(item.shape)} has {data.size} bytes")
        return data.view(_DTYPES[item.type]).reshape(item.shape)

    def _all_tensors(self) -> Iterator[StoredTensor]:
        """Every tensor of every subgraph."""
        data = self._file.data
        if bytes(data[4:8]) != IDENTIFIER:
            raise ValueError("its identifier is missing")
        model = _follow(data, 0)
        buffers = list(_tables(data, model, 4))
        for subgraph in _tables(data, model, 2):
            for tensor in _tables(data, subgraph, 0):
                place = _field(data, tensor, 2)
                number = _number(data, place, "<I") if place else 0
                inside, start, size = (_field(data, buffers[number], slot) for slot in (0, 1, 2))
                is_outside = bool(start and size)
                found = (_number(data, start, "<Q"), _number(data, size, "<Q")) if is_outside else (0, 0)
                if inside:
                    found = _follow(data, inside) + 4, _number(data, _follow(data, inside), "<I")
                kind, grid = _field(data, tensor, 1), _field(data, tensor, 4)
                scales = _field(data, _follow(data, grid), 2) if grid else 0
                counted = _follow(data, scales) if scales else 0
                yield StoredTensor(
                    bytes(_vector(data, _field(data, tensor, 3), "u1")).decode("utf-8"),
                    TensorType(_number(data, kind, "<b") if kind else 0),
                    tuple(int(length) for length in _vector(data, _field(data, tensor, 0), "<i4")),
                    *found, is_outside, (counted + 4, _number(data, counted, "<I")) if scales else (0, 0),
                )  # fmt: skip


def decoded(codes: Array, scales: FloatArray) -> FloatArray:
    """Values of codes around zero, float32. scales: one for all, or one a row."""
    steps = scales.astype(np.float64).reshape(-1, *[1] * (codes.ndim - 1))
    values: FloatArray = (codes.astype(np.float64) * steps).astype(np.float32)
    return values


def fill(path: Path, constants: Mapping[str, tuple[Array | None, FloatArray]]) -> None:
    """Put codes (None where they are there already) and scales of tensors into a file that has room for them.

    Raises ContainerError where there is not, OSError.
    """
    file = LiteRtFile(path)
    places: list[tuple[int, bytes]] = []
    for name, (codes, scales) in constants.items():
        item = file.everything[name]
        if scales.size != item.scales[1] or (codes is not None and codes.nbytes != item.nbytes):
            raise ContainerError(f"{path.name}: no room for the constant '{name}' {list(item.shape)}")
        places.append((item.scales[0], scales.astype("<f4").tobytes()))
        if codes is not None:
            places.append((item.start, np.ascontiguousarray(codes).tobytes()))
    file.close()
    with path.open("r+b") as target:
        for start, data in places:
            target.seek(start)
            target.write(data)
        target.flush()
        os.fsync(target.fileno())


def _number(data: ByteArray, place: int, kind: str) -> int:
    found: int = struct.unpack_from(kind, data.data, place)[0]
    return found


def _follow(data: ByteArray, place: int) -> int:
    return place + _number(data, place, "<I")


def _field(data: ByteArray, table: int, slot: int) -> int:
    """Place of a field, 0 where it is absent."""
    vtable = table - _number(data, table, "<i")
    if 4 + 2 * slot >= _number(data, vtable, "<H"):
        return 0
    offset = _number(data, vtable + 4 + 2 * slot, "<H")
    return table + offset if offset else 0


def _vector(data: ByteArray, place: int, kind: str) -> Array:
    """Elements of a vector field; none where it is absent."""
    if not place:
        return np.empty(0, kind)
    start = _follow(data, place)
    nbytes = _number(data, start, "<I") * np.dtype(kind).itemsize
    if start + 4 + nbytes > data.size:
        raise ValueError("a vector ends beyond the file")
    return np.frombuffer(data[start + 4 : start + 4 + nbytes].tobytes(), kind)


def _tables(data: ByteArray, table: int, slot: int) -> Iterator[int]:
    place = _field(data, table, slot)
    if place:
        start = _follow(data, place)
        for index in range(len(_vector(data, place, "<u4"))):
            yield _follow(data, start + 4 + 4 * index)
