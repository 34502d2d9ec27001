# SPDX-License-Identifier: Apache-2.0
"""What Q2_K, Q4_K and Q5_K share: fp16 scale and minimum per 256 weights, small unsigned integers of both per group.

value = (scale * scale_code) * code - (minimum * minimum_code)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from array_api_compat import array_namespace

from lilliput.arrays import Array, ByteArray
from lilliput.formats.group_lines import GroupLines, WrittenLevels
from lilliput.formats.levels import Levels, rounded_between
from lilliput.formats.number_format import BlockFormat, Encoded, Parameters, expand
from lilliput.formats.scale_search import (
    LineCandidate,
    LineFit,
    bounded,
    grouped,
    grouped_importance,
    half_rounded,
    line_error,
    nearest_integers,
    nonzero,
    peak_of,
    reciprocal,
    search_line,
    search_outer_scale,
    to_half,
)

# Changes of (scale code, minimum code) that the inner fit compares.
NEIGHBOURS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, -1), (1, -1), (-1, 1))


class ScaledScalesAndMinimums(BlockFormat):
    """Two levels of scales and of minimums; subclasses give code range, group size, candidates and layout.

    Parameters: "scale", "minimum" fp16 [rows, blocks]; "scale_code", "minimum_code" uint8 [rows, groups].
    The minimum is subtracted: with the positive `minimum` that encoders write, a group's lowest value is at most 0.
    """

    block_size = 256
    group_size: ClassVar[int]
    last_code: ClassVar[int]
    last_parameter_code: ClassVar[int]
    candidates: ClassVar[tuple[LineCandidate, ...]]

    def values(self, codes: Array, parameters: Parameters, columns: slice | None = None) -> Array:
        """Gives (scale * scale_code) * code - (minimum * minimum_code)."""
        xp = array_namespace(codes)
        scale = expand(self.group_parameter(parameters, "scale"), self.group_size, columns)
        minimum = expand(self.group_parameter(parameters, "minimum"), self.group_size, columns)
        return scale * xp.astype(codes, xp.float32) - minimum

    def group_parameter(self, parameters: Parameters, name: str) -> Array:
        """`name` * `name`_code, float32 [rows, groups]."""
        xp = array_namespace(parameters[f"{name}_code"])
        outer = expand(xp.astype(parameters[name], xp.float32), self.block_size // self.group_size, None)
        return outer * xp.astype(parameters[f"{name}_code"], xp.float32)

    def group_lines(self, parameters: Parameters, rows: int) -> GroupLines | None:
        """Group scales, and minimums as negative offsets: subtracting is adding the negative."""
        scale, minimum = self.group_parameter(parameters, "scale"), self.group_parameter(parameters, "minimum")
        levels = WrittenLevels.of(Levels.integers(0, self.last_code))
        return GroupLines(levels, self.group_size, scale, reciprocal(scale), -minimum)

    def fit(
        self, weight: Array, importance: Array | None, *, scope: int = 0, outer: Parameters | None = None
    ) -> Parameters:
        """Scope 0: the block's scale and minimum that suit the groups' own best lines. Scope 1: their codes."""
        x, w = grouped(bounded(weight), self.group_size), grouped_importance(importance, weight, self.group_size)
        line = self._search(x, w)
        if scope == 0 or outer is None:
            return self._fit_blocks(line, weight.shape[0])
        return self._fit_groups(x, w, line, outer)

    def encode(self, weight: Array, importance: Array | None = None) -> Encoded:
        """Both scopes from one search of the groups."""
        x, w = grouped(bounded(weight), self.group_size), grouped_importance(importance, weight, self.group_size)
        line = self._search(x, w)
        outer = self._fit_blocks(line, weight.shape[0])
        parameters = {**outer, **self._fit_groups(x, w, line, outer)}
        return Encoded(self.nearest_codes(weight, parameters), parameters)

    def _search(self, x: Array, w: Array) -> LineFit:
        return search_line(x, w, self.last_code, self.candidates, minimum_is_positive=True)

    def _fit_blocks(self, line: LineFit, rows: int) -> Parameters:
        xp = array_namespace(line.scale)
        scale = self._fit_outer(line.scale, line.curvature, rows)
        _, _, minimum_target = self._scale_codes(line, scale)
        minimum = self._fit_outer(minimum_target, line.weight_sum, rows)
        return {"scale": xp.reshape(to_half(scale), (rows, -1)), "minimum": xp.reshape(to_half(minimum), (rows, -1))}

    def _fit_outer(self, values: Array, curvature: Array, rows: int) -> Array:
        """float32 [blocks]: the number whose multiples suit `values` [groups]."""
        xp = array_namespace(values)
        groups = self.block_size // self.group_size
        last = self.last_parameter_code
        values = grouped(xp.reshape(values, (rows, -1)), groups)
        curvature = grouped(xp.reshape(curvature, (rows, -1)), groups)
        anchors = [last + 0.5 - 0.5 * k for k in range(20 if last > 20 else 12)]
        return search_outer_scale(values, curvature, nonzero(peak_of(values)), anchors, nearest_integers(0, last))

    def _scale_codes(self, line: LineFit, scale: Array) -> tuple[Array, Array, Array]:
        """Block scales [blocks] -> scale per group, its nearest codes, and the minimum that then suits each group."""
        xp = array_namespace(scale)
        scale = xp.repeat(scale, self.block_size // self.group_size)
        code = rounded_between(line.scale * reciprocal(scale), 0.0, float(self.last_parameter_code))
        minimum = line.minimum + (scale * code - line.scale) * line.mean_code
        return scale, code, xp.where(minimum > 0.0, minimum, 0.0)

    def _fit_groups(self, x: Array, w: Array, line: LineFit, outer: Parameters) -> Parameters:
        """Round the groups' lines, then compare neighbours by the error after rounding the weights."""
        xp = array_namespace(x)
        last = float(self.last_parameter_code)
        rows = outer["scale"].shape[0]
        scale, nearest, target = self._scale_codes(line, xp.reshape(xp.astype(outer["scale"], xp.float32), (-1,)))
        minimum = xp.repeat(
            xp.reshape(xp.astype(outer["minimum"], xp.float32), (-1,)), self.block_size // self.group_size
        )
        nearest_minimum = rounded_between(target * reciprocal(minimum), 0.0, last)
        chosen, chosen_minimum = nearest, nearest_minimum
        best = line_error(x, w, self.last_code, scale * nearest, minimum * nearest_minimum)
        for scale_step, minimum_step in NEIGHBOURS:
            code = xp.clip(nearest + scale_step, 0.0, last)
            minimum_code = xp.clip(nearest_minimum + minimum_step, 0.0, last)
            error = line_error(x, w, self.last_code, scale * code, minimum * minimum_code)
            is_better = error < best
            best = xp.where(is_better, error, best)
            chosen = xp.where(is_better, code, chosen)
            chosen_minimum = xp.where(is_better, minimum_code, chosen_minimum)
        shape = (rows, -1)
        return {
            "scale_code": xp.reshape(xp.astype(chosen, xp.uint8), shape),
            "minimum_code": xp.reshape(xp.astype(chosen_minimum, xp.uint8), shape),
        }

    def widest_parameters(self, weight: Array) -> Parameters:
        """Lowest (at most 0) and highest weight of each group at the ends, largest group at the last code."""
        xp = array_namespace(weight)
        x = grouped(bounded(weight), self.group_size)
        low = xp.min(x, axis=0)
        low = xp.where(low < 0.0, low, 0.0)
        wanted = {"scale": (xp.max(x, axis=0) - low) / self.last_code, "minimum": -low}
        rows, groups = weight.shape[0], self.block_size // self.group_size
        parameters: dict[str, Array] = {}
        for name, values in wanted.items():
            largest = xp.max(grouped(xp.reshape(values, (rows, -1)), groups), axis=0)
            outer = half_rounded(largest / self.last_parameter_code)
            code = rounded_between(values * reciprocal(xp.repeat(outer, groups)), 0.0, float(self.last_parameter_code))
            parameters[name] = xp.reshape(to_half(outer), (rows, -1))
            parameters[f"{name}_code"] = xp.reshape(xp.astype(code, xp.uint8), (rows, -1))
        return parameters

    def nearest_codes(
        self, target: Array, parameters: Parameters, columns: slice | None = None, *, metric: Array | None = None
    ) -> Array:
        """Nearest code."""
        xp = array_namespace(target)
        inverse = expand(reciprocal(self.group_parameter(parameters, "scale")), self.group_size, columns)
        minimum = expand(self.group_parameter(parameters, "minimum"), self.group_size, columns)
        return xp.astype(rounded_between((bounded(target) + minimum) * inverse, 0.0, float(self.last_code)), xp.uint8)

    def linear_terms(self, codes: Array, parameters: Parameters, columns: slice | None = None) -> Mapping[str, Array]:
        """Gives scale_code * code for the block's scale, and -minimum_code for its minimum."""
        xp = array_namespace(codes)
        scale_code = expand(xp.astype(parameters["scale_code"], xp.float32), self.group_size, columns)
        minimum_code = expand(xp.astype(parameters["minimum_code"], xp.float32), self.group_size, columns)
        return {"scale": scale_code * xp.astype(codes, xp.float32), "minimum": -minimum_code}


def unpack_six_bit_pairs(data: ByteArray) -> tuple[ByteArray, ByteArray]:
    """12 bytes [n, 12] of Q4_K and Q5_K -> eight 6-bit scale codes and eight 6-bit minimum codes, each [n, 8].

    Groups 0..3: scale in the low 6 bits of bytes 0..3, minimum in the low 6 bits of bytes 4..7.
    Groups 4..7: low 4 bits in bytes 8..11 (scale low nibble, minimum high nibble), high 2 bits on top of bytes 0..7.
    """
    first, second, third = data[:, 0:4], data[:, 4:8], data[:, 8:12]
    low = np.uint8(0x3F)
    scale = np.concatenate([first & low, (third & np.uint8(0x0F)) | ((first >> 6) << 4)], axis=1)
    minimum = np.concatenate([second & low, (third >> 4) | ((second >> 6) << 4)], axis=1)
    return scale, minimum


def pack_six_bit_pairs(scale: ByteArray, minimum: ByteArray) -> ByteArray:
    """The inverse of `unpack_six_bit_pairs`."""
    scale, minimum = scale.astype(np.uint8), minimum.astype(np.uint8)
    first = scale[:, :4] | ((scale[:, 4:] >> 4) << 6)
    second = minimum[:, :4] | ((minimum[:, 4:] >> 4) << 6)
    third = (scale[:, 4:] & np.uint8(0x0F)) | ((minimum[:, 4:] & np.uint8(0x0F)) << 4)
    return np.concatenate([first, second, third], axis=1)
