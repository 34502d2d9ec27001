# SPDX-License-Identifier: Apache-2.0
"""The constants of an ONNX file: in the graph, or in files beside it, which are mapped."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from lilliput.arrays import Array, ByteArray
from lilliput.checkpoints.mapped_file import MappedFile
from lilliput.containers.onnx.graph import ElementType, External, Graph, Initializer, read_graph
from lilliput.errors import ContainerError

_NUMPY = {
    ElementType.FLOAT: "<f4", ElementType.FLOAT16: "<f2", ElementType.INT8: "i1", ElementType.UINT8: "u1",
}  # fmt: skip


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Whatever numbers and names of a damaged graph make go wrong, as one ContainerError."""
    try:
        yield
    except (ValueError, LookupError, TypeError, ArithmeticError, AttributeError, MemoryError, struct.error) as failure:
        said = str(failure).partition("\n")[0] or type(failure).__name__
        raise ContainerError(f"{path.name}: damaged ONNX file: {said}") from failure


class Constants:
    """A graph and its constants, decoded as far as numpy has their types."""

    def __init__(self, path: Path) -> None:
        """Open a file. Raises ContainerError where it is damaged or cannot be read."""
        self.path = path
        try:
            content = path.read_bytes()
        except OSError as failure:
            raise ContainerError(f"{path}: cannot be read: {failure.strerror or failure}") from failure
        try:
            with damage_named(path):
                self.graph: Graph = read_graph(content)
        except ContainerError as failure:
            said = str(failure).removeprefix(f"{path.name}: ")
            raise ContainerError(f"{path.name}: {said}; download it again") from failure
        self._files: dict[str, MappedFile] = {}

    def find(self, name: str) -> Initializer:
        """A constant. Raises ContainerError where the file has none of that name."""
        if name not in self.graph.initializers:
            raise ContainerError(f"{self.path.name}: an ONNX operator reads '{name}', which is no constant of the file")
        return self.graph.initializers[name]

    def array(self, name: str) -> Array:
        """A constant in its shape; 4-bit codes one to an element, [n]; BF16 and FP8 as raw bytes."""
        item = self.find(name)
        data = self._bytes(item)
        if item.element in (ElementType.INT4, ElementType.UINT4):
            return _nibbles(data, item)
        kind = _NUMPY.get(item.element)
        if kind is None:
            return data
        if data.ctypes.data % np.dtype(kind).itemsize:
            data = data.copy()
        return data.view(kind).reshape(item.shape)

    def floats(self, name: str) -> Array:
        """A constant of floats, float16 or float32 where numpy has them. Raises ContainerError for other types."""
        item = self.find(name)
        data = self.array(name)
        if item.element is ElementType.BFLOAT16:
            return (data.view("<u2").astype(np.uint32) << 16).view(np.float32).reshape(item.shape)
        if item.element not in (ElementType.FLOAT, ElementType.FLOAT16):
            raise ContainerError(f"ONNX constant '{name}' is of {item.element.name}, not of floats")
        return data

    def start(self, name: str) -> int:
        """Where a constant's bytes begin in its file; 0 for one in the graph."""
        data = self.find(name).data
        return data.start if isinstance(data, External) else 0

    def close(self) -> None:
        """Let go of the maps."""
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _bytes(self, item: Initializer) -> ByteArray:
        if isinstance(item.data, bytes):
            return np.frombuffer(item.data, dtype=np.uint8)
        place = item.data
        if place.file not in self._files:
            self._files[place.file] = MappedFile(self.path.parent / place.file, ContainerError)
        file = self._files[place.file]
        if place.start + place.nbytes > file.size:
            raise ContainerError(f"{place.file}: cut off; '{item.name}' ends at {place.start + place.nbytes}")
        return file.data[place.start : place.start + place.nbytes]


def _nibbles(data: ByteArray, item: Initializer) -> Array:
    """[n] int8 or uint8: the low half of a byte first."""
    count = int(np.prod(item.shape, dtype=np.int64))
    halves = np.stack([data & np.uint8(15), data >> np.uint8(4)], axis=1).reshape(-1)[:count]
    if item.element is ElementType.UINT4:
        return halves
    return ((halves ^ np.uint8(8)).astype(np.int8) - np.int8(8)).astype(np.int8)
