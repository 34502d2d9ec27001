# SPDX-License-Identifier: Apache-2.0
"""The numbers that the codes of a format stand for, before any scale: consecutive integers or a small table."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from array_api_compat import array_namespace, device

from lilliput.arrays import Array, FloatArray


@dataclass(frozen=True)
class Levels:
    """Level of code 0, 1, 2 …, ascending.

    table: float32 [n].  midpoints: float32 [n - 1], where the nearest level changes; a tie goes to the lower level of a
    table and to the even integer of a run of integers.
    """

    table: FloatArray
    is_integer_run: bool = field(init=False)
    midpoints: FloatArray = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "is_integer_run", bool(np.all(np.diff(self.table) == 1)))
        object.__setattr__(self, "midpoints", ((self.table[1:] + self.table[:-1]) * np.float32(0.5)))

    @classmethod
    def integers(cls, first: int, last: int) -> Levels:
        """first, first + 1 … last."""
        return cls(np.arange(first, last + 1, dtype=np.float32))

    @property
    def first(self) -> float:
        """Lowest level."""
        return float(self.table[0])

    @property
    def last(self) -> float:
        """Highest level."""
        return float(self.table[-1])

    def of(self, codes: Array) -> Array:
        """float32 level of each code."""
        xp = array_namespace(codes)
        if self.is_integer_run:
            return xp.astype(codes, xp.float32) + self.first
        return take(self.table, codes)

    def nearest(self, target: Array) -> Array:
        """uint8 code of the level nearest to float32 target."""
        xp = array_namespace(target)
        if self.is_integer_run:
            return xp.astype(rounded_between(target, self.first, self.last) - self.first, xp.uint8)
        midpoints = xp.asarray(self.midpoints, device=device(target))
        return xp.astype(xp.searchsorted(midpoints, target), xp.uint8)

    def nearest_level(self, target: Array) -> Array:
        """float32 level nearest to float32 target."""
        if self.is_integer_run:
            return rounded_between(target, self.first, self.last)
        return self.of(self.nearest(target))


def rounded_between(target: Array, lowest: float, highest: float) -> Array:
    """Round half to even, clip, and make -0 a 0, whose sign would otherwise reach stored scales of zero groups."""
    xp = array_namespace(target)
    return xp.clip(xp.round(target), lowest, highest) + 0.0


def take(table: FloatArray, codes: Array) -> Array:
    """table[codes] on the namespace and device of `codes`; a table [n, k] appends an axis of k."""
    xp = array_namespace(codes)
    flat = xp.reshape(xp.astype(codes, xp.int32), (-1,))
    found = xp.take(xp.asarray(table, device=device(codes)), flat, axis=0)
    return xp.reshape(found, (*codes.shape, *table.shape[1:]))
