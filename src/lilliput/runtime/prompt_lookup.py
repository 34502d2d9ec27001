# SPDX-License-Identifier: Apache-2.0
"""Guessing the next tokens from the text so far: what followed the last few tokens when they stood there before.

Several guessed tokens run in one pass of the engine, which costs less than a pass for each.
The sampler then chooses at each position from the model's own logits, and a guess counts only if it is what was chosen,
so that the output is distributed as without guesses (arXiv 2211.17192, for a draft that is certain of itself).
Good for text that repeats its prompt (summaries, edits, code), useless elsewhere: matches of each length are asked
as often as they are right (`guess_length`).
Source of the idea: Prompt Lookup Decoding, A. Saxena, 2023.
"""

from __future__ import annotations

from collections.abc import Sequence

from lilliput.runtime.guess_length import GuessLength

# Longer matches are looked for first; with the share of their guesses that is expected to come true.
MATCH_LENGTHS = {16: 0.9, 8: 0.8, 4: 0.6, 3: 0.5, 2: 0.4, 1: 0.2}


class PromptLookup:
    """The tokens so far, with the place of each short sequence in them."""

    def __init__(self, token_ids: Sequence[int]) -> None:
        """Index the prompt."""
        self._tokens: list[int] = []
        self._next_of: dict[tuple[int, ...], int] = {}
        self._lengths = {length: GuessLength(share) for length, share in MATCH_LENGTHS.items()}
        self._guessed: list[int] = []
        self._guessed_from = 0
        self._matched = 0
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
        """At most `count` tokens that may come next; none where the last tokens are new."""
        self._learn()
        if count <= 0:
            return []
        for length in MATCH_LENGTHS:
            start = self._next_of.get(tuple(self._tokens[-length:])) if length <= len(self._tokens) else None
            if start is not None:
                known = self._tokens[start : start + count]
                self._guessed = known[: self._lengths[length].choose(len(known))]
                self._guessed_from, self._matched = len(self._tokens), length
                return list(self._guessed)
        return []

    def _learn(self) -> None:
        """What became of the last guesses."""
        if self._guessed:
            accepted = shared_prefix(self._guessed, self._tokens[self._guessed_from :])
            self._lengths[self._matched].learn(len(self._guessed), accepted)
            self._guessed = []


def shared_prefix(held: Sequence[int], wanted: Sequence[int]) -> int:
    """How many leading tokens two sequences share."""
    for index, (ours, theirs) in enumerate(zip(held, wanted, strict=False)):
        if ours != theirs:
            return index
    return min(len(held), len(wanted))
