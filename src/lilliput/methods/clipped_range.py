# SPDX-License-Identifier: Apache-2.0
"""Clipped ranges: scales from a percentile of the weights, or from the range that loses least information.

Problem   one outlier in a row or a tensor sets an absmax scale, and all other weights share few codes.
Idea      choose a threshold from the distribution alone, clip there, and let the outermost level reach it. Percentile:
          the largest weight but for one in a thousand. Entropy: the threshold whose histogram, cut there and merged
          into the format's levels, has the smallest Kullback-Leibler divergence from the uncut one.
Changes   for weights instead of activations; one threshold per region of the format (tensor, row, block).
Cost      percentile: a partial sort. Entropy: a histogram and 64 thresholds of it per region.
Not when  codes are to be good: `searched_scales` minimizes the error itself. Output loss over that of absmax on heavy
          tails, percentile / entropy / searched: 4 bits a tensor 0.34 / 0.29 / 0.32, 4 bits a row 0.79 / 0.77 / 0.71,
          8 bits a tensor 6.2 / 1.0 / 0.91 (2026-11). These are here because integer runtimes and papers use them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lilliput.arrays import DoubleArray, FloatArray
from lilliput.errors import FormatError
from lilliput.formats import Encoded, NumberFormat, Planes
from lilliput.formats.entropy_cut import best_cut
from lilliput.formats.integer import SymmetricInteger
from lilliput.formats.integer_power_scale import PowerScaleInteger
from lilliput.formats.regions import Region
from lilliput.formats.scale_search import bounded
from lilliput.formats.scoped_number import ScopedNumber
from lilliput.methods.method import Needs
from lilliput.records import LayerInputs

# Share of the weights of a region that keep their place.
PERCENTILE = 0.999
# Bins of |weight| from 0 to the largest; several to each level, or a level could not tell its bins apart.
BINS_PER_LEVEL, FEWEST_BINS = 8, 128
# With fewer weights than this to a bin a histogram is noise, and the range stays whole: cut by it, 8-bit codes of rows
# of 512 had 36 times the output loss of absmax (2026-11).
WEIGHTS_PER_BIN = 4


class PercentileClipping:
    """The threshold that all but one weight in a thousand lie within."""

    name: str = "percentile_clipping"
    paper: str = "https://arxiv.org/abs/2004.09602, section 4 (percentile calibration)"
    needs: Needs = "nothing"
    baseline: str | None = None

    def supports(self, number_format: NumberFormat) -> bool:
        """Formats whose scales serve more weights than a group: a percentile of 128 is the largest of them."""
        return _region_of(number_format) is not None

    def quantize(self, number_format: NumberFormat, weight: FloatArray, inputs: LayerInputs, *, threads: int) -> Planes:
        """Weight [rows, columns] -> stored planes. `inputs` and `threads` are not used."""
        return _clipped(number_format, weight, lambda problems: np.quantile(problems, PERCENTILE, axis=1))


class EntropyClipping:
    """The threshold that loses least information."""

    name: str = "entropy_clipping"
    paper: str = "8-bit inference with TensorRT (GTC 2017), slides 28 to 38"
    needs: Needs = "nothing"
    baseline: str | None = None

    def supports(self, number_format: NumberFormat) -> bool:
        """Integers with evenly spaced levels on both sides of zero."""
        return _region_of(number_format) is not None and isinstance(number_format, SymmetricInteger | PowerScaleInteger)

    def quantize(self, number_format: NumberFormat, weight: FloatArray, inputs: LayerInputs, *, threads: int) -> Planes:
        """Weight [rows, columns] -> stored planes. `inputs` and `threads` are not used."""
        assert isinstance(number_format, SymmetricInteger | PowerScaleInteger)
        levels = 1 << (number_format.code_bits - 1)
        return _clipped(number_format, weight, lambda problems: entropy_threshold(problems, levels))


def entropy_threshold(magnitudes: FloatArray, levels: int) -> DoubleArray:
    """Threshold [n] of least divergence for each row of magnitudes [n, m] >= 0 under `levels` steps from zero."""
    bins = max(FEWEST_BINS, BINS_PER_LEVEL * levels)
    widest = np.maximum(magnitudes.max(axis=1, keepdims=True), np.float32(1e-30))
    if magnitudes.shape[1] < WEIGHTS_PER_BIN * bins:
        whole: DoubleArray = widest[:, 0].astype(np.float64)
        return whole
    places = np.minimum((magnitudes * (bins / widest)).astype(np.int64), bins - 1)
    rows = np.arange(len(magnitudes))[:, None] * bins
    counts = np.bincount((rows + places).reshape(-1), minlength=len(magnitudes) * bins).reshape(-1, bins)
    threshold: DoubleArray = best_cut(counts.astype(np.float64), levels) / bins * widest[:, 0].astype(np.float64)
    return threshold


def _clipped(number_format: NumberFormat, weight: FloatArray, threshold: Callable[[FloatArray], DoubleArray]) -> Planes:
    """Planes with scales that just reach the threshold of each region."""
    region = _region_of(number_format)
    if region is None:
        raise FormatError(f"{number_format.name}: ranges are clipped for one scale per tensor, row or block only")
    weight = np.asarray(bounded(np.asarray(weight, dtype=np.float32)))
    limit = region.spread(_per_region(np.abs(weight), region, threshold), weight.shape[0], None)
    parameters = number_format.widest_parameters(np.clip(weight, -limit, limit))
    return number_format.pack(Encoded(number_format.nearest_codes(weight, parameters), parameters))


def _per_region(magnitudes: FloatArray, region: Region, threshold: Callable[[FloatArray], DoubleArray]) -> FloatArray:
    """float32 [region rows, region columns]."""
    rows, columns = magnitudes.shape
    grid = region.grid(rows, columns)
    height, width = region.rows or max(rows, 1), region.columns or columns
    if height == 1 and width == columns:
        return threshold(magnitudes).astype(np.float32)[:, None]
    found = np.empty(grid, dtype=np.float32)
    for i, j in np.ndindex(grid):
        part = magnitudes[i * height : (i + 1) * height, j * width : (j + 1) * width]
        found[i, j] = threshold(part.reshape(1, -1))[0]
    return found


def _region_of(number_format: NumberFormat) -> Region | None:
    """The region of a format with one scale per tensor, rows or block; None for others."""
    if isinstance(number_format, ScopedNumber) and number_format.scopes and not number_format.region.is_group:
        return number_format.region
    return None
