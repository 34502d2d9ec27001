# SPDX-License-Identifier: Apache-2.0
"""What Q4_1 and Q5_1 share: groups of 32 with an fp16 scale and an fp16 minimum; value = scale * code + minimum."""

from __future__ import annotations

from collections.abc import Mapping

from array_api_compat import array_namespace

from lilliput.arrays import Array
from lilliput.formats.group_lines import GroupLines, WrittenLevels
from lilliput.formats.levels import Levels, rounded_between
from lilliput.formats.number_format import BlockFormat, Parameters, expand
from lilliput.formats.scale_search import (
    LineCandidate,
    bounded,
    grouped,
    grouped_importance,
    half_rounded,
    reciprocal,
    search_line,
    to_half,
)


class ScaleAndMinimum(BlockFormat):
    """Codes 0..last_code on a line through `minimum`; subclasses give the layout."""

    last_code: int
    candidates: tuple[LineCandidate, ...]

    def values(self, codes: Array, parameters: Parameters, columns: slice | None = None) -> Array:
        """Gives scale * code + minimum."""
        xp = array_namespace(codes)
        scale = expand(xp.astype(parameters["scale"], xp.float32), self.block_size, columns)
        minimum = expand(xp.astype(parameters["minimum"], xp.float32), self.block_size, columns)
        return scale * xp.astype(codes, xp.float32) + minimum

    def group_lines(self, parameters: Parameters, rows: int) -> GroupLines | None:
        """Scales and minimums."""
        xp = array_namespace(parameters["scale"])
        scale, minimum = (xp.astype(parameters[name], xp.float32) for name in ("scale", "minimum"))
        levels = WrittenLevels.of(Levels.integers(0, self.last_code))
        return GroupLines(levels, self.block_size, scale, reciprocal(scale), minimum)

    def fit(
        self, weight: Array, importance: Array | None, *, scope: int = 0, outer: Parameters | None = None
    ) -> Parameters:
        """Search scale and minimum together (see `search_line`); the minimum then follows the rounded scale."""
        xp = array_namespace(weight)
        x, w = grouped(bounded(weight), self.block_size), grouped_importance(importance, weight, self.block_size)
        line = search_line(x, w, self.last_code, self.candidates, minimum_is_positive=False)
        scale = half_rounded(line.scale)
        minimum = -(line.minimum + (scale - line.scale) * line.mean_code)
        shape = (weight.shape[0], -1)
        return {"scale": xp.reshape(to_half(scale), shape), "minimum": xp.reshape(to_half(minimum), shape)}

    def widest_parameters(self, weight: Array) -> Parameters:
        """Minimum and maximum of each group at the ends."""
        xp = array_namespace(weight)
        x = grouped(bounded(weight), self.block_size)
        low, high = xp.min(x, axis=0), xp.max(x, axis=0)
        shape = (weight.shape[0], -1)
        return self.stored_line(xp.reshape((high - low) / self.last_code, shape), xp.reshape(low, shape))

    def stored_line(self, scale: Array, minimum: Array) -> Parameters:
        """Parameters for value = scale * code + minimum, float32 [rows, groups]."""
        return {"scale": to_half(scale), "minimum": to_half(minimum)}

    def nearest_codes(
        self, target: Array, parameters: Parameters, columns: slice | None = None, *, metric: Array | None = None
    ) -> Array:
        """Nearest code."""
        xp = array_namespace(target)
        inverse = expand(reciprocal(xp.astype(parameters["scale"], xp.float32)), self.block_size, columns)
        minimum = expand(xp.astype(parameters["minimum"], xp.float32), self.block_size, columns)
        return xp.astype(rounded_between((bounded(target) - minimum) * inverse, 0.0, float(self.last_code)), xp.uint8)

    def linear_terms(self, codes: Array, parameters: Parameters, columns: slice | None = None) -> Mapping[str, Array]:
        """The code for the scale, 1 for the minimum."""
        xp = array_namespace(codes)
        code = xp.astype(codes, xp.float32)
        return {"scale": code, "minimum": xp.ones_like(code)}
