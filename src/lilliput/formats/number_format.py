# SPDX-License-Identifier: Apache-2.0
"""What a number format is: the values that a weight can take, and how codes and parameters give them.

Three acts stay apart, because every method needs them one by one:
`fit` chooses scales, `nearest_codes` chooses codes, `pack` lays out bytes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import lcm, prod
from typing import TYPE_CHECKING

import numpy as np
from array_api_compat import array_namespace

from lilliput.arrays import Array, ByteArray, FloatArray
from lilliput.errors import FormatError

if TYPE_CHECKING:
    from lilliput.formats.group_lines import GroupLines

# Parameters by plane name, exactly as stored: fp16 values rounded, small codes as integers.
Parameters = Mapping[str, Array]
# Stored arrays by plane name, as a container writes them. Block formats have one plane, "blocks".
Planes = Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Scope:
    """One level at which parameters are shared.

    rows, columns: size of the region that shares one set; None means all of that axis.
    parameters: the names that live at this level. Q4_K: Scope(1, 256, ("scale", "minimum")) then
    Scope(1, 32, ("scale_code", "minimum_code")).
    """

    rows: int | None
    columns: int | None
    parameters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PlaneSpec:
    """dtype and shape of one stored plane."""

    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the plane."""
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Encoded:
    """Codes and parameters of a matrix before packing.

    codes: integers [rows, columns / unit].  parameters: each [rows / scope.rows, columns / scope.columns].
    """

    codes: Array
    parameters: Parameters


class NumberFormat(ABC):
    """One number format. Instances are stateless values; arithmetic is float32/int32 on numpy or torch.

    block_size: rows must be a multiple of it.  unit: columns whose codes are decided together.
    """

    name: str
    scopes: tuple[Scope, ...] = ()
    unit: int = 1
    block_size: int = 1
    can_encode: bool = True
    # Largest magnitudes of a group, least and greatest, at which its values keep their full relative precision.
    full_precision: tuple[float, float] = (1e-5, 1e5)

    @abstractmethod
    def stored_planes(self, rows: int, columns: int) -> Mapping[str, PlaneSpec]:
        """Name, dtype and shape of each stored plane of a [rows, columns] matrix."""

    @abstractmethod
    def unpack(self, planes: Planes, columns: int) -> Encoded:
        """Stored planes (numpy) -> codes and parameters."""

    @abstractmethod
    def pack(self, encoded: Encoded) -> Planes:
        """Codes and parameters (numpy) -> stored planes. Pure re-encoding: `unpack(pack(e))` equals `e`."""

    @abstractmethod
    def values(self, codes: Array, parameters: Parameters, columns: slice | None = None) -> Array:
        """Float32 values of codes [rows, n / unit].

        columns: the absolute column range that `codes` covers (parameters are always whole rows); None means all.
        """

    def fit(
        self, weight: Array, importance: Array | None, *, scope: int = 0, outer: Parameters | None = None
    ) -> Parameters:
        """Choose the parameters of `scopes[scope]`, as stored, for float32 weight [rows, columns].

        importance: weight of each squared error, broadcastable to `weight`, or None.
        outer: parameters of the wider scopes, already chosen.
        """
        raise FormatError(f"{self.name}: decoding only; no encoder for this format yet")

    def widest_parameters(self, weight: Array) -> Parameters:
        """Parameters of every scope, as stored, whose levels just reach the largest weights: no search, no importance.

        What rounding to nearest uses; `fit` is what one normally wants.
        """
        if self.scopes:
            raise FormatError(f"{self.name}: decoding only; no encoder for this format yet")
        return {}

    def nearest_codes(
        self, target: Array, parameters: Parameters, columns: slice | None = None, *, metric: Array | None = None
    ) -> Array:
        """Codes nearest to float32 target [rows, n] under parameters of whole rows.

        columns: absolute column range of `target`; a multiple of `unit`.  metric: [unit] or [unit, unit] or None.
        """
        raise FormatError(f"{self.name}: decoding only; no encoder for this format yet")

    def weighted_codes(self, target: Array, parameters: Parameters, importance: Array | None) -> Array:
        """Codes of least squared error weighted by importance, broadcastable to target [rows, columns].

        The nearest codes, except where a code stands for several columns, between which importance decides.
        """
        return self.nearest_codes(target, parameters)

    def linear_terms(self, codes: Array, parameters: Parameters, columns: slice | None = None) -> Mapping[str, Array]:
        """What the values are linear in: values = sum of parameter * term over the outermost float parameters.

        Names a float32 [rows, n] term for each parameter of `scopes[0]`, holding codes and inner parameters fixed:
        for Q4_K {"scale": scale_code * code, "minimum": -minimum_code}. Least-squares refits and gradients use it.
        """
        if self.scopes:
            raise FormatError(f"{self.name}: decoding only; its values have no linear terms here yet")
        return {}

    def group_lines(self, parameters: Parameters, rows: int) -> GroupLines | None:
        """The values of `rows` whole rows under these parameters as lines per group; None where they are not lines."""
        return None

    def encode(self, weight: Array, importance: Array | None = None) -> Encoded:
        """Fit every scope from the outermost inward, then round to the nearest codes."""
        parameters = self.fitted(weight, importance)
        return Encoded(self.weighted_codes(weight, parameters, importance), parameters)

    def fitted(self, weight: Array, importance: Array | None = None) -> Parameters:
        """Parameters of every scope, from the outermost inward."""
        parameters: dict[str, Array] = {}
        for index in range(len(self.scopes)):
            parameters.update(self.fit(weight, importance, scope=index, outer=parameters))
        return parameters

    def dequantize(self, planes: Planes, columns: int) -> FloatArray:
        """Stored planes -> float32 [rows, columns]."""
        encoded = self.unpack(planes, columns)
        # A damaged file may hold infinite scales; the values then are what they are, without a warning.
        with np.errstate(over="ignore", invalid="ignore"):
            result: FloatArray = np.asarray(self.values(encoded.codes, encoded.parameters), dtype=np.float32)
        return result

    def stored_bytes(self, rows: int, columns: int) -> int:
        """Bytes of a [rows, columns] matrix, all planes."""
        return sum(spec.nbytes for spec in self.stored_planes(rows, columns).values())

    @property
    def bits_per_weight(self) -> float:
        """All stored bits per weight of a wide row, computed from the layout."""
        columns = self.block_size * 16
        return self.stored_bytes(1, columns) * 8 / columns

    @property
    def row_step(self) -> int | None:
        """Rows that are encoded together: 1 where every row stands alone, None where the whole matrix shares."""
        step = 1
        for scope in self.scopes:
            if scope.rows is None:
                return None
            step = lcm(step, scope.rows)
        return step

    def row_range(self, planes: Planes, start: int, stop: int) -> Planes:
        """Planes of rows start..stop of a matrix; start a multiple of `row_step`, views where possible."""
        return {name: array[start:stop] for name, array in planes.items()}

    def parameters_of_rows(self, parameters: Parameters, start: int, stop: int) -> Parameters:
        """The parameters that rows start..stop use, as if these were the whole matrix."""
        found: dict[str, Array] = {}
        for scope in self.scopes:
            for name in scope.parameters:
                whole = parameters[name]
                found[name] = whole if scope.rows is None else whole[start // scope.rows : -(-stop // scope.rows)]
        return found

    def joined_rows(self, parts: Sequence[Planes]) -> Planes:
        """Planes of matrices that lie below each other; all but the last have a multiple of `row_step` rows."""
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def check_columns(self, tensor_name: str, columns: int) -> None:
        """Raise FormatError when rows of `columns` weights do not divide into blocks."""
        if columns % self.block_size:
            raise FormatError(
                f"{tensor_name}: row length {columns} is not a multiple of {self.name.upper()}'s block of "
                f"{self.block_size} weights; use Q8_0 (blocks of 32) for this tensor or keep it in F16"
            )

    def __repr__(self) -> str:
        return f"<NumberFormat {self.name}>"


class BlockFormat(NumberFormat):
    """A format whose rows are runs of equal blocks of bytes: every ggml type.

    The one plane is "blocks": uint8 [rows, columns / block_size * block_bytes].
    Subclasses write `unpack_blocks` and `pack_blocks` on [n, block_bytes]; rows and columns are handled here.
    half_places: where in a block's bytes the fp16 numbers lie that all of its values are proportional to.
    """

    block_bytes: int
    half_places: tuple[int, ...] = ()

    def stored_planes(self, rows: int, columns: int) -> Mapping[str, PlaneSpec]:
        """One plane of bytes."""
        return {"blocks": PlaneSpec(np.dtype(np.uint8), (rows, columns // self.block_size * self.block_bytes))}

    @abstractmethod
    def unpack_blocks(self, blocks: ByteArray) -> Encoded:
        """uint8 [n, block_bytes] -> codes [n, block_size / unit]; each parameter [n, groups of its scope]."""

    def pack_blocks(self, encoded: Encoded) -> ByteArray:
        """The inverse of `unpack_blocks`."""
        raise FormatError(f"{self.name}: decoding only; no encoder for this format yet")

    def unpack(self, planes: Planes, columns: int) -> Encoded:
        """Stored bytes -> codes [rows, columns / unit] and parameters [rows, groups]."""
        data = np.asarray(planes["blocks"])
        rows = data.shape[0]
        encoded = self.unpack_blocks(np.ascontiguousarray(data).reshape(-1, self.block_bytes))
        return Encoded(
            encoded.codes.reshape(rows, -1),
            {name: array.reshape(rows, -1) for name, array in encoded.parameters.items()},
        )

    def pack(self, encoded: Encoded) -> Planes:
        """Codes and parameters -> stored bytes."""
        rows = encoded.codes.shape[0]
        per_block = self.block_size // self.unit
        blocks = encoded.codes.reshape(-1, per_block)
        parameters = {name: array.reshape(blocks.shape[0], -1) for name, array in encoded.parameters.items()}
        return {"blocks": self.pack_blocks(Encoded(blocks, parameters)).reshape(rows, -1)}


def expand(parameter: Array, group: int, columns: slice | None) -> Array:
    """Repeat a per-group parameter [rows, groups] over its columns and cut the range `columns`."""
    repeat = array_namespace(parameter).repeat
    if columns is None:
        return repeat(parameter, group, axis=1)
    start, stop, _ = columns.indices(parameter.shape[1] * group)
    first, last = start // group, -(-stop // group)
    return repeat(parameter[:, first:last], group, axis=1)[:, start - first * group : stop - first * group]
