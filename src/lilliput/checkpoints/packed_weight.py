# SPDX-License-Identifier: Apache-2.0
"""A quantized weight as several arrays of a checkpoint: what every method's reader returns, and checks they share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from lilliput.arrays import Array, FloatArray
from lilliput.checkpoints.safetensors_reader import SafetensorsFile
from lilliput.errors import CheckpointError, FormatError
from lilliput.formats import NumberFormat, Planes
from lilliput.formats.families import GROUPS
from lilliput.formats.integer import SymmetricInteger
from lilliput.formats.integer_zero_point import ZeroPointInteger
from lilliput.formats.regions import CHANNEL, Region
from lilliput.formats.scoped_number import ScopedNumber

Files = Mapping[str, SafetensorsFile]
Integer = SymmetricInteger | ZeroPointInteger


class PackedWeight(Protocol):
    """One weight as it lies in the files.

    shape: of the float checkpoint's tensor.  arrays: role (codes, scale …) -> stored name.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102  described above

    @property
    def arrays(self) -> Mapping[str, str]: ...  # noqa: D102  described above

    @property
    def format(self) -> NumberFormat:
        """What the weight is in memory."""

    def planes(self, files: Files) -> Planes:
        """Planes of `format`, rows in the checkpoint's order."""


def region_of_groups(group_size: int, columns: int) -> tuple[Region, int] | None:
    """Our region for groups of so many columns, and how many of them make one group; -1 is a whole row.

    Groups without a region of their own are cut into the largest that divides them, with the scale repeated.
    None where even 16 columns do not divide them.
    """
    if group_size == -1 or (group_size == columns and f"g{group_size}" not in GROUPS):
        return CHANNEL, 1
    for region in sorted(GROUPS.values(), key=lambda region: region.columns or 0, reverse=True):
        size = region.columns or 1
        if group_size > 0 and group_size % size == 0 and columns % size == 0:
            return region, group_size // size
    return None


def stored_group(quantization: Mapping[str, object], columns: int, groups: int) -> int:
    """Columns of one stored group, as the arrays say; -1 for a row, which only the config tells from one group."""
    return -1 if groups == 1 and quantization.get("group_size") == -1 else columns // groups


def holds_scales(number_format: ScopedNumber, name: str, files: Files) -> bool:
    """Whether the format stores the scales of an array exactly. Reads them only where their types leave it open."""
    stored = number_format.parameters["scale"].dtype
    if stored == np.float32 or files[name].tensors[name].dtype == "F16":
        return True
    scale = files[name].float32(name)
    with np.errstate(over="ignore", under="ignore"):
        return bool(np.array_equal(scale.astype(stored).astype(np.float32), scale))


def as_stored(number_format: ScopedNumber, planes: Planes, shape: tuple[int, int]) -> Planes:
    """Planes with the dtypes that the format declares."""
    specs = number_format.stored_planes(*shape)
    return {name: np.ascontiguousarray(planes[name], dtype=spec.dtype) for name, spec in specs.items()}


def as_floats(values: FloatArray) -> Planes:
    """Float32 values as planes of F32."""
    return {"blocks": np.ascontiguousarray(values).view(np.uint8)}


def check_columns(name: str, number_format: NumberFormat, columns: int) -> None:
    """Raise CheckpointError where rows do not divide into groups."""
    try:
        number_format.check_columns(name, columns)
    except FormatError as failure:
        raise CheckpointError(str(failure)) from failure


def check_present(weight: str, arrays: Mapping[str, str], files: Files) -> None:
    """Raise CheckpointError naming the array that is missing."""
    absent = [name for name in arrays.values() if name not in files]
    if absent:
        raise CheckpointError(f"tensor '{weight}' is quantized, and '{absent[0]}' is missing; download the model again")


def check_array(name: str, files: Files, dtypes: tuple[str, ...], *shapes: tuple[int, ...]) -> None:
    """Raise CheckpointError unless an array has one of these dtypes and shapes."""
    stored = files[name].tensors[name]
    if stored.dtype not in dtypes or stored.shape not in shapes:
        raise CheckpointError(
            f"tensor '{name}' is {stored.dtype} {list(stored.shape)}; "
            f"quantization_config implies {' or '.join(dtypes)} {list(shapes[0])}"
        )


def matrix_shape(name: str, files: Files) -> tuple[int, int]:
    """Shape of a stored matrix. Raises CheckpointError for anything else."""
    shape = files[name].tensors[name].shape
    if len(shape) != 2 or 0 in shape:
        raise CheckpointError(f"tensor '{name}' has shape {list(shape)}; quantized weights are matrices")
    return shape[0], shape[1]


def words(name: str, files: Files) -> Array:
    """Stored 32-bit words in their shape, mapped."""
    return files[name].data(name).view("<u4").reshape(files[name].tensors[name].shape)
