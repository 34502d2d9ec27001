# SPDX-License-Identifier: Apache-2.0
"""Integers whose groups are not runs of columns but follow an order of importance: int4_g128_ordered, GPTQ's act-order.

layout   the planes of the base format, scales and zero points by group; "column_group": int32 [1, 1, columns], the
         group of each column, the same for all rows. Codes lie in the order of the columns
value    scale[group of the column] * (code - zero point of that group)
range    the base format's
bits     those of the base, + 32 / rows: int4_g128_ordered has 4.1328 in a matrix of 4096 rows
readers  GPTQ with `desc_act` and `g_idx`; no other container has a place for an order of columns

The first group holds the columns whose inputs are largest, and so on: columns that matter alike share a scale, and
feedback decides them in exactly this order (methods/column_order.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from array_api_compat import array_namespace

from lilliput.arrays import Array
from lilliput.errors import FormatError
from lilliput.formats.integer import SymmetricInteger
from lilliput.formats.integer_zero_point import ZeroPointInteger
from lilliput.formats.number_format import Encoded, NumberFormat, Parameters, Planes, PlaneSpec, Scope
from lilliput.formats.regions import group
from lilliput.formats.scoped_number import NOMINAL_SIZE

COLUMN_GROUP = "column_group"


class OrderedGroups(NumberFormat):
    """A format of groups, and which group each column belongs to."""

    def __init__(self, base: SymmetricInteger | ZeroPointInteger) -> None:
        """base: with a region that is a group."""
        self.base = base
        self.name = f"{base.name}_ordered"
        self.block_size = base.block_size
        # Groups are no ranges of columns: whoever works on a range needs them all.
        self.scopes = (Scope(None, None, (COLUMN_GROUP,)), Scope(1, None, tuple(base.parameters)))
        # Parameters of a column of its own are what the base makes values from, once they are gathered.
        self._of_columns = type(base)(base.code_bits, group(1))

    @property
    def bits_per_weight(self) -> float:
        """All stored bits per weight of a square matrix of NOMINAL_SIZE."""
        return self.stored_bytes(NOMINAL_SIZE, NOMINAL_SIZE) * 8 / NOMINAL_SIZE**2

    def check_columns(self, tensor_name: str, columns: int) -> None:
        """Raise FormatError when rows of `columns` weights do not divide into groups."""
        self.base.check_columns(tensor_name, columns)

    def stored_planes(self, rows: int, columns: int) -> Mapping[str, PlaneSpec]:
        """The base's planes, then the group of each column."""
        own = PlaneSpec(np.dtype("<i4"), (1, 1, columns))
        return {**self.base.stored_planes(rows, columns), COLUMN_GROUP: own}

    def unpack(self, planes: Planes, columns: int) -> Encoded:
        """Stored planes -> codes in the order of the columns, and parameters, those of a row [rows, 1, groups]."""
        encoded = self.base.unpack(planes, columns)
        return Encoded(encoded.codes, {COLUMN_GROUP: np.asarray(planes[COLUMN_GROUP]), **_of_rows(encoded.parameters)})

    def pack(self, encoded: Encoded) -> Planes:
        """The inverse of `unpack`."""
        own = np.ascontiguousarray(encoded.parameters[COLUMN_GROUP], dtype="<i4")
        return {**self.base.pack(Encoded(encoded.codes, self._of_groups(encoded.parameters))), COLUMN_GROUP: own}

    def row_range(self, planes: Planes, start: int, stop: int) -> Planes:
        """Planes of rows start..stop; all rows share the groups of the columns."""
        return {**self.base.row_range(self._of_base(planes), start, stop), COLUMN_GROUP: planes[COLUMN_GROUP]}

    def joined_rows(self, parts: Sequence[Planes]) -> Planes:
        """Planes of matrices below each other, which share the groups of their columns."""
        joined = self.base.joined_rows([self._of_base(part) for part in parts])
        return {**joined, COLUMN_GROUP: parts[0][COLUMN_GROUP]}

    def values(self, codes: Array, parameters: Parameters, columns: slice | None = None) -> Array:
        """The base's values under the parameters of each column's group."""
        return self._of_columns.values(codes, self._gathered(parameters, columns))

    def nearest_codes(
        self, target: Array, parameters: Parameters, columns: slice | None = None, *, metric: Array | None = None
    ) -> Array:
        """Nearest code."""
        return self._of_columns.nearest_codes(target, self._gathered(parameters, columns))

    def fit(
        self, weight: Array, importance: Array | None, *, scope: int = 0, outer: Parameters | None = None
    ) -> Parameters:
        """Groups of columns by falling importance, in their own order where there is none; then the base's search."""
        xp = array_namespace(weight)
        if scope == 0:
            if importance is None:
                return {COLUMN_GROUP: self._groups_in_order(xp.arange(weight.shape[1]))}
            total = xp.sum(xp.broadcast_to(importance, weight.shape), axis=0)
            return {COLUMN_GROUP: self._groups_in_order(xp.argsort(-total, stable=True))}
        assert outer is not None
        order = xp.argsort(outer[COLUMN_GROUP][0, 0, :], stable=True)
        wanted = None if importance is None else xp.broadcast_to(importance, weight.shape)[:, order]
        return _of_rows(self.base.fit(weight[:, order], wanted))

    def widest_parameters(self, weight: Array) -> Parameters:
        """Groups in the columns' own order; the largest of each just fits."""
        own = self.fit(weight, None)
        return {**own, **_of_rows(self.base.widest_parameters(weight))}

    def linear_terms(self, codes: Array, parameters: Parameters, columns: slice | None = None) -> Mapping[str, Array]:
        """None: a term belongs to a run of columns."""
        raise FormatError(f"{self.name}: its groups are no runs of columns, over which terms are summed")

    def reordered(self, planes: Planes, order: Array) -> Planes:
        """Planes of the base, whose columns are `order` of the matrix (int64 [columns], numpy), as planes of this."""
        encoded = self.base.unpack(planes, len(order))
        codes = np.empty_like(encoded.codes)
        codes[:, order] = encoded.codes
        own = {COLUMN_GROUP: self._groups_in_order(order), **_of_rows(encoded.parameters)}
        return self.pack(Encoded(codes, own))

    def is_in_columns_order(self, planes: Planes) -> bool:
        """Whether the groups are runs of columns after all."""
        index = np.asarray(planes[COLUMN_GROUP]).reshape(-1)
        return np.array_equal(index, np.arange(index.size) // self.block_size)

    def _groups_in_order(self, order: Array) -> Array:
        """int32 [1, 1, columns]: the group of each column, where the groups are runs of columns `order`."""
        xp = array_namespace(order)
        place = xp.argsort(order, stable=True)
        return xp.astype(place // self.block_size, xp.int32)[None, None, :]

    def _gathered(self, parameters: Parameters, columns: slice | None) -> Parameters:
        """Of each column of the range, the parameters of its group."""
        xp = array_namespace(parameters[COLUMN_GROUP])
        index = parameters[COLUMN_GROUP][0, 0, :]
        index = xp.astype(index if columns is None else index[columns], xp.int64)
        found = self._of_groups(parameters)
        # A damaged file may name groups that there are not; its values are then of no use, and no error.
        return {name: xp.take(array, xp.clip(index, 0, array.shape[1] - 1), axis=1) for name, array in found.items()}

    def _of_base(self, planes: Planes) -> dict[str, Array]:
        return {name: array for name, array in planes.items() if name != COLUMN_GROUP}

    def _of_groups(self, parameters: Parameters) -> dict[str, Array]:
        """Those of the base, [rows, groups]."""
        return {name: array[:, 0, :] for name, array in self._of_base(parameters).items()}


def _of_rows(parameters: Parameters) -> dict[str, Array]:
    """Parameters of groups [rows, groups] as parameters of rows, [rows, 1, groups]."""
    return {name: array[:, None, :] for name, array in parameters.items()}
