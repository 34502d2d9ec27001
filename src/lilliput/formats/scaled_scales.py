# SPDX-License-Identifier: Apache-2.0
"""What Q3_K, Q6_K and IQ4_XS share: an fp16 scale per 256 weights and a small signed integer scale per group.

value = (scale * scale_code) * level(code)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from array_api_compat import array_namespace

from lilliput.arrays import Array
from lilliput.formats.group_lines import GroupLines, WrittenLevels
from lilliput.formats.levels import Levels, rounded_between
from lilliput.formats.number_format import BlockFormat, Encoded, Parameters, expand
from lilliput.formats.scale_search import (
    ScaleFit,
    bounded,
    grouped,
    grouped_importance,
    half_rounded,
    nearest_integers,
    nonzero,
    peak_of,
    reciprocal,
    scale_error,
    search_outer_scale,
    search_scale,
    to_half,
)


class ScaledScales(BlockFormat):
    """Two levels of scales, no minimum; subclasses give levels, group size and layout.

    Parameters: "scale" fp16 [rows, blocks]; "scale_code" int8 [rows, groups], as the signed number it stands for.
    scale_codes: lowest and highest scale code.  anchors: levels that the search tries a group's largest magnitude at.
    tries_every_scale_code: whether the inner fit tries all scale codes or the nearest and its two neighbours.
    """

    block_size = 256
    group_size: ClassVar[int]
    levels: ClassVar[Levels]
    scale_codes: ClassVar[tuple[int, int]]
    anchors: ClassVar[tuple[float, ...]]
    tries_every_scale_code: ClassVar[bool] = False

    def values(self, codes: Array, parameters: Parameters, columns: slice | None = None) -> Array:
        """Gives (scale * scale_code) * level(code)."""
        return expand(self.group_scale(parameters), self.group_size, columns) * self.levels.of(codes)

    def group_scale(self, parameters: Parameters) -> Array:
        """Gives scale * scale_code, float32 [rows, groups]."""
        xp = array_namespace(parameters["scale_code"])
        scale = expand(xp.astype(parameters["scale"], xp.float32), self.block_size // self.group_size, None)
        return scale * xp.astype(parameters["scale_code"], xp.float32)

    def group_lines(self, parameters: Parameters, rows: int) -> GroupLines | None:
        """Group scales."""
        scale = self.group_scale(parameters)
        return GroupLines(WrittenLevels.of(self.levels), self.group_size, scale, reciprocal(scale))

    def fit(
        self, weight: Array, importance: Array | None, *, scope: int = 0, outer: Parameters | None = None
    ) -> Parameters:
        """Scope 0: the block's scale that suits the groups' own best scales. Scope 1: their codes under it."""
        x, w = grouped(bounded(weight), self.group_size), grouped_importance(importance, weight, self.group_size)
        found = search_scale(x, w, self.levels, self.anchors)
        rows = weight.shape[0]
        if scope == 0 or outer is None:
            return self._fit_blocks(found, rows)
        return self._fit_groups(x, w, found, outer)

    def encode(self, weight: Array, importance: Array | None = None) -> Encoded:
        """Both scopes from one search of the groups."""
        x, w = grouped(bounded(weight), self.group_size), grouped_importance(importance, weight, self.group_size)
        found = search_scale(x, w, self.levels, self.anchors)
        outer = self._fit_blocks(found, weight.shape[0])
        parameters = {**outer, **self._fit_groups(x, w, found, outer)}
        return Encoded(self.nearest_codes(weight, parameters), parameters)

    def _fit_blocks(self, found: ScaleFit, rows: int) -> Parameters:
        xp = array_namespace(found.scale)
        groups = self.block_size // self.group_size
        low, high = self.scale_codes
        # The group of largest scale takes about the lowest code, or about the highest.
        anchors = [low - 0.5 + 0.5 * k for k in range(9)] + [high + 0.5 - 0.5 * k for k in range(9)]
        scales = grouped(xp.reshape(found.scale, (rows, -1)), groups)
        curvature = grouped(xp.reshape(found.curvature, (rows, -1)), groups)
        scale = search_outer_scale(
            scales, curvature, nonzero(peak_of(scales)), anchors, nearest_integers(*self.scale_codes)
        )
        return {"scale": xp.reshape(to_half(scale), (rows, -1))}

    def _fit_groups(self, x: Array, w: Array, found: ScaleFit, outer: Parameters) -> Parameters:
        """Round the groups' scales, then compare neighbours (or all codes) by the error after rounding the weights."""
        xp = array_namespace(x)
        low, high = (float(code) for code in self.scale_codes)
        rows = outer["scale"].shape[0]
        groups = self.block_size // self.group_size
        scale = xp.reshape(expand(xp.astype(outer["scale"], xp.float32), groups, None), (-1,))
        nearest = rounded_between(found.scale * reciprocal(scale), low, high)
        chosen, best = nearest, scale_error(x, w, self.levels, scale * nearest)
        tries = range(int(high - low) + 1) if self.tries_every_scale_code else (-1, 1)
        for step in tries:
            code = nearest * 0.0 + (low + step) if self.tries_every_scale_code else xp.clip(nearest + step, low, high)
            error = scale_error(x, w, self.levels, scale * code)
            is_better = error < best
            best, chosen = xp.where(is_better, error, best), xp.where(is_better, code, chosen)
        return {"scale_code": xp.reshape(xp.astype(chosen, xp.int8), (rows, -1))}

    def widest_parameters(self, weight: Array) -> Parameters:
        """Largest magnitude of each group at the outermost level, largest group scale at the outermost code."""
        xp = array_namespace(weight)
        rows, groups = weight.shape[0], self.block_size // self.group_size
        low, high = (float(code) for code in self.scale_codes)
        wanted = peak_of(grouped(bounded(weight), self.group_size)) / self.levels.first
        scale = half_rounded(peak_of(grouped(xp.reshape(wanted, (rows, -1)), groups)) / low)
        code = rounded_between(wanted * reciprocal(xp.repeat(scale, groups)), low, high)
        return {
            "scale": xp.reshape(to_half(scale), (rows, -1)),
            "scale_code": xp.reshape(xp.astype(code, xp.int8), (rows, -1)),
        }

    def nearest_codes(
        self, target: Array, parameters: Parameters, columns: slice | None = None, *, metric: Array | None = None
    ) -> Array:
        """Nearest level."""
        inverse = expand(reciprocal(self.group_scale(parameters)), self.group_size, columns)
        return self.levels.nearest(bounded(target) * inverse)

    def linear_terms(self, codes: Array, parameters: Parameters, columns: slice | None = None) -> Mapping[str, Array]:
        """Gives scale_code * level, for the block's scale."""
        xp = array_namespace(codes)
        scale_code = expand(xp.astype(parameters["scale_code"], xp.float32), self.group_size, columns)
        return {"scale": scale_code * self.levels.of(codes)}
