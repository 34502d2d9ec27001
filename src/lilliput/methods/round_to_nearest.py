# SPDX-License-Identifier: Apache-2.0
"""Round to nearest: the baseline that every other method must beat.

Problem   the least that can be done: scales first, then each weight to its nearest level.
Idea      a group's scale lets its outermost level just reach the largest weight; nothing is clipped, nothing searched.
          Codes are the nearest levels. Importance is not looked at.
Changes   none: this is what papers call RTN (absmax for symmetric formats, min-max for the others).
Cost      one pass over the weights, a few temporary copies of a slab of rows.
Not when  ever, but to compare with: `searched_scales` costs seconds more and halves the error of low-bit formats.
"""

from __future__ import annotations

import numpy as np

from lilliput.arrays import FloatArray
from lilliput.formats import Encoded, NumberFormat, Planes
from lilliput.formats.ordered_groups import OrderedGroups
from lilliput.methods.column_order import quantize_in_order
from lilliput.methods.method import Needs
from lilliput.records import LayerInputs


class RoundToNearest:
    """Absmax scales, nearest codes."""

    name: str = "round_to_nearest"
    paper: str = "folklore; the RTN rows of https://arxiv.org/abs/2210.17323"
    needs: Needs = "nothing"
    baseline: str | None = None

    def supports(self, number_format: NumberFormat) -> bool:
        """Every format that encodes."""
        return number_format.can_encode

    def quantize(self, number_format: NumberFormat, weight: FloatArray, inputs: LayerInputs, *, threads: int) -> Planes:
        """Weight [rows, columns] -> stored planes. `inputs` say no more than the order of columns."""
        if isinstance(number_format, OrderedGroups):
            return quantize_in_order(self, number_format, weight, inputs, threads=threads)
        number_format.check_columns("weight", weight.shape[1])
        parameters = number_format.widest_parameters(np.asarray(weight, dtype=np.float32))
        codes = number_format.nearest_codes(weight, parameters)
        return number_format.pack(Encoded(codes, parameters))
