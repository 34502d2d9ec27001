# SPDX-License-Identifier: Apache-2.0
"""Write and verify laid-out files: the same two loops for every container whose header comes first."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from lilliput.arrays import Array, FloatArray
from lilliput.checkpoints.fingerprint import bytes_of, tensor_digest
from lilliput.checkpoints.mapped_file import CHUNK_BYTES
from lilliput.checkpoints.model_source import ModelSource
from lilliput.containers.container import PartLayout, PlacedTensor, Written
from lilliput.errors import ContainerError, PublishError
from lilliput.formats.native_decode import decode
from lilliput.records import QuantizedTensor

# Weights decoded at once while verifying.
_DECODE_WEIGHTS = 1 << 22


def write_parts(parts: tuple[PartLayout, ...], tensors: Iterable[QuantizedTensor], folder: Path) -> Written:
    """Write every part, each tensor as it comes, and sync the files to disk.

    Raises ContainerError when a tensor is not the one the layout expects, PublishError when the disk fails or is full.
    """
    incoming = iter(tensors)
    digests: dict[str, str] = {}
    paths = tuple(folder / part.file_name for part in parts)
    for part, path in zip(parts, paths, strict=True):
        try:
            with path.open("xb") as file:
                _write_part(file, part, incoming, digests)
                file.flush()
                os.fsync(file.fileno())
        except OSError as failure:
            raise disk_error(part.file_name, failure) from failure
    surplus = next(incoming, None)
    if surplus is not None:
        raise ContainerError(f"tensor '{surplus.name}' was made but has no place in the file")
    return Written(paths, digests)


def disk_error(name: str, failure: OSError) -> PublishError:
    """One line for an operating-system error while writing `name`."""
    if failure.errno in (errno.ENOSPC, errno.EDQUOT):
        return PublishError(f"{name}: the disk is full; free some space or choose another place")
    return PublishError(f"{name}: cannot be written: {failure.strerror or failure}")


def _write_part(file: BinaryIO, part: PartLayout, incoming: Iterator[QuantizedTensor], digests: dict[str, str]) -> None:
    file.write(part.prefix)
    position = len(part.prefix)
    for placed in part.tensors:
        tensor = next(incoming, None)
        if tensor is None:
            raise ContainerError(f"tensor '{placed.header.name}' was planned but never made")
        _check_tensor(placed, tensor)
        for piece in placed.pieces:
            file.write(bytes(piece.start - position))
            array = (tensor.planes if piece.kind == "planes" else tensor.sidecars)[piece.name]
            _write_array(file, array)
            position = piece.start + piece.nbytes
        digests[tensor.name] = tensor_digest(tensor)
    file.write(bytes(part.size - position))


def _write_array(file: BinaryIO, array: Array) -> None:
    data = bytes_of(np.asarray(array))
    for start in range(0, data.size, CHUNK_BYTES):
        file.write(data[start : start + CHUNK_BYTES].data)


def _check_tensor(placed: PlacedTensor, tensor: QuantizedTensor) -> None:
    header = placed.header
    if (tensor.name, tensor.shape, tensor.format.name) != (header.name, header.shape, header.format.name):
        raise ContainerError(
            f"expected tensor '{header.name}' {list(header.shape)} {header.format.name.upper()}, "
            f"got '{tensor.name}' {list(tensor.shape)} {tensor.format.name.upper()}"
        )
    expected = {(piece.kind, piece.name): piece.nbytes for piece in placed.pieces}
    found = {("planes", name): np.asarray(array).nbytes for name, array in tensor.planes.items()}
    found |= {("sidecars", name): np.asarray(array).nbytes for name, array in tensor.sidecars.items()}
    if expected != found:
        raise ContainerError(f"tensor '{header.name}': arrays {found} do not fit the planned {expected}")


def verify_written(written: Written, opened: ModelSource) -> None:
    """Compare every tensor of a reopened file with the digest of what memory held, and decode it.

    Raises ContainerError: a tensor missing, in excess, changed on its way, or decoding to NaN or infinity.
    """
    try:
        names = set(opened.headers)
        if names != set(written.digests):
            differing = sorted(names ^ set(written.digests))
            raise ContainerError(f"{opened.path.name}: written and read tensors differ: {', '.join(differing[:4])}")
        for name, digest in written.digests.items():
            tensor = opened.tensor(name)
            if tensor_digest(tensor) != digest:
                raise ContainerError(
                    f"{opened.path.name}: tensor '{name}' read back differs from what was written; check the disk"
                )
            check_finite(tensor, opened.path.name)
            opened.release(name)
    finally:
        opened.close()


def check_finite(tensor: QuantizedTensor, where: str) -> None:
    """Decode a tensor piece by piece. Raises ContainerError naming it when a value is NaN or infinite."""
    for values in decoded_pieces(tensor):
        if not np.isfinite(values).all():
            bad = "NaN" if np.isnan(values).any() else "infinity"
            raise ContainerError(f"{where}: tensor '{tensor.name}' decodes to {bad}")


def decoded_pieces(tensor: QuantizedTensor) -> Iterator[FloatArray]:
    """Float32 values of a tensor, some rows at a time where its format can be cut there."""
    columns, rows = tensor.columns, tensor.rows
    planes = {name: np.asarray(array) for name, array in tensor.planes.items()}
    together = tensor.format.row_step or rows
    step = max(1, _DECODE_WEIGHTS // max(columns, 1) // together) * together
    for start in range(0, rows, step):
        part = planes if step >= rows else tensor.format.row_range(planes, start, min(start + step, rows))
        yield decode(tensor.format, part, columns)
