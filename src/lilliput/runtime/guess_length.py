# SPDX-License-Identifier: Apache-2.0
"""How many tokens to guess: as many as promise the most tokens a second, given how often guesses came true.

If each guess comes true with probability a, n guesses give 1 + a + ... + a^n tokens a pass. What a pass over n + 1
tokens costs beside one over a single token is much the same for all models that do not fit the caches.
Source of the idea: section 3.4 of https://arxiv.org/abs/2211.17192.
"""

from __future__ import annotations

# Of passes over 1, 2, 3 ... tokens beside one over a single token, between those of a 1B shape and a widened Gulliver
# (Q4_K_M, two threads, Zen 4, 2026-11-22): up to four tokens share a reading of the weights, more wait for arithmetic.
COST_OF_TOKENS = (1.0, 1.05, 1.2, 1.2, 1.4, 1.4, 1.8, 1.8, *[2.4] * 4, *[3.0] * 4)
MOST_GUESSES = len(COST_OF_TOKENS) - 1
# Older guesses count less by this factor with every pass.
MEMORY = 0.9
# What was thought before anything was known counts as so many guesses.
FIRST_TRIED = 2.0
# Where guessing does not pay it is tried again after so many passes.
PASSES_UNTIL_ANOTHER_TRY = 16


class GuessLength:
    """Learns from what became of guesses of one kind."""

    def __init__(self, first_share: float, cost_of_guess: float = 0.0) -> None:
        """first_share: of guesses that come true, before anything is known.  cost_of_guess: of one, in passes."""
        self._cost_of_guess = cost_of_guess
        self._true, self._tried = first_share * FIRST_TRIED, FIRST_TRIED
        self._passes_without = 0

    def choose(self, most: int) -> int:
        """How many to guess now; at most `most`. Where that is none, one is tried once in a while to learn from."""
        best, _ = self.best(most)
        if best == 0 and most > 0:
            self._passes_without += 1
            if self._passes_without < PASSES_UNTIL_ANOTHER_TRY:
                return 0
            best = 1
        self._passes_without = 0
        return best

    def best(self, most: int) -> tuple[int, float]:
        """How many promise the most, at most `most`, and what: tokens expected over those of a pass without guesses.

        Both in the same time.
        """
        share = self._true / self._tried
        best, highest, tokens = 0, 0.0, 0.0
        for guesses in range(min(max(most, 0), MOST_GUESSES) + 1):
            tokens = 1.0 + share * tokens  # 1 + a + ... + a^guesses
            promise = tokens / (COST_OF_TOKENS[guesses] + self._cost_of_guess * guesses)
            if promise > highest:
                best, highest = guesses, promise
        return best, highest

    def learn(self, guessed: int, accepted: int) -> None:
        """What became of `guessed` tokens: those after the first that was wrong say nothing."""
        if guessed:
            self._true = MEMORY * self._true + accepted
            self._tried = MEMORY * self._tried + min(accepted + 1, guessed)
