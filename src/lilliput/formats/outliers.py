# SPDX-License-Identifier: Apache-2.0
"""Any format with its worst weights kept in fp16 beside it: int8_channel+columns1, int3_g128+sparse1.

    +columns<p>   p percent of the columns, whole: LLM.int8() (arXiv 2208.07339), for inputs with a few large features
    +sparse<p>    p percent of the weights of each row: SpQR (arXiv 2306.03078)

layout   the planes of the base format, and "outlier_columns" and "outlier_values":
         columns: uint16 [1, 1, k] and fp16 [rows, 1, k];  sparse: uint16 [rows, 1, k] and fp16 [rows, 1, k];
         k = p percent of the columns, rounded, at least 1
value    the outlier's value where there is one, else the base format's
range    ±65504 for outliers
bits     those of the base, + 16 p / 100 for columns, + 32 p / 100 for sparse: int3_g128+sparse1 has 3.445
readers  none

Which weights: first the largest by weighted square; the base is fitted to the rest, and what it then serves worst by
weighted squared error is the next choice, twice; the choice that leaves the least error is kept. The papers take a
threshold; here the number of outliers is fixed, in sparse for each row, so that sizes are known before any work.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
from array_api_compat import array_namespace, device

from lilliput.arrays import Array
from lilliput.errors import FormatError
from lilliput.formats.number_format import Encoded, NumberFormat, Parameters, Planes, PlaneSpec, Scope
from lilliput.formats.regions import CHANNEL, TENSOR
from lilliput.formats.scale_search import bounded, to_half
from lilliput.formats.scoped_number import NOMINAL_SIZE

PLACES, VALUES = "outlier_columns", "outlier_values"
MOST_COLUMNS = 1 << 16
LARGEST_PERCENT = 10.0
SPELLING = (
    "<format>+columns<p> or <format>+sparse<p>: a format that encodes and has scales, then up to 10 percent of its "
    "columns, or of the weights of each row, such as int4_g128+columns0.5"
)
_PATTERN = re.compile(r"(columns|sparse)(\d{1,2}(?:\.\d{1,3})?)")
# Choices of outliers that are compared: the largest weights, then what the base, fitted without them, serves worst …
ROUNDS = 3


class WithOutliers(NumberFormat):
    """A base format, and fp16 numbers in place of some of its weights."""

    def __init__(self, base: NumberFormat, kind: str, percent: float) -> None:
        """percent: above 0, at most LARGEST_PERCENT."""
        self.base = base
        self.percent = percent
        self.name = f"{base.name}+{kind}{percent:g}"
        self.unit = base.unit
        self.block_size = base.block_size

    def outliers_per_row(self, columns: int) -> int:
        """How many of a row's weights are kept."""
        return min(max(1, round(columns * self.percent / 100)), columns)

    @property
    def bits_per_weight(self) -> float:
        """All stored bits per weight of a square matrix of NOMINAL_SIZE."""
        return self.stored_bytes(NOMINAL_SIZE, NOMINAL_SIZE) * 8 / NOMINAL_SIZE**2

    def check_columns(self, tensor_name: str, columns: int) -> None:
        """Raise FormatError when rows do not divide into the base's blocks, or are longer than places can count."""
        self.base.check_columns(tensor_name, columns)
        if columns > MOST_COLUMNS:
            raise FormatError(
                f"{tensor_name}: row length {columns} is above the {MOST_COLUMNS} that {self.name.upper()} can count; "
                f"use {self.base.name.upper()} without outliers for this tensor"
            )

    def stored_planes(self, rows: int, columns: int) -> Mapping[str, PlaneSpec]:
        """The base's planes, then places and values of the outliers."""
        count = self.outliers_per_row(columns)
        return {
            **self.base.stored_planes(rows, columns),
            PLACES: PlaneSpec(np.dtype("<u2"), (self.place_rows(rows), 1, count)),
            VALUES: PlaneSpec(np.dtype("<f2"), (rows, 1, count)),
        }

    def unpack(self, planes: Planes, columns: int) -> Encoded:
        """Places as int32, values as stored."""
        encoded = self.base.unpack(planes, columns)
        places = np.asarray(planes[PLACES]).astype(np.int32)
        return Encoded(encoded.codes, {PLACES: places, VALUES: np.asarray(planes[VALUES]), **encoded.parameters})

    def pack(self, encoded: Encoded) -> Planes:
        """The inverse of `unpack`."""
        own = {
            PLACES: np.ascontiguousarray(encoded.parameters[PLACES], dtype="<u2"),
            VALUES: np.ascontiguousarray(encoded.parameters[VALUES], dtype="<f2"),
        }
        return {**self.base.pack(Encoded(encoded.codes, self._of_base(encoded.parameters))), **own}

    def row_range(self, planes: Planes, start: int, stop: int) -> Planes:
        """Planes of rows start..stop."""
        places = planes[PLACES] if self.place_rows(2) == 1 else planes[PLACES][start:stop]
        base = {name: array for name, array in planes.items() if name not in (PLACES, VALUES)}
        return {**self.base.row_range(base, start, stop), PLACES: places, VALUES: planes[VALUES][start:stop]}

    def joined_rows(self, parts: Sequence[Planes]) -> Planes:
        """Planes of matrices below each other; columns that all of them share are those of the first."""
        if len(parts) == 1:
            return parts[0]
        base = [{name: part[name] for name in part if name not in (PLACES, VALUES)} for part in parts]
        places = [part[PLACES] for part in parts]
        return {
            **self.base.joined_rows(base),
            PLACES: places[0] if self.place_rows(2) == 1 else np.concatenate(places),
            VALUES: np.concatenate([part[VALUES] for part in parts]),
        }

    def values(self, codes: Array, parameters: Parameters, columns: slice | None = None) -> Array:
        """The base's values with the outliers in their places."""
        xp = array_namespace(codes)
        found = xp.asarray(self.base.values(codes, self._of_base(parameters), columns), copy=True)
        rows, places, kept = self._inside(parameters, found, columns)
        found[rows, places] = xp.astype(parameters[VALUES], xp.float32)[:, 0, :][kept]
        return found

    def fit(
        self, weight: Array, importance: Array | None, *, scope: int = 0, outer: Parameters | None = None
    ) -> Parameters:
        """Choose outliers in the scopes that come before the base's, then fit the base to the rest."""
        own = len(self.scopes) - len(self.base.scopes)
        if scope < own:
            known = dict(outer or {})
            if PLACES not in known:
                known[PLACES] = self._chosen(weight, importance)
            names = self.scopes[scope].parameters
            return {name: known[name] if name == PLACES else self._kept(weight, known[PLACES]) for name in names}
        assert outer is not None
        rest, weights = self._rest(weight, importance, outer)
        return self.base.fit(rest, weights, scope=scope - own, outer=self._of_base(outer))

    def widest_parameters(self, weight: Array) -> Parameters:
        """The largest magnitudes are kept, and the rest just fits."""
        places = self._worst(bounded(weight) ** 2)
        own = {PLACES: places, VALUES: self._kept(weight, places)}
        return {**own, **self.base.widest_parameters(self._rest(weight, None, own)[0])}

    def nearest_codes(
        self, target: Array, parameters: Parameters, columns: slice | None = None, *, metric: Array | None = None
    ) -> Array:
        """The base's nearest codes; of zero where an outlier is."""
        xp = array_namespace(target)
        rest = xp.asarray(target, copy=True)
        rows, places, _ = self._inside(parameters, rest, columns)
        rest[rows, places] = 0.0
        return self.base.nearest_codes(rest, self._of_base(parameters), columns, metric=metric)

    def linear_terms(self, codes: Array, parameters: Parameters, columns: slice | None = None) -> Mapping[str, Array]:
        """None: outliers are values of their own."""
        raise FormatError(f"{self.name}: its outliers are linear in no parameter of the base")

    @abstractmethod
    def place_rows(self, rows: int) -> int:
        """Rows of the plane of places."""

    @abstractmethod
    def _worst(self, loss: Array) -> Array:
        """int32 [place rows, 1, k], ascending: where loss [rows, columns] is largest."""

    @abstractmethod
    def _total(self, loss: Array) -> Array:
        """Sum [place rows] of loss [rows, columns]."""

    def _chosen(self, weight: Array, importance: Array | None) -> Array:
        """Places of the weights that the base serves worst when it is fitted without them."""
        xp = array_namespace(weight)
        weight = bounded(weight)
        energy = weight * weight
        places = self._worst(energy if importance is None else energy * importance)
        chosen, lowest = places, None
        for _ in range(ROUNDS):
            rest, weights = self._rest(weight, importance, {PLACES: places})
            parameters = self.base.fitted(rest, weights)
            error = self.base.values(self.base.nearest_codes(weight, parameters), parameters) - weight
            left = self._total(error * error * weights)
            if lowest is None:
                lowest = left
            else:
                is_better = left < lowest
                chosen = xp.where(is_better[:, None, None], places, chosen)
                lowest = xp.where(is_better, left, lowest)
            places = self._worst(error * error if importance is None else error * error * importance)
        return chosen

    def _rest(self, weight: Array, importance: Array | None, parameters: Parameters) -> tuple[Array, Array]:
        """Weight with zeros for its outliers, and importance [rows, columns] without any there."""
        xp = array_namespace(weight)
        ones = xp.ones_like(weight) if importance is None else xp.broadcast_to(importance, weight.shape)
        rest, weights = xp.asarray(weight, copy=True), xp.asarray(xp.astype(ones, xp.float32), copy=True)
        rows, places, _ = self._inside(parameters, weight, None)
        rest[rows, places] = 0.0
        weights[rows, places] = 0.0
        return rest, weights

    def _kept(self, weight: Array, places: Array) -> Array:
        """fp16 [rows, 1, k]."""
        xp = array_namespace(weight)
        index = xp.astype(xp.broadcast_to(places[:, 0, :], (weight.shape[0], places.shape[2])), xp.int64)
        return to_half(xp.take_along_axis(weight, index, axis=1))[:, None, :]

    def _inside(self, parameters: Parameters, matrix: Array, columns: slice | None) -> tuple[Array, Array, Array]:
        """Row and column in `matrix` of each outlier that lies in the range `columns`, and which those are [rows, k].

        A damaged file's places beyond the matrix lie in no range.
        """
        xp = array_namespace(matrix)
        start = 0 if columns is None else columns.start
        places = xp.astype(parameters[PLACES], xp.int64)[:, 0, :] - start
        places = xp.broadcast_to(places, (matrix.shape[0], places.shape[1]))
        rows = xp.broadcast_to(xp.arange(matrix.shape[0], device=device(matrix))[:, None], places.shape)
        kept = (places >= 0) & (places < matrix.shape[1])
        return rows[kept], places[kept], kept

    def _of_base(self, parameters: Parameters) -> Parameters:
        return {name: array for name, array in parameters.items() if name not in (PLACES, VALUES)}


class OutlierColumns(WithOutliers):
    """Some columns are kept whole."""

    def __init__(self, base: NumberFormat, percent: float) -> None:
        """percent: of the columns."""
        super().__init__(base, "columns", percent)
        self.scopes = (Scope(None, None, (PLACES,)), Scope(1, None, (VALUES,)), *base.scopes)

    def place_rows(self, rows: int) -> int:
        """All rows share them."""
        return 1

    def _worst(self, loss: Array) -> Array:
        xp = array_namespace(loss)
        order = xp.argsort(-TENSOR.sum_rows(loss)[0], stable=True)[: self.outliers_per_row(loss.shape[1])]
        return xp.astype(xp.sort(order), xp.int32)[None, None, :]

    def _total(self, loss: Array) -> Array:
        return TENSOR.sum(loss)[0]


class SparseOutliers(WithOutliers):
    """Some weights of each row are kept."""

    def __init__(self, base: NumberFormat, percent: float) -> None:
        """percent: of the weights of a row."""
        super().__init__(base, "sparse", percent)
        self.scopes = (Scope(1, None, (PLACES, VALUES)), *base.scopes)

    def place_rows(self, rows: int) -> int:
        """Each row has its own."""
        return rows

    def _worst(self, loss: Array) -> Array:
        xp = array_namespace(loss)
        order = xp.argsort(-loss, axis=1, stable=True)[:, : self.outliers_per_row(loss.shape[1])]
        return xp.astype(xp.sort(order, axis=1), xp.int32)[:, None, :]

    def _total(self, loss: Array) -> Array:
        return CHANNEL.sum(loss)[:, 0]


def with_outliers(base: NumberFormat, suffix: str) -> WithOutliers:
    """The format of a base and what its name goes on with after the plus sign. Raises FormatError."""
    found = _PATTERN.fullmatch(suffix)
    percent = float(found[2]) if found else 0.0
    if found is None or not 0 < percent <= LARGEST_PERCENT or not base.can_encode or not base.scopes:
        raise FormatError(f"unknown number format '{base.name}+{suffix}'; outliers are spelled {SPELLING}")
    return OutlierColumns(base, percent) if found[1] == "columns" else SparseOutliers(base, percent)
