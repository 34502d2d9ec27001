# SPDX-License-Identifier: Apache-2.0
"""What Q4_0, Q5_0, Q8_0 and IQ4_NL share: groups of 32 with one fp16 scale; value = scale * level(code)."""

from __future__ import annotations

from typing import ClassVar

from array_api_compat import array_namespace

from lilliput.arrays import Array
from lilliput.formats.levels import Levels
from lilliput.formats.number_format import BlockFormat, Parameters, expand


class SingleScale(BlockFormat):
    """One stored float scale per group; subclasses give the levels and the layout."""

    levels: ClassVar[Levels]

    def values(self, codes: Array, parameters: Parameters, columns: slice | None = None) -> Array:
        """Gives scale * level(code)."""
        xp = array_namespace(codes)
        scale = expand(xp.astype(parameters["scale"], xp.float32), self.block_size, columns)
        return scale * self.levels.of(codes)
