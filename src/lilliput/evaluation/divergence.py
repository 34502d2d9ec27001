# SPDX-License-Identifier: Apache-2.0
"""Perplexity, and how far a model's next-token distribution is from that of its original.

P is the original's distribution at a position, Q the other's, t the token that really follows:
    nll = -ln Q(t)          perplexity = exp(mean nll)
    kld = sum_v P(v) (ln P(v) - ln Q(v))         nats, over the full vocabulary
    dp  = Q(t) - P(t)       same top: both have the same most probable token
Standard errors are llama-perplexity's: tokens are taken as independent, which makes them a little too small; the
paired intervals of `paired.py` do not assume it. Everything is float64.
Source of definitions: llama.cpp, tools/perplexity/perplexity.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lilliput.arrays import Array, DoubleArray, FloatArray, IntArray
from lilliput.errors import EvaluationError

# Float64 numbers in one temporary: 8 MiB.
BLOCK_NUMBERS = 1 << 20
# llama-perplexity gives no error for fewer tokens than this.
FEWEST_FOR_ERROR = 11


@dataclass(frozen=True, slots=True)
class Prediction:
    """One block of a model's logits as float64 log-probabilities.

    log_probabilities: [rows, vocab].  nll: [rows], of the targets.  top: [rows], most probable token.
    """

    log_probabilities: DoubleArray
    nll: DoubleArray
    top: Array


@dataclass(frozen=True, slots=True)
class TokenScores:
    """What is kept of each scored position, in order of the text: float64 [scored], same_top bool [scored].

    A model compared with itself has kld and dp 0.
    """

    nll: DoubleArray
    kld: DoubleArray
    dp: DoubleArray
    same_top: Array


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and its standard error."""

    value: float
    stderr: float


@dataclass(frozen=True, slots=True)
class Divergence:
    """Statistics of one model against its original on the same tokens. Fractions, not percent; KL in nats.

    correlation: of the two models' nll.  log_ratio, ratio, difference: of perplexities, other to base.
    kld_percentiles, dp_percentiles: percent -> value; 0 is the minimum, 100 the maximum.
    """

    tokens: int
    ppl: Estimate
    base_ppl: Estimate
    correlation: float
    log_ratio: Estimate
    ratio: Estimate
    difference: Estimate
    mean_kld: Estimate
    kld_percentiles: dict[float, float]
    mean_dp: Estimate
    dp_percentiles: dict[float, float]
    rms_dp: Estimate
    same_top: Estimate


KLD_PERCENTS = (0.0, 0.1, 1.0, 5.0, 10.0, 50.0, 90.0, 95.0, 99.0, 99.9, 100.0)
DP_PERCENTS = (0.0, 0.1, 1.0, 5.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 100.0)


def predict(logits: FloatArray, targets: IntArray) -> Prediction:
    """Log-softmax of logits [rows, vocab] in float64.

    Raises EvaluationError for NaN or +infinity; -infinity means a token that cannot follow.
    """
    largest = _largest(logits)
    shifted = logits.astype(np.float64) - largest.astype(np.float64)[:, None]
    shifted -= np.log(np.exp(shifted).sum(axis=1))[:, None]
    nll = -shifted[np.arange(len(targets)), targets]
    return Prediction(shifted, nll, logits.argmax(axis=1))


def score(base: Prediction, other: Prediction) -> TokenScores:
    """Compare two models at the same positions."""
    p = np.exp(base.log_probabilities)
    with np.errstate(invalid="ignore"):
        terms = p * (base.log_probabilities - other.log_probabilities)
    # A token with P = 0 adds nothing, also where its log-probability is -infinity.
    terms[p == 0.0] = 0.0
    return TokenScores(
        nll=other.nll,
        kld=terms.sum(axis=1),
        dp=np.exp(-other.nll) - np.exp(-base.nll),
        same_top=base.top == other.top,
    )


def log_probabilities(logits: FloatArray) -> FloatArray:
    """Log-softmax of logits [rows, vocab] in float32. Raises EvaluationError for NaN or +infinity."""
    shifted = logits - _largest(logits)[:, None]
    sums = [np.exp(row).sum(dtype=np.float64) for row in shifted]
    shifted -= np.log(sums).astype(np.float32)[:, None]
    return shifted


def row_divergences(base: FloatArray, logits: FloatArray) -> DoubleArray:
    """KL of each row in nats, float64 [rows]: what `score` computes, for searches that compare many models.

    base: log-probabilities of the original, float32 [rows, vocab].  logits: of the other, the same shape.
    With d = base - logits, KL = E[d] + ln E[exp(-d)] over the original's probabilities, whatever constant is taken off
    d; its mean is, so that float32 is enough.
    """
    _largest(logits)
    found = np.empty(len(base))
    with np.errstate(invalid="ignore"):
        for place, (ours, theirs) in enumerate(zip(base, logits, strict=True)):
            p, difference = np.exp(ours), ours - theirs
            if not np.isfinite(ours.min()):
                # A token that cannot follow adds nothing.
                difference[p == 0.0] = 0.0
            total = float(p.sum(dtype=np.float64))
            difference -= np.dot(p, difference) / np.float32(total)
            ratios = np.exp(-difference)
            ratios -= 1.0
            # The mean once more: what rounding left of it would be an error of that size.
            kl = math.log1p(float(np.dot(p, ratios)) / total) + float(np.dot(p, difference)) / total
            found[place] = max(kl, 0.0) if math.isfinite(kl) else math.inf
    return found


def _largest(logits: FloatArray) -> FloatArray:
    """Of each row. Raises EvaluationError for NaN or +infinity."""
    # max propagates NaN, so one reduction finds every bad row.
    largest: FloatArray = logits.max(axis=1)
    if not np.isfinite(largest).all():
        row = int(np.flatnonzero(~np.isfinite(largest))[0])
        raise EvaluationError(f"logits hold {'NaN' if np.isnan(largest[row]) else 'infinity'}")
    return largest


def rows_per_block(vocab_size: int) -> int:
    """How many positions are compared at once, so that temporaries stay bounded."""
    return max(1, BLOCK_NUMBERS // vocab_size)


def join(parts: Sequence[TokenScores]) -> TokenScores:
    """Scores of consecutive positions as one."""
    return TokenScores(
        nll=np.concatenate([part.nll for part in parts]),
        kld=np.concatenate([part.kld for part in parts]),
        dp=np.concatenate([part.dp for part in parts]),
        same_top=np.concatenate([part.same_top for part in parts]),
    )


def perplexity(nll: DoubleArray) -> Estimate:
    """exp(mean nll), with the error of the mean carried through the exponential."""
    mean = mean_estimate(nll)
    return _exponential(mean)


def summarize(base_nll: DoubleArray, scores: TokenScores) -> Divergence:
    """Statistics of `scores` against the base's nll at the same positions, both [scored]."""
    tokens = len(scores.nll)
    base, other = mean_estimate(base_nll), mean_estimate(scores.nll)
    covariance = float(np.mean(base_nll * scores.nll) - base.value * other.value) / max(tokens - 1, 1)
    ppl, base_ppl = _exponential(other), _exponential(base)
    log_ratio = Estimate(other.value - base.value, _error_of_difference(other.stderr, base.stderr, covariance))
    difference_error = _error_of_difference(ppl.stderr, base_ppl.stderr, ppl.value * base_ppl.value * covariance)
    mean_square = mean_estimate(scores.dp**2)
    rms = math.sqrt(mean_square.value)
    same = float(np.mean(scores.same_top))
    return Divergence(
        tokens=tokens,
        ppl=ppl,
        base_ppl=base_ppl,
        correlation=_divide(covariance, base.stderr * other.stderr),
        log_ratio=log_ratio,
        ratio=_exponential(log_ratio),
        difference=Estimate(ppl.value - base_ppl.value, difference_error),
        mean_kld=mean_estimate(scores.kld),
        kld_percentiles=_percentiles(scores.kld, KLD_PERCENTS),
        mean_dp=mean_estimate(scores.dp),
        dp_percentiles=_percentiles(scores.dp, DP_PERCENTS),
        rms_dp=Estimate(rms, _divide(0.5 * mean_square.stderr, rms) if rms else 0.0),
        same_top=Estimate(same, math.sqrt(same * (1.0 - same) / max(tokens - 1, 1))),
    )


def mean_estimate(values: DoubleArray) -> Estimate:
    """Mean, and the standard error of independent values: sqrt((mean x² - mean²) / (n - 1)); 0 for 10 or fewer."""
    mean = float(np.mean(values))
    # Summed about the mean: the textbook form loses digits where the spread is small against the mean.
    variance = float(np.mean((values - mean) ** 2))
    stderr = math.sqrt(variance / (len(values) - 1)) if len(values) >= FEWEST_FOR_ERROR else 0.0
    return Estimate(mean, stderr)


def _exponential(estimate: Estimate) -> Estimate:
    value = float(np.exp(estimate.value))
    return Estimate(value, value * estimate.stderr)


def _error_of_difference(a: float, b: float, covariance: float) -> float:
    """Rounding can leave a small negative variance where both agree."""
    return math.sqrt(max(0.0, a * a + b * b - 2.0 * covariance))


def _divide(a: float, b: float) -> float:
    return a / b if b else math.nan


def _percentiles(values: DoubleArray, percents: tuple[float, ...]) -> dict[float, float]:
    """Linear interpolation between order statistics, as numpy and llama-perplexity do."""
    return dict(zip(percents, np.percentile(values, percents).tolist(), strict=True))
