# SPDX-License-Identifier: Apache-2.0
"""HQQ: zero points by half-quadratic splitting, without any data.

Problem   least squares lets the few large residuals of a group, its outliers, decide where the line through the codes
          lies; without inputs to weigh errors by, that is often the wrong place.
Idea      minimize sum |r|^p, p < 1, of the residuals r: the many small ones count, outliers hardly. Split r = e + rest
          with e sparse: e = shrink(r), then the zero point that suits weight - e in closed form, and again, with the
          shrinkage slowly switched off.
Changes   residuals are measured in steps of the group, so that one shrinkage serves weights of any size; the scale is
          not left at min-max: several clipped ranges are tried, and each group keeps the one of least squared error as
          stored (fp16, whole zero points). By |r|^0.7 outliers would be clipped away: that raised the output loss of
          4 bits in groups of 128 to 1.8 of min-max's on heavy-tailed weights, squares lower it to 0.8 (2026-11).
Cost      10 rounds for each of 6 ranges: 60 roundings per weight, 1 million weights a second and thread.
Not when  there is text to calibrate on, or the format has no zero point or minimum. `searched_scales` fits scale and
          minimum together and was better on every format we tried; this is here to be compared with.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lilliput.arrays import FloatArray
from lilliput.formats import Encoded, NumberFormat, Parameters, Planes
from lilliput.formats.integer_zero_point import ZeroPointInteger
from lilliput.formats.scale_and_minimum import ScaleAndMinimum
from lilliput.formats.scale_search import bounded, reciprocal
from lilliput.methods.method import Needs
from lilliput.records import LayerInputs

NORM = np.float32(0.7)
# Strength of the shrinkage at the start, in steps of the group, and by what it grows each round.
SHRINKAGE, GROWTH = np.float32(4.0), np.float32(1.2)
ROUNDS = 10
# Parts of the range of a group that are tried: few codes gain by leaving its ends out.
RANGES = (1.0, 0.94, 0.88, 0.8, 0.7, 0.6)
# Weights of one piece; about ten temporaries of this size live at once.
PIECE_WEIGHTS = 1 << 18


class HalfQuadratic:
    """Zero points that look past outliers, under searched ranges."""

    name: str = "half_quadratic"
    paper: str = "https://mobiusml.github.io/hqq_blog (HQQ, 2023)"
    needs: Needs = "nothing"
    baseline: str | None = "round_to_nearest"

    def supports(self, number_format: NumberFormat) -> bool:
        """One scale with a minimum or a zero point for a group or a row."""
        return isinstance(number_format, ScaleAndMinimum) or (
            isinstance(number_format, ZeroPointInteger) and number_format.row_step == 1
        )

    def quantize(self, number_format: NumberFormat, weight: FloatArray, inputs: LayerInputs, *, threads: int) -> Planes:
        """Weight [rows, columns] -> stored planes. `inputs` and `threads` are not used."""
        assert isinstance(number_format, ScaleAndMinimum | ZeroPointInteger)
        number_format.check_columns("weight", weight.shape[1])
        weight = np.asarray(bounded(np.asarray(weight, dtype=np.float32)))
        step = max(1, PIECE_WEIGHTS // max(weight.shape[1], 1))
        pieces = []
        for start in range(0, max(len(weight), 1), step):
            piece = weight[start : start + step]
            parameters = half_quadratic_parameters(number_format, piece)
            pieces.append(number_format.pack(Encoded(number_format.nearest_codes(piece, parameters), parameters)))
        return number_format.joined_rows(pieces)


def half_quadratic_parameters(number_format: ScaleAndMinimum | ZeroPointInteger, weight: FloatArray) -> Parameters:
    """Scale and minimum, or zero point, of each group of float32 weight [rows, columns], as stored."""
    width = _width(number_format, weight.shape[1])
    groups = weight.reshape(-1, width)
    best: dict[str, FloatArray] = {}
    lowest: FloatArray | None = None
    for line in _lines(groups, number_format.last_code):
        scale, minimum = (part.reshape(len(weight), -1) for part in (line.scale, line.minimum))
        parameters = number_format.stored_line(scale, minimum)
        values = number_format.values(number_format.nearest_codes(weight, parameters), parameters)
        loss = np.square(values - weight).reshape(weight.shape[0], -1, width).sum(axis=2)
        if lowest is None:
            best, lowest = dict(parameters), loss
            continue
        is_better = loss < lowest
        best = {name: np.where(is_better, parameters[name], best[name]) for name in best}
        lowest = np.where(is_better, loss, lowest)
    return best


@dataclass(frozen=True, slots=True)
class _Line:
    """value = scale * code + minimum for each group, [n, 1]."""

    scale: FloatArray
    minimum: FloatArray


def _lines(groups: FloatArray, last_code: int) -> Iterator[_Line]:
    """The line that each range ends with, the plain min-max line first."""
    low, high = groups.min(axis=1, keepdims=True), groups.max(axis=1, keepdims=True)
    middle = (low + high) * np.float32(0.5)
    for part in RANGES:
        half = (high - low) * np.float32(0.5 * part)
        scale = half * np.float32(2.0 / last_code)
        start = _Line(scale, middle - half)
        if part == 1.0:
            yield start
        yield _refined(groups, start, last_code)


def _refined(groups: FloatArray, line: _Line, last_code: int) -> _Line:
    """The minimum after some rounds of shrinking residuals and fitting what is left."""
    inverse = reciprocal(line.scale)
    minimum, strength = line.minimum, SHRINKAGE
    scaled = groups * inverse
    for _ in range(ROUNDS):
        offset = minimum * inverse
        code = np.clip(np.round(scaled - offset), 0, last_code)
        residual = scaled - offset - code
        size = np.abs(residual)
        # The proximal step of |r|^p: nothing is left of small residuals, outliers are taken out whole.
        kept = np.maximum(size - np.maximum(size, np.float32(1e-6)) ** (NORM - 1) / strength, 0)
        rest = scaled - code - np.copysign(kept, residual)
        minimum = rest.mean(axis=1, keepdims=True) * line.scale
        strength = strength * GROWTH
    return _Line(line.scale, minimum)


def _width(number_format: ScaleAndMinimum | ZeroPointInteger, columns: int) -> int:
    """Weights of one group."""
    if isinstance(number_format, ZeroPointInteger):
        return number_format.region.columns or columns
    return number_format.block_size
