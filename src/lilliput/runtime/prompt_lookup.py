# SPDX-License-Identifier: Apache-2.0
"""Guessing the next tokens from the text so far: what followed the last few tokens when they stood there before.

Several guessed tokens run in one pass of the engine, which costs less than a pass for each.
The sampler then chooses at each position from the model's own logits, and a guess counts only if it is what was chosen,
so that the output is distributed as without guesses (arXiv 2211.17192, for a draft that is certain of itself).
Good for text that repeats its prompt (summaries, edits, code), useless elsewhere: for matches of each length it is
learned how often what they continue with comes true, guessed or not, and the one that promises most is guessed from, as
far as it promises (`guess_length`).
Source of the idea: Prompt Lookup Decoding, A. Saxena, 2023.
"""

from __future__ import annotations

from collections.abc import Sequence

from lilliput.runtime.guess_length import MOST_GUESSES, GuessLength

# Longer matches are looked for first; with the share of their guesses that is expected to come true.
MATCH_LENGTHS = {16: 0.9, 8: 0.8, 4: 0.6, 3: 0.5, 2: 0.4, 1: 0.2}


class PromptLookup:
    """The tokens so far, with the place of each short sequence in them."""

    def __init__(self, token_ids: Sequence[int]) -> None:
        """Index the prompt."""
        self._tokens: list[int] = []
        self._next_of: dict[tuple[int, ...], int] = {}
        self._lengths = {length: GuessLength(share) for length, share in MATCH_LENGTHS.items()}
        # What matches of each length continued with when the text had `_held_at` tokens.
        self._held: dict[int, list[int]] = {}
        self._held_at = 0
        for token in token_ids:
            self.append(token)

    def append(self, token: int) -> None:
        """Add the token that came next."""
        # Sequences that end with the token before this one; a later place replaces an earlier one.
        end = len(self._tokens)
        for length in MATCH_LENGTHS:
            if length <= end:
                self._next_of[tuple(self._tokens[end - length :])] = end
        self._tokens.append(token)

    def guess(self, count: int) -> list[int]:
        """At most `count` tokens that may come next; none where that would not pay."""
        guesses, _ = self._best(count)
        return guesses

    def promise(self, count: int) -> float:
        """Tokens expected of a pass with at most `count` guesses, over those of one without in the same time."""
        _, promise = self._best(count)
        return promise

    def _best(self, count: int) -> tuple[list[int], float]:
        """What to guess, and what it promises."""
        self._learn()
        best: tuple[list[int], float] = ([], 1.0)
        for length, known in self._held.items():
            guesses, promise = self._lengths[length].best(min(count, len(known)))
            if promise > best[1]:
                best = (known[:guesses], promise)
        return best

    def _learn(self) -> None:
        """What became of what matches continued with; what they continue with now."""
        came = self._tokens[self._held_at :]
        if not came:
            return
        for length, known in self._held.items():
            tested = min(len(known), len(came))
            self._lengths[length].learn(tested, shared_prefix(known, came))
        self._held, self._held_at = {}, len(self._tokens)
        for length in MATCH_LENGTHS:
            start = self._next_of.get(tuple(self._tokens[-length:])) if length <= len(self._tokens) else None
            if start is not None:
                self._held[length] = self._tokens[start : start + MOST_GUESSES]


def shared_prefix(held: Sequence[int], wanted: Sequence[int]) -> int:
    """How many leading tokens two sequences share."""
    for index, (ours, theirs) in enumerate(zip(held, wanted, strict=False)):
        if ours != theirs:
            return index
    return min(len(held), len(wanted))
