# SPDX-License-Identifier: Apache-2.0
"""What Q4_0, Q5_0, Q8_0 and IQ4_NL share: groups with one fp16 scale; value = scale * level(code)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from array_api_compat import array_namespace

from lilliput.arrays import Array
from lilliput.formats.group_lines import GroupLines, WrittenLevels
from lilliput.formats.levels import Levels
from lilliput.formats.number_format import BlockFormat, Parameters, expand
from lilliput.formats.scale_search import (
    bounded,
    grouped,
    grouped_importance,
    peak_of,
    reciprocal,
    search_scale,
    to_half,
)

# Multiples of the scale that the largest magnitude of a ternary group may be: 1 where the weights are ternary already.
TERNARY_ANCHORS = (*(round(16 * 0.87**k, 3) for k in range(20)), 1.0)


class SingleScale(BlockFormat):
    """One stored float scale per group of `block_size`; subclasses give the levels and the layout.

    anchors: levels that `fit` tries the largest magnitude of a group at.  search_levels: those the encoder may write,
    if not all.
    """

    levels: ClassVar[Levels]
    search_levels: ClassVar[Levels | None] = None
    anchors: ClassVar[tuple[float, ...]] = ()

    def values(self, codes: Array, parameters: Parameters, columns: slice | None = None) -> Array:
        """Gives scale * level(code)."""
        xp = array_namespace(codes)
        scale = expand(xp.astype(parameters["scale"], xp.float32), self.block_size, columns)
        return scale * self.levels.of(codes)

    def group_lines(self, parameters: Parameters, rows: int) -> GroupLines | None:
        """Scales alone."""
        xp = array_namespace(parameters["scale"])
        scale = xp.astype(parameters["scale"], xp.float32)
        return GroupLines(WrittenLevels.of(self.levels, self.search_levels), self.block_size, scale, reciprocal(scale))

    def fit(
        self, weight: Array, importance: Array | None, *, scope: int = 0, outer: Parameters | None = None
    ) -> Parameters:
        """Search each group's scale; see `search_scale`."""
        if not self.can_encode:
            return super().fit(weight, importance, scope=scope, outer=outer)
        xp = array_namespace(weight)
        x, w = grouped(bounded(weight), self.block_size), grouped_importance(importance, weight, self.block_size)
        scale = search_scale(x, w, self.search_levels or self.levels, self.anchors).scale
        return {"scale": xp.reshape(to_half(scale), (weight.shape[0], -1))}

    def widest_parameters(self, weight: Array) -> Parameters:
        """The largest magnitude of each group at the outermost level."""
        if not self.can_encode:
            return super().widest_parameters(weight)
        xp = array_namespace(weight)
        peak = peak_of(grouped(bounded(weight), self.block_size))
        return {"scale": xp.reshape(to_half(peak / (self.search_levels or self.levels).first), (weight.shape[0], -1))}

    def nearest_codes(
        self, target: Array, parameters: Parameters, columns: slice | None = None, *, metric: Array | None = None
    ) -> Array:
        """Nearest level."""
        if not self.can_encode:
            return super().nearest_codes(target, parameters, columns, metric=metric)
        xp = array_namespace(target)
        inverse = expand(reciprocal(xp.astype(parameters["scale"], xp.float32)), self.block_size, columns)
        return self.levels.nearest(bounded(target) * inverse)

    def linear_terms(self, codes: Array, parameters: Parameters, columns: slice | None = None) -> Mapping[str, Array]:
        """The level of each code."""
        return {"scale": self.levels.of(codes)}
