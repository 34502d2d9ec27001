# SPDX-License-Identifier: Apache-2.0
"""Choosing the next token: penalty, top-k, top-p, min-p, temperature, draw; in llama.cpp's order.

A draw is a race (the Gumbel-max trick): each token gets a random number of its own and the largest logit / temperature
plus number wins, which is a draw from the softmax. Two models whose distributions are near each other then choose the
same token with the same numbers, nearly as often as any way of drawing allows: what `draft_model` lives on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lilliput.arrays import DoubleArray, FloatArray, IntArray
from lilliput.errors import RuntimeModelError


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How to choose. The defaults are greedy; each filter has a value that turns it off.

    temperature: 0 is greedy.  top_k: keep the k likeliest; 0 off.  top_p: keep the likeliest that together reach p;
    1 off.  min_p: keep what is at least min_p times as likely as the likeliest; 0 off.
    repetition_penalty: divides positive and multiplies negative logits of the last `repetition_window` tokens; 1 off.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    repetition_window: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise RuntimeModelError for values without meaning."""
        for is_valid, claim in (
            (self.temperature >= 0.0, f"temperature is {self.temperature}, must be 0 or more"),
            (self.top_k >= 0, f"top_k is {self.top_k}, must be 0 (off) or more"),
            (0.0 <= self.top_p <= 1.0, f"top_p is {self.top_p}, must lie in 0..1"),
            (0.0 <= self.min_p <= 1.0, f"min_p is {self.min_p}, must lie in 0..1"),
            (self.repetition_penalty > 0.0, f"repetition_penalty is {self.repetition_penalty}, must be above 0"),
            (self.repetition_window >= 0, f"repetition_window is {self.repetition_window}, must be 0 or more"),
            (self.seed >= 0, f"seed is {self.seed}, must be 0 or more"),
        ):
            if not is_valid:
                raise RuntimeModelError(claim)


@dataclass(frozen=True, slots=True)
class Candidates:
    """Tokens still in the running, likeliest first; equal logits by lower id.

    ids, logits: [candidates].
    """

    ids: IntArray
    logits: FloatArray

    def first(self, count: int) -> Candidates:
        """The `count` likeliest."""
        return Candidates(self.ids[:count], self.logits[:count])


class Sampler:
    """Draws tokens; the same seed and logits give the same tokens."""

    def __init__(self, options: SamplingOptions) -> None:
        """Start the generator of random numbers from the options' seed."""
        self._options = options
        # Where nothing is drawn, nothing waits for the import of numpy.random.
        self._random = None if options.temperature == 0.0 else np.random.PCG64(options.seed)

    def twin(self) -> Sampler:
        """Another that will draw what this one would, given the same logits; this one does not notice."""
        twin = Sampler(self._options)
        if twin._random is not None and self._random is not None:
            twin._random.state = self._random.state
        return twin

    def choose(self, logits: FloatArray, previous: Sequence[int] = ()) -> int:
        """The next token.

        logits: [vocab_size].  previous: token ids so far, prompt included; the penalty looks at the last of them.
        Raises RuntimeModelError when a logit is NaN or all are minus infinity.
        """
        options = self._options
        if options.repetition_penalty != 1.0 and options.repetition_window:
            logits = penalized(logits, previous[-options.repetition_window :], options.repetition_penalty)
        highest = int(np.argmax(logits))  # the first NaN if there is one
        if not np.isfinite(logits[highest]):
            raise RuntimeModelError("the model's logits are not finite: its weights are damaged or overflow F16")
        if options.temperature == 0.0:
            return highest
        if not (options.top_k or options.top_p < 1.0 or options.min_p > 0.0):
            return self._race(Candidates(np.arange(logits.size, dtype=np.int32), logits))
        candidates = likeliest(logits, options.top_k)
        candidates = nucleus(candidates, options.top_p)
        return self._race(above_min_p(candidates, options.min_p))

    def _race(self, candidates: Candidates) -> int:
        """Draw one. Their order decides only between equals."""
        assert self._random is not None  # at temperatures above 0
        key = self._random.random_raw()
        race = candidates.logits.astype(np.float64) / self._options.temperature + gumbel_numbers(
            int(key), candidates.ids
        )
        return int(candidates.ids[int(np.argmax(race))])


def gumbel_numbers(key: int, ids: IntArray) -> DoubleArray:
    """A number of the standard Gumbel distribution for each token, from the key and its id alone.

    Bits: SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014).
    """
    bits = np.uint64(key) + (ids.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits ^= bits >> np.uint64(31)
    # 52 bits and a half: never 0, never 1.
    uniform = ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    result: DoubleArray = -np.log(-np.log(uniform))
    return result


def penalized(logits: FloatArray, recent: Sequence[int], penalty: float) -> FloatArray:
    """Logits with each recent token made less likely, once however often it occurs (arXiv 1909.05858, section 4.1)."""
    ids = np.unique(np.asarray(recent, dtype=np.int64))
    result = logits.copy()
    chosen = logits[ids]
    result[ids] = np.where(chosen > 0, chosen / np.float32(penalty), chosen * np.float32(penalty))
    return result


def likeliest(logits: FloatArray, top_k: int) -> Candidates:
    """The `top_k` likeliest tokens, or all of them for 0."""
    if 0 < top_k < logits.size:
        # All that reach the k-th logit, so that ties are settled by id and not by the partition.
        threshold = np.partition(logits, logits.size - top_k)[logits.size - top_k]
        kept = np.flatnonzero(logits >= threshold)
    else:
        kept = np.arange(logits.size)
    order = np.argsort(-logits[kept], kind="stable")
    ids = kept[order].astype(np.int32)
    candidates = Candidates(ids, logits[ids])
    return candidates.first(top_k) if top_k else candidates


def nucleus(candidates: Candidates, top_p: float) -> Candidates:
    """The fewest likeliest tokens whose probabilities reach top_p; at least one (arXiv 1904.09751)."""
    if top_p >= 1.0:
        return candidates
    cumulative = np.cumsum(probabilities(candidates.logits, 1.0))
    return candidates.first(int(np.searchsorted(cumulative, top_p, side="left")) + 1)


def above_min_p(candidates: Candidates, min_p: float) -> Candidates:
    """Tokens at least min_p times as likely as the likeliest (arXiv 2407.01082)."""
    if min_p <= 0.0:
        return candidates
    relative = np.exp(candidates.logits.astype(np.float64) - float(candidates.logits[0]))
    return candidates.first(int(np.count_nonzero(relative >= min_p)))


def probabilities(logits: FloatArray, temperature: float) -> DoubleArray:
    """softmax(logits / temperature) in float64."""
    scaled = (logits.astype(np.float64) - float(logits.max())) / temperature
    exponentials = np.exp(scaled)
    result: DoubleArray = exponentials / exponentials.sum()
    return result
