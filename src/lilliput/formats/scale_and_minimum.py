# SPDX-License-Identifier: Apache-2.0
"""What Q4_1 and Q5_1 share: groups of 32 with an fp16 scale and an fp16 minimum; value = scale * code + minimum."""

from __future__ import annotations

from typing import ClassVar

from array_api_compat import array_namespace

from lilliput.arrays import Array
from lilliput.formats.number_format import BlockFormat, Parameters, expand


class ScaleAndMinimum(BlockFormat):
    """Codes 0..last_code on a line through `minimum`; subclasses give the layout."""

    last_code: ClassVar[int]

    def values(self, codes: Array, parameters: Parameters, columns: slice | None = None) -> Array:
        """Gives scale * code + minimum."""
        xp = array_namespace(codes)
        scale = expand(xp.astype(parameters["scale"], xp.float32), self.block_size, columns)
        minimum = expand(xp.astype(parameters["minimum"], xp.float32), self.block_size, columns)
        return scale * xp.astype(codes, xp.float32) + minimum
