# SPDX-License-Identifier: Apache-2.0
"""Formats whose values are integers under a scale, seen as one kind: what moves between them without rounding.

    value = scale * (code - zero_point)   or   scale * code + minimum

Whether one format's values are another's is read off their structure: the range of code - zero_point, the columns that
share a scale, whether scales are fp16 or float32, whether zero is fixed, an integer of each group, or a float minimum.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal

import numpy as np

from lilliput.arrays import Array, FloatArray
from lilliput.formats.integer import SymmetricInteger
from lilliput.formats.integer_affine import AffineInteger
from lilliput.formats.integer_power_scale import PowerScaleInteger
from lilliput.formats.integer_zero_point import ZeroPointInteger
from lilliput.formats.levels import Levels
from lilliput.formats.number_format import Encoded, NumberFormat, Parameters, Planes
from lilliput.formats.region_search import power_of_two
from lilliput.formats.scale_and_minimum import ScaleAndMinimum
from lilliput.formats.scale_search import to_half
from lilliput.formats.scaled_scales import ScaledScales
from lilliput.formats.scoped_number import ScaledLevels, ScopedNumber
from lilliput.formats.single_scale import SingleScale


class Fit(StrEnum):
    """What becomes of values that move into another format.

    ROUNDED: codes stay, and each group's scale or minimum is rounded to the precision that the format stores.
    """

    EXACT = "exact"
    ROUNDED = "rounded"


@dataclass(frozen=True, slots=True)
class GridShape:
    """The structure of a format.

    bits: of codes.  first, last: range of code - zero_point.  group: columns under one scale, None for a whole row.
    zero: fixed by the format, an integer a group, or a float minimum a group.
    """

    bits: int
    first: int
    last: int
    group: int | None
    zero: Literal["fixed", "integer", "minimum"]
    has_half_scale: bool
    is_whole_tensor: bool = False


@dataclass(frozen=True, slots=True)
class Grid:
    """A matrix in such a format.

    codes: uint8 [rows, columns].  scale: float32 [rows, groups].
    zero_point: int16 [rows, groups], or None with minimum float32 [rows, groups].
    """

    codes: Array
    scale: FloatArray
    zero_point: Array | None
    minimum: FloatArray | None


def grid_shape(number_format: NumberFormat) -> GridShape | None:
    """The structure of a format; None for one of another kind."""
    match number_format:
        case ZeroPointInteger(code_bits=bits):
            top = (1 << bits) - 1
            return _scoped(number_format, GridShape(bits, -top, top, None, "integer", has_half_scale=False))
        case SymmetricInteger(code_bits=bits):
            half = 1 << (bits - 1)
            return _scoped(number_format, GridShape(bits, -half, half - 1, None, "fixed", has_half_scale=False))
        case PowerScaleInteger(grid=levels):
            # Powers of two are fp16 numbers between 2^-24 and 2^15, where scales of weights lie.
            shape = _leveled(levels.first, levels.last, None, has_half_scale=True)
            return replace(shape, group=number_format.region.columns, is_whole_tensor=number_format.region.rows is None)
        case ScaledLevels(grid=Levels() as levels) if levels.is_integer_run:
            return _scoped(number_format, _leveled(levels.first, levels.last, None, has_half_scale=False))
        case ScaleAndMinimum() | AffineInteger():
            bits, top = number_format.last_code.bit_length(), number_format.last_code
            is_half = not isinstance(number_format, AffineInteger) or number_format.has_half_scales
            return GridShape(bits, -top, top, number_format.block_size, "minimum", has_half_scale=is_half)
        case SingleScale(levels=levels) if levels.is_integer_run:
            return _leveled(levels.first, levels.last, number_format.block_size, has_half_scale=True)
        case ScaledScales(levels=levels) if levels.is_integer_run:
            return _leveled(levels.first, levels.last, number_format.group_size, has_half_scale=False)
        case _:
            return None


def fit(source: NumberFormat, target: NumberFormat, columns: int) -> Fit | None:
    """What becomes of rows of `columns` values; None where codes would have to be chosen anew."""
    if source.name == target.name:
        return Fit.EXACT
    found, wanted = grid_shape(source), grid_shape(target)
    # Blocks of scaled scales and exponents cannot be built from group scales.
    is_built = not isinstance(target, ScaledScales | PowerScaleInteger)
    if found is None or wanted is None or not is_built or columns % target.block_size:
        return None
    if (found.group or columns) % (wanted.group or columns) or (wanted.is_whole_tensor and not found.is_whole_tensor):
        return None
    exact = _zero_fits(found, wanted)
    if exact is None:
        return None
    return Fit.EXACT if exact and (found.has_half_scale or not wanted.has_half_scale) else Fit.ROUNDED


def rounding_bound(source: NumberFormat, target: NumberFormat) -> float:
    """Largest difference over the largest magnitude, where scales and minimums are rounded and codes stay.

    fp16 numbers have 11 bits. A minimum may be as large as all codes together, on either side of zero.
    Where the formats are one, a container keeps scales in another unit: one step of float32.
    """
    if source.name == target.name:
        return 2.0**-23
    wanted = grid_shape(target)
    return (3 if wanted is not None and wanted.zero == "minimum" else 1) * 2.0**-11


def _zero_fits(found: GridShape, wanted: GridShape) -> bool | None:
    """Whether codes and zeros fit exactly; None where codes do not."""
    if wanted.zero == "fixed":
        fits = found.zero != "minimum" and wanted.first <= found.first and found.last <= wanted.last
        return True if fits else None
    if wanted.zero == "integer":
        return True if found.zero != "minimum" and found.bits <= wanted.bits else None
    if found.bits > wanted.bits:
        return None
    # A power of two times the scale is an fp16 number too; 11 bits may not hold any other multiple.
    return found.zero == "minimum" or (found.zero == "fixed" and (-found.first).bit_count() == 1)


def moved(planes: Planes, source: NumberFormat, target: NumberFormat, columns: int) -> Planes:
    """Planes of `source` as planes of `target`, between which `fit` is not None."""
    if source.name == target.name:
        return planes
    grid = _read(planes, source, columns)
    wanted, found = grid_shape(target), grid_shape(source)
    assert wanted is not None
    assert found is not None
    if wanted.group != found.group:
        repeats = (found.group or columns) // (wanted.group or columns)
        grid = _repeated(grid, repeats)
    codes, parameters = grid.codes, {"scale": grid.scale}
    if wanted.zero == "minimum":
        minimum = grid.minimum
        if minimum is None:
            assert grid.zero_point is not None
            minimum = -grid.scale * grid.zero_point.astype(np.float32)
        parameters["minimum"] = minimum
    elif wanted.zero == "integer":
        assert grid.zero_point is not None
        parameters["zero_point"] = grid.zero_point
    else:
        assert grid.zero_point is not None
        group = codes.shape[1] // grid.zero_point.shape[1]
        shift = np.repeat(grid.zero_point, group, axis=1) + np.int16(wanted.first)
        codes = (codes.astype(np.int16) - shift).astype(np.uint8)
    return target.pack(Encoded(codes, _stored(target, parameters)))


def _stored(target: NumberFormat, parameters: Parameters) -> Parameters:
    """Parameters, in the order of the format's, in the types that it stores."""
    if isinstance(target, AffineInteger) and not target.has_half_scales:
        return parameters
    if not isinstance(target, ScopedNumber):
        return {name: to_half(array) for name, array in parameters.items()}
    stored = {
        name: to_half(array) if stored.dtype == np.float16 else array.astype(stored.dtype)
        for (name, array), stored in zip(parameters.items(), target.parameters.values(), strict=True)
    }
    return {name: array[:1] for name, array in stored.items()} if target.region.rows is None else stored


def _read(planes: Planes, source: NumberFormat, columns: int) -> Grid:
    encoded = source.unpack(planes, columns)
    codes, parameters = np.asarray(encoded.codes), encoded.parameters
    scale: FloatArray
    if isinstance(source, ScaledScales):
        scale = np.asarray(source.group_scale(parameters), dtype=np.float32)
    elif isinstance(source, PowerScaleInteger):
        scale = np.asarray(power_of_two(parameters["exponent"]), dtype=np.float32)
    else:
        scale = np.asarray(parameters["scale"]).astype(np.float32)
    scale = np.broadcast_to(scale, (codes.shape[0], scale.shape[1]))
    if "minimum" in parameters:
        return Grid(codes, scale, None, np.asarray(parameters["minimum"]).astype(np.float32))
    if "zero_point" in parameters:
        zero_point = np.asarray(parameters["zero_point"]).astype(np.int16)
        return Grid(codes, scale, np.broadcast_to(zero_point, scale.shape), None)
    shape = grid_shape(source)
    assert shape is not None
    return Grid(codes, scale, np.full(scale.shape, -shape.first, dtype=np.int16), None)


def _repeated(grid: Grid, repeats: int) -> Grid:
    def spread(array: Array | None) -> Array | None:
        return None if array is None else np.repeat(array, repeats, axis=1)

    return Grid(grid.codes, np.repeat(grid.scale, repeats, axis=1), spread(grid.zero_point), spread(grid.minimum))


def _leveled(first: float, last: float, group: int | None, *, has_half_scale: bool) -> GridShape:
    bits = int(last - first).bit_length()
    return GridShape(bits, int(first), int(last), group, "fixed", has_half_scale=has_half_scale)


def _scoped(number_format: ScaledLevels | ZeroPointInteger, shape: GridShape) -> GridShape:
    region = number_format.region
    is_half = number_format.parameters["scale"].dtype == np.float16
    return replace(shape, group=region.columns, has_half_scale=is_half, is_whole_tensor=region.rows is None)
