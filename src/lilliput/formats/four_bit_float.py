# SPDX-License-Identifier: Apache-2.0
"""What MXFP4 and NVFP4 share: 4-bit floats (E2M1) under an 8-bit float scale; value = scale(scale_code) * e2m1(code).

ggml stores twice the E2M1 value in its table and half the scale in its scale decoder; the product is the same number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from array_api_compat import array_namespace, device

from lilliput.arrays import Array, FloatArray
from lilliput.formats.codebooks import codebook
from lilliput.formats.group_lines import GroupLines, WrittenLevels
from lilliput.formats.levels import Levels, take
from lilliput.formats.number_format import BlockFormat, Parameters, expand
from lilliput.formats.scale_search import bounded, grouped, grouped_importance, reciprocal, scale_error

# Doubled E2M1 numbers, ascending, and the code of each; 8, the other zero, is never written.
LEVELS = Levels(np.sort(np.delete(codebook("e2m1_doubled"), 8)))
CODES = np.array([15, 14, 13, 12, 11, 10, 9, 0, 1, 2, 3, 4, 5, 6, 7], dtype=np.float32)


class FourBitFloat(BlockFormat):
    """4-bit floats; subclasses give the scale's table, the group size and the layout.

    n_scale_codes: the first so many scale codes ascend and may be written.
    code_offsets: scale codes that `fit` compares, from the least one that clips nothing.
    """

    group_size: ClassVar[int]
    # float32 [256]: half the scale that each stored byte stands for.
    half_scales: ClassVar[FloatArray]
    n_scale_codes: ClassVar[int]
    code_offsets: ClassVar[tuple[int, ...]]

    def values(self, codes: Array, parameters: Parameters, columns: slice | None = None) -> Array:
        """Gives half_scale(scale_code) * doubled_e2m1(code)."""
        scale = expand(take(self.half_scales, parameters["scale_code"]), self.group_size, columns)
        xp = array_namespace(codes)
        return scale * xp.reshape(take(codebook("e2m1_doubled"), codes), codes.shape)

    def group_lines(self, parameters: Parameters, rows: int) -> GroupLines | None:
        """Half scales, doubled numbers."""
        scale = take(self.half_scales, parameters["scale_code"])
        levels = WrittenLevels(LEVELS.table, CODES.astype(np.uint8))
        return GroupLines(levels, self.group_size, scale, reciprocal(scale))

    def fit(
        self, weight: Array, importance: Array | None, *, scope: int = 0, outer: Parameters | None = None
    ) -> Parameters:
        """The scale code of least error after rounding the group's weights."""
        xp = array_namespace(weight)
        x, w = grouped(bounded(weight), self.group_size), grouped_importance(importance, weight, self.group_size)
        widest = self._widest_codes(x)
        best = xp.full_like(x[0], float("inf"))
        chosen = widest
        for offset in self.code_offsets:
            code = xp.clip(widest + offset, 0, self.n_scale_codes - 1)
            error = scale_error(x, w, LEVELS, take(self.half_scales, code))
            is_better = error < best
            best, chosen = xp.where(is_better, error, best), xp.where(is_better, code, chosen)
        return {"scale_code": xp.reshape(xp.astype(chosen, xp.uint8), (weight.shape[0], -1))}

    def _widest_codes(self, x: Array) -> Array:
        """int32 [n]: the least scale that reaches the largest magnitude of each group [group, n]."""
        xp = array_namespace(x)
        half_scales = xp.asarray(self.half_scales[: self.n_scale_codes], device=device(x))
        found = xp.searchsorted(half_scales, xp.max(xp.abs(x), axis=0) / LEVELS.last)
        return xp.clip(xp.astype(found, xp.int32), 0, self.n_scale_codes - 1)

    def widest_parameters(self, weight: Array) -> Parameters:
        """Clips nothing."""
        xp = array_namespace(weight)
        widest = self._widest_codes(grouped(bounded(weight), self.group_size))
        return {"scale_code": xp.reshape(xp.astype(widest, xp.uint8), (weight.shape[0], -1))}

    def nearest_codes(
        self, target: Array, parameters: Parameters, columns: slice | None = None, *, metric: Array | None = None
    ) -> Array:
        """Nearest level."""
        half_scale = take(self.half_scales, parameters["scale_code"])
        inverse = expand(reciprocal(half_scale), self.group_size, columns)
        nearest = LEVELS.nearest(bounded(target) * inverse)
        xp = array_namespace(target)
        return xp.astype(xp.reshape(take(CODES, nearest), nearest.shape), xp.uint8)

    def linear_terms(self, codes: Array, parameters: Parameters, columns: slice | None = None) -> Mapping[str, Array]:
        """None: the only parameter is a code."""
        return {}
