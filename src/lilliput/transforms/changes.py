# SPDX-License-Identifier: Apache-2.0
"""What a transform does to one tensor. All take float32 [rows, columns]; a vector comes as one column."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lilliput.arrays import FloatArray
from lilliput.transforms.rotation import Rotation


class Change(Protocol):
    """One step from the values that a tensor had to those that it gets."""

    def applied(self, values: FloatArray) -> FloatArray:
        """A new array of the same shape."""

    @property
    def content(self) -> FloatArray:
        """What tells this change from another of its kind: for fingerprints."""


@dataclass(frozen=True, slots=True, eq=False)
class ScaledRows:
    """Each row times a factor. factors: [rows]."""

    factors: FloatArray

    @property
    def content(self) -> FloatArray:
        """The factors."""
        return self.factors

    def applied(self, values: FloatArray) -> FloatArray:
        """[rows, columns]."""
        return values * self.factors[:, None]


@dataclass(frozen=True, slots=True, eq=False)
class ScaledColumns:
    """Each column times a factor; what enters the layer is divided by it. factors: [columns]."""

    factors: FloatArray

    @property
    def content(self) -> FloatArray:
        """The factors."""
        return self.factors

    def applied(self, values: FloatArray) -> FloatArray:
        """[rows, columns]."""
        return values * self.factors


@dataclass(frozen=True, slots=True, eq=False)
class RotatedRows:
    """Q^T W: what the layer makes is turned."""

    rotation: Rotation

    @property
    def content(self) -> FloatArray:
        """The rotation's signs."""
        return self.rotation.signs

    def applied(self, values: FloatArray) -> FloatArray:
        """[rows, columns]."""
        return np.ascontiguousarray(self.rotation.turned(np.ascontiguousarray(values.T)).T)


@dataclass(frozen=True, slots=True, eq=False)
class RotatedColumns:
    """W Q: what the layer reads was turned."""

    rotation: Rotation

    @property
    def content(self) -> FloatArray:
        """The rotation's signs."""
        return self.rotation.signs

    def applied(self, values: FloatArray) -> FloatArray:
        """[rows, columns]."""
        return self.rotation.turned(values)


@dataclass(frozen=True, slots=True, eq=False)
class Ones:
    """A norm whose weight went into the layers that read it."""

    @property
    def content(self) -> FloatArray:
        """Nothing."""
        return np.zeros(0, dtype=np.float32)

    def applied(self, values: FloatArray) -> FloatArray:
        """[rows, 1]."""
        return np.ones_like(values)
