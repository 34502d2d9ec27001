# SPDX-License-Identifier: Apache-2.0
"""Ranges of static inputs: what calibration sees of one layer, and four ways to choose low and high from it.

min_max      everything seen fits; one outlier costs all others their precision
percentile   all but one value in ten thousand on each side (https://arxiv.org/abs/2004.09602, section 4)
mse          the fraction of the range whose codes have the smallest squared error
entropy      the cut of the magnitudes that loses least information (TensorRT, GTC 2017)

A histogram of both signs is kept; its range doubles, bins merging in pairs, when something larger arrives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from lilliput.activations.integer_inputs import FixedScale, IntegerInputs
from lilliput.arrays import DoubleArray, FloatArray
from lilliput.errors import CalibrationError
from lilliput.formats.entropy_cut import best_cut

BINS = 8192
PERCENTILE = 0.9999
# Parts of the range that `mse` tries.
FRACTIONS = np.geomspace(0.05, 1.0, 80)


class RangeObserver:
    """What was seen of the inputs of one layer. low, high: the extremes, 0 among them."""

    def __init__(self) -> None:
        self.low = 0.0
        self.high = 0.0
        self.tokens = 0
        # Bins from -width to width.
        self._width = 0.0
        self._counts: DoubleArray = np.zeros(BINS)
        self._absmax: FloatArray | None = None

    @property
    def absmax(self) -> FloatArray:
        """float32 [columns]: the largest magnitude of each column. Raises CalibrationError before anything is seen."""
        if self._absmax is None:
            raise CalibrationError("no inputs were seen; run the model on calibration data")
        return self._absmax

    def observe(self, x: FloatArray) -> None:
        """Take in [tokens, columns]. Raises CalibrationError for what is not finite."""
        if not x.size:
            return
        low, high = float(x.min()), float(x.max())
        if not np.isfinite([low, high]).all():
            raise CalibrationError("an input is infinite or NaN on the calibration data; check the data and the model")
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.tokens += len(x)
        largest = np.abs(x).max(axis=0)
        self._absmax = largest if self._absmax is None else np.maximum(self._absmax, largest)
        self._widen(max(-low, high))
        if self._width > 0.0:
            places = (x.reshape(-1).astype(np.float64) + self._width) * (BINS / (2 * self._width))
            self._counts += np.bincount(np.clip(places, 0, BINS - 1).astype(np.int64), minlength=BINS)

    def range_of(self, inputs: IntegerInputs, method: str) -> tuple[float, float]:
        """Low <= 0 <= high by a method of RANGE_METHODS. Raises CalibrationError before anything is seen."""
        if not self.tokens:
            raise CalibrationError("no inputs were seen; run the model on calibration data")
        if self._width == 0.0:
            return 0.0, 0.0
        low, high = RANGE_METHODS[method](self, inputs)
        return max(low, self.low), min(high, self.high)

    def fixed_scale(self, inputs: IntegerInputs, method: str) -> FixedScale:
        """The static scale of that range."""
        return inputs.fixed_scale(*self.range_of(inputs, method))

    def histogram(self) -> tuple[DoubleArray, DoubleArray]:
        """Counts and centres of the bins, both [BINS]."""
        step = 2 * self._width / BINS
        centres = (np.arange(BINS, dtype=np.float64) + 0.5) * step - self._width
        return self._counts, centres.astype(np.float64)

    def _widen(self, needed: float) -> None:
        if self._width == 0.0:
            self._width = needed
        while needed > self._width:
            # Pairs of bins from the middle outwards, so that zero stays between two of them.
            merged = np.zeros(BINS)
            merged[BINS // 4 : 3 * BINS // 4] = self._counts.reshape(-1, 2).sum(axis=1)
            self._counts, self._width = merged, 2 * self._width


def _min_max(seen: RangeObserver, inputs: IntegerInputs) -> tuple[float, float]:
    return seen.low, seen.high


def _percentile(seen: RangeObserver, inputs: IntegerInputs) -> tuple[float, float]:
    counts, centres = seen.histogram()
    below = np.cumsum(counts) / counts.sum()
    low = centres[int(np.searchsorted(below, 1.0 - PERCENTILE))]
    high = centres[min(int(np.searchsorted(below, PERCENTILE)), BINS - 1)]
    return min(float(low), 0.0), max(float(high), 0.0)


def _mse(seen: RangeObserver, inputs: IntegerInputs) -> tuple[float, float]:
    counts, centres = seen.histogram()
    used = counts > 0
    counts, centres = counts[used], centres[used]
    best, chosen = np.inf, (seen.low, seen.high)
    for low_part, high_part in _parts(inputs):
        low, high = seen.low * low_part, seen.high * high_part
        fixed = inputs.fixed_scale(low, high)
        lowest = 1.0 if inputs.is_symmetric else 0.0
        codes = np.clip(np.round(centres / fixed.scale) + fixed.zero_point, lowest, inputs.highest)
        error = float((counts * ((codes - fixed.zero_point) * fixed.scale - centres) ** 2).sum())
        if error < best:
            best, chosen = error, (low, high)
    return chosen


def _parts(inputs: IntegerInputs) -> list[tuple[float, float]]:
    """Parts of both ends that are tried: together, and each alone where ends may differ."""
    together = [(float(part), float(part)) for part in FRACTIONS]
    if inputs.is_symmetric:
        return together
    coarse = FRACTIONS[::4]
    return together + [(float(low), float(high)) for low in coarse for high in coarse]


def _entropy(seen: RangeObserver, inputs: IntegerInputs) -> tuple[float, float]:
    counts, centres = seen.histogram()
    half = BINS // 2
    magnitudes = counts[half:] + counts[:half][::-1]
    cut = best_cut(magnitudes[None], inputs.middle)[0] / half * (-centres[0] + centres[-1]) / 2
    return -float(cut), float(cut)


RANGE_METHODS: Mapping[str, Callable[[RangeObserver, IntegerInputs], tuple[float, float]]] = {
    "min_max": _min_max,
    "percentile": _percentile,
    "mse": _mse,
    "entropy": _entropy,
}
