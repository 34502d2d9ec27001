# SPDX-License-Identifier: Apache-2.0
"""A file mapped read-only into memory, and stored tensors as views of its bytes."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from lilliput.arrays import Array, ByteArray
from lilliput.errors import LilliputError
from lilliput.formats import NumberFormat, Planes

# Bytes hashed or copied at once: large enough for full speed, small enough not to matter.
CHUNK_BYTES = 1 << 24


class MappedFile:
    """A whole file as a read-only uint8 array; pages come from disk as they are touched.

    The map lives until the last array made from it is gone, so `close` only drops this object's own hold.
    """

    def __init__(self, path: Path, error: type[LilliputError]) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                size = file.seek(0, 2)
                # An empty file cannot be mapped.
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else None
                self._data: ByteArray | None = np.frombuffer(self._map if self._map else b"", dtype=np.uint8)
        except OSError as failure:
            raise error(f"{path}: cannot be read: {failure.strerror or failure}") from failure

    @property
    def data(self) -> ByteArray:
        """All bytes, read-only."""
        if self._data is None:
            raise ValueError(f"{self.path.name} is closed")
        return self._data

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return int(self.data.size)

    def release(self, start: int, end: int) -> None:
        """Give the memory of bytes [start, end) back to the system; they are read from disk again when touched.

        Without this the resident size of a process that streams through a model grows to the model's size.
        """
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        length = end // mmap.PAGESIZE * mmap.PAGESIZE - first
        if self._map is not None and length > 0 and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, first, length)

    def close(self) -> None:
        """Let go of the map."""
        self._data = None
        self._map = None


def planes_of_bytes(number_format: NumberFormat, rows: int, columns: int, data: ByteArray) -> Planes:
    """Stored bytes of a single-plane format as its planes; a view where the alignment allows it, else a copy.

    data: uint8 [stored bytes].
    """
    planes: dict[str, Array] = {}
    start = 0
    for name, spec in number_format.stored_planes(rows, columns).items():
        part = data[start : start + spec.nbytes]
        if part.ctypes.data % spec.dtype.alignment:
            part = part.copy()
        planes[name] = part.view(spec.dtype).reshape(spec.shape)
        start += spec.nbytes
    assert start == data.size, (number_format.name, rows, columns, data.size)
    return planes


def update_digest(digest: hashlib._Hash, data: ByteArray) -> None:
    """Feed bytes to a hash piece by piece, so that a mapped tensor never has to be in memory at once."""
    for start in range(0, data.size, CHUNK_BYTES):
        digest.update(data[start : start + CHUNK_BYTES].data)


@contextmanager
def closing_on_error(file: MappedFile) -> Iterator[MappedFile]:
    """Close the map when what follows fails."""
    try:
        yield file
    except BaseException:
        file.close()
        raise
