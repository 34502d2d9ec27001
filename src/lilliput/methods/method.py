# SPDX-License-Identifier: Apache-2.0
"""What a method is: it chooses the codes of one tensor, for any number format it supports."""

from __future__ import annotations

from typing import Literal, Protocol

from lilliput.arrays import FloatArray
from lilliput.formats import NumberFormat, Planes
from lilliput.records import LayerInputs

# The least that a method must know about a layer's inputs.
Needs = Literal["nothing", "mean_square", "hessian"]


class TensorMethod(Protocol):
    """One paper's algorithm on one tensor.

    name: as recipes spell it.  paper: where it comes from.  needs: refused without it.
    baseline: the method that it must beat on correlated inputs, or None for the baseline itself.
    """

    name: str
    paper: str
    needs: Needs
    baseline: str | None

    def supports(self, number_format: NumberFormat) -> bool:
        """Whether this method can choose codes for that format."""

    def quantize(self, number_format: NumberFormat, weight: FloatArray, inputs: LayerInputs, *, threads: int) -> Planes:
        """Float32 weight [rows, columns] -> stored planes. inputs: `NO_INPUTS` where nothing is known."""
