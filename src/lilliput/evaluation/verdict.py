# SPDX-License-Identifier: Apache-2.0
"""What a KL divergence means in use, in a word.

The levels are a rule of thumb, not a test of any task. By Pinsker's inequality the probability that a mean KL of k
moves from one token to others is at most sqrt(k / 2) on average: 2 % at 0.001, 7 % at 0.01, 16 % at 0.05, 32 % at 0.2.
"""

from __future__ import annotations

import math

from lilliput.reports.records import Interval, Verdict

# Largest mean KL in nats of each level, word, advice.
LEVELS = (
    (0.001, "indistinguishable", "use it in place of the original"),
    (0.01, "faithful", "safe to use in place of the original"),
    (0.05, "close", "safe for most uses; test what must be exact"),
    (0.2, "changed", "test it on your own task before you rely on it"),
)
# Up to this level a file may stand in for its original.
LAST_SAFE_LEVEL = 1
WORST = ("damaged", "do not rely on it without tests of your own")


def limits() -> tuple[tuple[str, float], ...]:
    """Each word and its largest mean KL, best first; the worst has none, which is infinity."""
    return (*((word, limit) for limit, word, _ in LEVELS), (WORST[0], math.inf))


def verdict(mean_kld: Interval) -> Verdict:
    """The level of the upper end of the interval, so that doubt counts against the file."""
    for level, (limit, word, advice) in enumerate(LEVELS):
        if mean_kld.high <= limit:
            return Verdict(level, word, advice)
    return Verdict(len(LEVELS), *WORST)
