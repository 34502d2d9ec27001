# SPDX-License-Identifier: Apache-2.0
"""What a method is: it chooses the codes of one tensor, for any number format it supports."""

from __future__ import annotations

from typing import Protocol

from lilliput.arrays import FloatArray
from lilliput.formats import NumberFormat, Planes


class TensorMethod(Protocol):
    """One paper's algorithm on one tensor.

    name: as recipes spell it.  paper: where it comes from.  needs_statistics: refuses to run without importance.
    baseline: the method that it must beat on correlated inputs, or None for the baseline itself.
    """

    name: str
    paper: str
    needs_statistics: bool
    baseline: str | None

    def supports(self, number_format: NumberFormat) -> bool:
        """Whether this method can choose codes for that format."""

    def quantize(
        self, number_format: NumberFormat, weight: FloatArray, importance: FloatArray | None, *, threads: int
    ) -> Planes:
        """Weight [rows, columns] -> stored planes. importance: [columns], mean square of the inputs, or None."""
