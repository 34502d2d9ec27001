# SPDX-License-Identifier: Apache-2.0
"""Guessing the next tokens from the text so far: what followed the last few tokens when they stood there before.

Several guessed tokens run in one pass of the engine, which costs less than a pass for each.
The sampler then chooses at each position from the model's own logits, and a guess counts only if it is what was chosen,
so that the output is distributed as without guesses (arXiv 2211.17192, for a draft that is certain of itself).
Good for text that repeats its prompt (summaries, edits, code), useless elsewhere.
Source of the idea: Prompt Lookup Decoding, A. Saxena, 2023.
"""

from __future__ import annotations

from collections.abc import Sequence

# Longer matches are looked for first; a single token says too little.
MATCH_LENGTHS = (4, 3, 2)


class PromptLookup:
    """The tokens so far, with the place of each short sequence in them."""

    def __init__(self, token_ids: Sequence[int]) -> None:
        """Index the prompt."""
        self._tokens: list[int] = []
        self._next_of: dict[tuple[int, ...], int] = {}
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
        if count <= 0:
            return []
        for length in MATCH_LENGTHS:
            start = self._next_of.get(tuple(self._tokens[-length:])) if length <= len(self._tokens) else None
            if start is not None:
                return self._tokens[start : start + count]
        return []
