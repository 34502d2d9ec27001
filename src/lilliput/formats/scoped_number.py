# SPDX-License-Identifier: Apache-2.0
"""What the general families share: codes in one plane, each parameter in a plane of its own, one region for all.

layout   "codes": uint8 [rows, ceil(columns * code bits / 8)]; each row is one little-endian bit string, column 0 lowest
         a plane per parameter: [region rows, region columns], see `regions` and the file of the family
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from array_api_compat import array_namespace

from lilliput.arrays import Array, ByteArray
from lilliput.errors import FormatError
from lilliput.formats.bit_packing import pack_fields, unpack_fields
from lilliput.formats.group_lines import GroupLines, WrittenLevels
from lilliput.formats.levels import Levels
from lilliput.formats.number_format import Encoded, NumberFormat, Parameters, Planes, PlaneSpec
from lilliput.formats.pattern_levels import PatternLevels
from lilliput.formats.region_search import outermost_level, outermost_peak, search_region_scale
from lilliput.formats.regions import PIECE_WEIGHTS, Region
from lilliput.formats.scale_search import bounded, reciprocal, to_half

# Bits per weight are told for a matrix of this many rows and columns, where a region is wider than a group.
NOMINAL_SIZE = 4096


@dataclass(frozen=True, slots=True)
class StoredParameter:
    """How one parameter is stored. entries: shape of what one region has; () for a single number."""

    dtype: np.dtype[np.generic]
    entries: tuple[int, ...] = ()


class ScopedNumber(NumberFormat):
    """Codes of `code_bits` and parameters, one set per region of a matrix."""

    def __init__(self, name: str, region: Region, code_bits: int, parameters: Mapping[str, StoredParameter]) -> None:
        """Describe a format. Subclasses are what `families` constructs from names."""
        self.name = name
        self.region = region
        self.code_bits = code_bits
        self.parameters = parameters
        self.scopes = (region.scope(*parameters),) if parameters else ()
        self.block_size = region.columns or 1

    def stored_planes(self, rows: int, columns: int) -> Mapping[str, PlaneSpec]:
        """Codes, then parameters."""
        grid = self.region.grid(rows, columns)
        planes = {"codes": PlaneSpec(np.dtype(np.uint8), (rows, self.row_bytes(columns)))}
        for name, stored in self.parameters.items():
            planes[name] = PlaneSpec(stored.dtype, (*grid, *stored.entries))
        return planes

    def row_bytes(self, columns: int) -> int:
        """Bytes of one row of codes."""
        return -(-columns * self.code_bits // 8)

    @property
    def bits_per_weight(self) -> float:
        """All stored bits per weight of a square matrix of NOMINAL_SIZE."""
        return self.stored_bytes(NOMINAL_SIZE, NOMINAL_SIZE) * 8 / NOMINAL_SIZE**2

    def check_columns(self, tensor_name: str, columns: int) -> None:
        """Raise FormatError when rows of `columns` weights do not divide into groups."""
        if columns % self.block_size:
            raise FormatError(
                f"{tensor_name}: row length {columns} is not a multiple of {self.name.upper()}'s {self.block_size} "
                f"columns; choose a smaller group (…_g32), one scale a row (…_channel), or keep the tensor in F16"
            )

    def unpack(self, planes: Planes, columns: int) -> Encoded:
        """Stored planes -> codes and parameters."""
        codes = np.concatenate(
            [self.unpack_codes(piece, columns) for piece in _pieces(np.asarray(planes["codes"]), columns)]
        )
        return Encoded(codes, {name: np.asarray(planes[name]) for name in self.parameters})

    def pack(self, encoded: Encoded) -> Planes:
        """Codes and parameters -> stored planes."""
        codes = encoded.codes
        packed = np.concatenate([self.pack_codes(piece) for piece in _pieces(codes, codes.shape[1])])
        planes: dict[str, Array] = {"codes": packed}
        for name, stored in self.parameters.items():
            planes[name] = np.ascontiguousarray(encoded.parameters[name], dtype=stored.dtype)
        return planes

    def pack_codes(self, codes: Array) -> ByteArray:
        """Codes [n, columns] -> uint8 [n, row bytes]."""
        return pack_bits(codes, self.code_bits)

    def unpack_codes(self, packed: ByteArray, columns: int) -> Array:
        """The inverse of `pack_codes`."""
        return unpack_bits(packed, self.code_bits, columns)

    def row_range(self, planes: Planes, start: int, stop: int) -> Planes:
        """Planes of rows start..stop; a matrix that shares everything keeps its parameters."""
        together = self.region.rows
        parameters = {name: planes[name] for name in self.parameters}
        if together is not None:
            first, last = start // together, -(-stop // together)
            parameters = {name: array[first:last] for name, array in parameters.items()}
        return {"codes": planes["codes"][start:stop], **parameters}

    def joined_rows(self, parts: Sequence[Planes]) -> Planes:
        """Planes of matrices below each other; of a matrix that shares everything, the first part's parameters."""
        if self.region.rows is not None or len(parts) == 1:
            return super().joined_rows(parts)
        return {**parts[0], "codes": np.concatenate([part["codes"] for part in parts])}


class ScaledLevels(ScopedNumber):
    """One float scale a region; value = scale * level(code)."""

    def __init__(
        self, name: str, region: Region, code_bits: int, grid: Levels | PatternLevels, fractions: Sequence[float]
    ) -> None:
        """Describe a format. fractions: what `fit` tries, see `region_search.clipping_fractions`."""
        super().__init__(name, region, code_bits, {"scale": StoredParameter(scale_dtype(region))})
        self.grid = grid
        self.fractions = tuple(fractions)

    def values(self, codes: Array, parameters: Parameters, columns: slice | None = None) -> Array:
        """Gives scale * level(code)."""
        return self.scale(parameters, codes.shape[0], columns) * self.grid.of(codes)

    def scale(self, parameters: Parameters, rows: int, columns: slice | None) -> Array:
        """float32 scales, broadcastable to [rows, n]."""
        xp = array_namespace(parameters["scale"])
        return self.region.spread(xp.astype(parameters["scale"], xp.float32), rows, columns)

    def group_lines(self, parameters: Parameters, rows: int) -> GroupLines | None:
        """Scales alone."""
        xp = array_namespace(parameters["scale"])
        scale = self.region.of_rows(xp.astype(parameters["scale"], xp.float32), rows)
        return GroupLines(WrittenLevels.of(self.grid), self.region.columns, scale, reciprocal(scale))

    def fit(
        self, weight: Array, importance: Array | None, *, scope: int = 0, outer: Parameters | None = None
    ) -> Parameters:
        """Search each region's scale; see `region_search`."""
        scale = search_region_scale(weight, importance, self.region, self.grid, self.fractions)
        return {"scale": stored_scale(scale, self.region)}

    def widest_parameters(self, weight: Array) -> Parameters:
        """The largest magnitude of each region at the outermost level."""
        peak = outermost_peak(weight, self.region, self.grid)
        return {"scale": stored_scale(peak / outermost_level(self.grid), self.region)}

    def nearest_codes(
        self, target: Array, parameters: Parameters, columns: slice | None = None, *, metric: Array | None = None
    ) -> Array:
        """Nearest level."""
        inverse = reciprocal(self.scale(parameters, target.shape[0], columns))
        return self.grid.nearest(bounded(target) * inverse)

    def linear_terms(self, codes: Array, parameters: Parameters, columns: slice | None = None) -> Mapping[str, Array]:
        """The level of each code."""
        return {"scale": self.grid.of(codes)}


def scale_dtype(region: Region) -> np.dtype[np.generic]:
    """fp16 for groups, whose scales are many; float32 where they cost nothing."""
    return np.dtype("<f2") if region.is_group else np.dtype("<f4")


def stored_scale(scale: Array, region: Region) -> Array:
    """Float32 scales rounded to how they are stored."""
    return to_half(scale) if region.is_group else scale


def pack_bits(codes: Array, bits: int) -> ByteArray:
    """Unsigned codes [n, columns] below 2^bits, bits <= 16 -> uint8 [n, ceil(columns * bits / 8)]."""
    rows, columns = codes.shape
    if bits in (1, 2, 4, 8):
        padded = np.zeros((rows, columns + -columns % (8 // bits)), dtype=np.uint8)
        padded[:, :columns] = codes
        return pack_fields(padded, bits, 1)
    places = (codes.astype(np.uint16)[:, :, None] >> np.arange(bits, dtype=np.uint16)) & np.uint16(1)
    return np.packbits(places.astype(np.uint8).reshape(rows, -1), axis=1, bitorder="little")


def unpack_bits(packed: ByteArray, bits: int, columns: int) -> Array:
    """The inverse of `pack_bits`: uint8, or uint16 above 8 bits, [n, columns]."""
    if bits in (1, 2, 4, 8):
        return unpack_fields(packed, bits, 1)[:, :columns]
    places = np.unpackbits(packed, axis=1, count=columns * bits, bitorder="little").reshape(len(packed), columns, bits)
    codes = np.zeros((len(packed), columns), dtype=np.uint16)
    for place in range(bits):
        codes |= places[:, :, place].astype(np.uint16) << np.uint16(place)
    return codes.astype(np.uint8) if bits <= 8 else codes


def _pieces(array: Array, columns: int) -> list[Array]:
    step = max(1, PIECE_WEIGHTS // max(columns, 1))
    return [array[start : start + step] for start in range(0, max(len(array), 1), step)]
