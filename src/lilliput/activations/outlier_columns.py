# SPDX-License-Identifier: Apache-2.0
"""Inputs of which a few columns stay floats: those with a magnitude above a threshold in any token (LLM.int8()).

The rest has scales of its own, which the outliers then do not spoil. The product of the float columns is added.
Source: https://arxiv.org/abs/2208.07339.
"""

from __future__ import annotations

from dataclasses import dataclass

from array_api_compat import array_namespace

from lilliput.activations.integer_inputs import IntegerInputs
from lilliput.arrays import Array


@dataclass(frozen=True, slots=True)
class WithOutlierColumns:
    """base: of the other columns.  threshold: in units of the inputs."""

    base: IntegerInputs
    threshold: float

    @property
    def name(self) -> str:
        """As recipes spell it."""
        return f"{self.base.name}+outliers{self.threshold:g}"

    @property
    def is_static(self) -> bool:
        """Never: outliers are seen, not foreseen."""
        return False

    def outliers(self, x: Array) -> Array:
        """Which columns of [tokens, columns] stay floats, bool [columns]."""
        xp = array_namespace(x)
        found: Array = xp.any(xp.abs(x) > self.threshold, axis=0)
        return found
