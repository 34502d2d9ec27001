# SPDX-License-Identifier: Apache-2.0
"""A mean over all scored tokens, with a 95 % interval that knows that tokens of one window are alike.

Whole windows are drawn with replacement, as in `paired.py`. Below its FEWEST_CHUNKS windows the interval is that of
independent tokens, 1.96 standard errors to each side, which is too narrow; callers say so.
"""

from __future__ import annotations

import numpy as np

from lilliput.arrays import DoubleArray
from lilliput.evaluation.divergence import mean_estimate
from lilliput.evaluation.paired import FEWEST_CHUNKS, expanded_tail, resampled_counts
from lilliput.reports.records import Interval

NORMAL_WIDTH = 1.959964


def mean_interval(values: DoubleArray, *, seed: int = 0) -> Interval:
    """Mean of values [windows, scored per window] with its 95 % interval."""
    windows = len(values)
    estimate = mean_estimate(values.reshape(-1))
    if windows < FEWEST_CHUNKS:
        half = NORMAL_WIDTH * estimate.stderr
        return Interval(estimate.value, estimate.value - half, estimate.value + half)
    means = resampled_counts(windows, seed) @ values.mean(axis=1) / windows
    tail = expanded_tail(windows)
    low, high = np.quantile(means, (tail, 1.0 - tail))
    return Interval(estimate.value, float(low), float(high))


def exponential(interval: Interval) -> Interval:
    """Exp of all three: a perplexity from a mean nll, or a ratio of perplexities from a difference."""
    with np.errstate(over="ignore"):
        found = np.exp(np.asarray((interval.value, interval.low, interval.high)))
    return Interval(*found.tolist())
