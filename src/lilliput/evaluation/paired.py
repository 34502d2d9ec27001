# SPDX-License-Identifier: Apache-2.0
"""Is one file closer to the original than another? A paired block bootstrap over chunks.

Both files are scored on the same tokens, and tokens inside a chunk are correlated; so whole chunks are drawn with
replacement, the same for both files, and the ratio of their summed KL divergences is taken each time. The interval is
the percentile interval of the log ratio, widened for few chunks (Hesterberg 2015, arXiv 1411.5279, section 3.4.1):
its tails are cut at Phi(-sqrt(n / (n - 1)) t), t the quantile of Student's t with n - 1 degrees of freedom.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np

from lilliput.arrays import DoubleArray

RESAMPLES = 4000
CONFIDENCE = 0.95
# Below this many chunks the resampled ratios are too few to read an interval from.
FEWEST_CHUNKS = 5


@dataclass(frozen=True, slots=True)
class PairedRatio:
    """KL divergence of file a over that of file b, with a 95 % interval; NaN bounds mean too few chunks to tell."""

    a: str
    b: str
    kld_ratio: float
    low: float
    high: float
    chunks: int

    @property
    def has_interval(self) -> bool:
        """Whether there were chunks enough for one."""
        return not (math.isnan(self.low) or math.isnan(self.high))

    @property
    def verdict(self) -> str:
        """One sentence."""
        if not self.has_interval:
            return f"too few chunks to tell ({self.chunks}; give text or --tokens for {FEWEST_CHUNKS})"
        if self.low <= 1.0 <= self.high:
            return "no difference"
        closer, other = (self.a, self.b) if self.kld_ratio < 1.0 else (self.b, self.a)
        return f"{closer} is closer to the original than {other}"


def paired_ratio(a: str, b: str, kld_a: DoubleArray, kld_b: DoubleArray, *, seed: int = 0) -> PairedRatio:
    """Bootstrap the ratio of summed KL divergences.

    a, b: names of the files.  kld_a, kld_b: [chunks, scored per chunk], of the same tokens.
    """
    sums_a, sums_b = kld_a.sum(axis=1), kld_b.sum(axis=1)
    chunks = len(sums_a)
    ratio = _ratio(float(sums_a.sum()), float(sums_b.sum()))
    if np.array_equal(kld_a, kld_b):
        return PairedRatio(a, b, 1.0, 1.0, 1.0, chunks)
    if not kld_a.any() or not kld_b.any():
        # One of them is the original, bit for bit: 0 or infinity whichever chunks are drawn.
        return PairedRatio(a, b, ratio, ratio, ratio, chunks)
    if chunks < FEWEST_CHUNKS:
        return PairedRatio(a, b, ratio, math.nan, math.nan, chunks)
    counts = resampled_counts(chunks, seed)
    # KL sums are positive but for rounding; the smallest positive number keeps the logarithm defined.
    tiny = np.finfo(np.float64).tiny
    logs = np.log(np.maximum(counts @ sums_a, tiny)) - np.log(np.maximum(counts @ sums_b, tiny))
    tail = expanded_tail(chunks)
    low, high = np.exp(np.quantile(logs, (tail, 1.0 - tail)))
    return PairedRatio(a, b, ratio, float(low), float(high), chunks)


@lru_cache(maxsize=1)
def resampled_counts(chunks: int, seed: int) -> DoubleArray:
    """How often each chunk is drawn: float64 [RESAMPLES, chunks]. Kept, for all pairs of a run draw the same."""
    # Drawing chunks with replacement is drawing how often each occurs.
    counts = np.random.default_rng(seed).multinomial(chunks, np.full(chunks, 1.0 / chunks), size=RESAMPLES)
    return counts.astype(np.float64)


def expanded_tail(chunks: int) -> float:
    """Probability left on each side so that the interval of few chunks covers as often as it says."""
    t = student_t_quantile(0.5 + CONFIDENCE / 2.0, chunks - 1)
    return NormalDist().cdf(-math.sqrt(chunks / (chunks - 1)) * t)


def student_t_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t, by Cornish-Fisher expansion in 1 / degrees; within 0.5 % for 4 degrees and more.

    Source: Abramowitz and Stegun 26.7.5.
    """
    z = NormalDist().inv_cdf(probability)
    terms = (
        (z**3 + z) / 4.0,
        (5.0 * z**5 + 16.0 * z**3 + 3.0 * z) / 96.0,
        (3.0 * z**7 + 19.0 * z**5 + 17.0 * z**3 - 15.0 * z) / 384.0,
        (79.0 * z**9 + 776.0 * z**7 + 1482.0 * z**5 - 1920.0 * z**3 - 945.0 * z) / 92160.0,
    )
    correction: float = sum(term / degrees**power for power, term in enumerate(terms, start=1))
    return z + correction


def _ratio(a: float, b: float) -> float:
    if b == 0.0:
        return 1.0 if a == 0.0 else math.inf
    return a / b
