# SPDX-License-Identifier: Apache-2.0
"""Which weights of a matrix share one set of parameters, and how to sum and compare over them.

    tensor      the whole matrix
    channel     one row, an output of the layer
    g32 … g256  a run of columns within a row
    block128    128 rows by 128 columns; the last rows may be fewer
    rows16      all columns of 16 rows; the last may be fewer

Sums are taken in a fixed order (halves added to each other, columns first, then rows), so that no result depends on the
library, the number of threads, or into how many pieces a matrix was cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from array_api_compat import array_namespace

from lilliput.arrays import Array
from lilliput.formats.number_format import Scope, expand

# Weights of the pieces in which a large matrix is looked at: their temporaries stay in the processor's cache.
PIECE_WEIGHTS = 1 << 18


@dataclass(frozen=True, slots=True)
class Region:
    """rows, columns: what shares one set; None means all of that axis. name: as format names spell it."""

    name: str
    rows: int | None
    columns: int | None

    @property
    def is_group(self) -> bool:
        """A run of columns within a row."""
        return self.rows == 1 and self.columns is not None

    def scope(self, *parameters: str) -> Scope:
        """The scope of parameters that live here."""
        return Scope(self.rows, self.columns, parameters)

    def grid(self, rows: int, columns: int) -> tuple[int, int]:
        """How many regions a [rows, columns] matrix has along each axis."""
        return -(-rows // (self.rows or max(rows, 1))), 1 if self.columns is None else columns // self.columns

    def spread(self, parameter: Array, rows: int, columns: slice | None) -> Array:
        """Parameter [region rows, region columns] -> broadcastable to the weights [rows, columns]."""
        return self.of_rows(parameter if self.columns is None else expand(parameter, self.columns, columns), rows)

    def of_rows(self, parameter: Array, rows: int) -> Array:
        """Parameter [region rows, n] -> [rows, n], or [1, n] where all rows share one region."""
        if self.rows is None or self.rows == 1:
            return parameter
        return array_namespace(parameter).repeat(parameter, self.rows, axis=0)[:rows]

    def sum(self, values: Array) -> Array:
        """[rows, columns] -> [region rows, region columns]."""
        return self.sum_rows(self.sum_columns(values))

    def sum_columns(self, values: Array) -> Array:
        """[rows, columns] -> [rows, region columns]."""
        rows, columns = values.shape
        return halved_sum(array_namespace(values).reshape(values, (rows, -1, self.columns or columns)))

    def sum_rows(self, values: Array) -> Array:
        """[rows, region columns] -> [region rows, region columns]."""
        if self.rows == 1:
            return values
        xp = array_namespace(values)
        rows, across = values.shape
        together = self.rows or rows
        missing = -rows % together
        if missing:
            padding = xp.zeros_like(xp.broadcast_to(values[:1], (missing, across)))
            values = xp.concat([values, padding], axis=0)
        return halved_sum(xp.permute_dims(xp.reshape(values, (-1, together, across)), (0, 2, 1)))

    def extremes(self, values: Array) -> tuple[Array, Array]:
        """Lowest and highest value of each region, both [region rows, region columns]."""
        xp = array_namespace(values)
        rows, columns = values.shape
        grouped = xp.reshape(values, (rows, -1, self.columns or columns))
        low, high = xp.min(grouped, axis=2), xp.max(grouped, axis=2)
        if self.rows == 1:
            return low, high
        starts = range(0, rows, self.rows or max(rows, 1))
        lows = [xp.min(low[start : start + (self.rows or rows)], axis=0) for start in starts]
        highs = [xp.max(high[start : start + (self.rows or rows)], axis=0) for start in starts]
        return xp.stack(lows), xp.stack(highs)

    def pieces(self, rows: int, columns: int) -> Iterator[slice]:
        """Row ranges of bounded size that cut no region, or single rows where a region is the whole matrix."""
        together = self.rows or 1
        step = max(1, PIECE_WEIGHTS // max(columns, 1) // together) * together
        for start in range(0, rows, step):
            yield slice(start, min(start + step, rows))


TENSOR = Region("tensor", None, None)
CHANNEL = Region("channel", 1, None)


def group(columns: int) -> Region:
    """Runs of `columns` columns."""
    return Region(f"g{columns}", 1, columns)


def square_block(size: int) -> Region:
    """`size` rows by `size` columns."""
    return Region(f"block{size}", size, size)


def row_group(rows: int) -> Region:
    """All columns of `rows` rows."""
    return Region(f"rows{rows}", rows, None)


def halved_sum(values: Array) -> Array:
    """Sum over the last axis: its halves are added to each other until one number is left."""
    xp = array_namespace(values)
    while values.shape[-1] > 1:
        half = values.shape[-1] // 2
        folded = values[..., :half] + values[..., half : 2 * half]
        odd = values.shape[-1] % 2
        values = xp.concat([folded, values[..., -1:]], axis=-1) if odd else folded
    return values[..., 0]
