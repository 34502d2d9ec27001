# SPDX-License-Identifier: Apache-2.0
"""What Q3_K, Q6_K and IQ4_XS share: an fp16 scale per 256 weights and a small signed integer scale per group.

value = (scale * scale_code) * level(code)
"""

from __future__ import annotations

from typing import ClassVar

from array_api_compat import array_namespace

from lilliput.arrays import Array
from lilliput.formats.levels import Levels
from lilliput.formats.number_format import BlockFormat, Parameters, expand


class ScaledScales(BlockFormat):
    """Two levels of scales, no minimum; subclasses give levels, group size and layout.

    Parameters: "scale" fp16 [rows, blocks]; "scale_code" int8 [rows, groups], as the signed number it stands for.
    """

    block_size = 256
    group_size: ClassVar[int]
    levels: ClassVar[Levels]

    def values(self, codes: Array, parameters: Parameters, columns: slice | None = None) -> Array:
        """(scale * scale_code) * level(code)."""
        return expand(self.group_scale(parameters), self.group_size, columns) * self.levels.of(codes)

    def group_scale(self, parameters: Parameters) -> Array:
        """Gives scale * scale_code, float32 [rows, groups]."""
        xp = array_namespace(parameters["scale_code"])
        scale = expand(xp.astype(parameters["scale"], xp.float32), self.block_size // self.group_size, None)
        return scale * xp.astype(parameters["scale_code"], xp.float32)
