# SPDX-License-Identifier: Apache-2.0
"""What MXFP4 and NVFP4 share: 4-bit floats (E2M1) under an 8-bit float scale; value = scale(scale_code) * e2m1(code).

ggml stores twice the E2M1 value in its table and half the scale in its scale decoder; the product is the same number.
"""

from __future__ import annotations

from typing import ClassVar

from array_api_compat import array_namespace

from lilliput.arrays import Array, FloatArray
from lilliput.formats.codebooks import codebook
from lilliput.formats.levels import take
from lilliput.formats.number_format import BlockFormat, Parameters, expand


class FourBitFloat(BlockFormat):
    """4-bit floats; subclasses give the scale's table, the group size and the layout."""

    group_size: ClassVar[int]
    # float32 [256]: half the scale that each stored byte stands for.
    half_scales: ClassVar[FloatArray]
    can_encode = False

    def values(self, codes: Array, parameters: Parameters, columns: slice | None = None) -> Array:
        """Gives half_scale(scale_code) * doubled_e2m1(code)."""
        scale = expand(take(self.half_scales, parameters["scale_code"]), self.group_size, columns)
        xp = array_namespace(codes)
        return scale * xp.reshape(take(codebook("e2m1_doubled"), codes), codes.shape)
