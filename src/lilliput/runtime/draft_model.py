# SPDX-License-Identifier: Apache-2.0
"""Guessing the next tokens with a smaller model: the same one in fewer bits, for one.

The draft runs a token at a time, the model then verifies all of them in one pass. A guess counts only if it is what the
sampler chose from the model's own logits, so the text is that without a draft, greedy or sampled. Where tokens are
drawn, the draft draws with the numbers that the sampler will use: two distributions that are near each other then
mostly give the same token, where the draft's likeliest would come true no oftener than the model draws it.
Gulliver in 8 bits for a widened one in 4, text at temperature 0.8 (2026-11-22): 95 % of guesses come true, 97 % being
the most that any draw allows, 27 % if the draft says what is likeliest.
Sources: Fast Inference from Transformers via Speculative Decoding, https://arxiv.org/abs/2211.17192; shared random
numbers: Coupling without Communication and Drafter-Invariant Speculative Decoding, https://arxiv.org/abs/2408.07978.
"""

from __future__ import annotations

from collections.abc import Sequence

from lilliput.runtime.guess_length import GuessLength
from lilliput.runtime.prompt_lookup import shared_prefix
from lilliput.runtime.sampler import Sampler
from lilliput.runtime.session import Session

# Of a draft's pass beside the model's; a draft that costs more than a few of these seldom pays.
COST_OF_GUESS = 0.04
# Of guesses that come true.
FIRST_SHARE = 0.8


class DraftModel:
    """A draft session beside the tokens so far; a guesser as `PromptLookup` is."""

    def __init__(self, session: Session, token_ids: Sequence[int], sampler: Sampler) -> None:
        """Begin after the prompt; what the session holds of it already is kept.  sampler: that of the generation."""
        self._session = session
        self._sampler = sampler
        self._tokens = list(token_ids)
        self._length = GuessLength(FIRST_SHARE, COST_OF_GUESS)
        self._guessed: list[int] = []
        self._guessed_from = 0

    def append(self, token: int) -> None:
        """Add the token that came next."""
        self._tokens.append(token)

    def promise(self, count: int) -> float:
        """Tokens expected of a pass with at most `count` guesses, over those of one without in the same time."""
        self._learn()
        _, promise = self._length.best(self._most(count))
        return promise

    def guess(self, count: int) -> list[int]:
        """At most `count` tokens that may come next."""
        self._learn()
        count = self._length.choose(self._most(count))
        if count <= 0:
            return []
        session = self._session
        # The last token runs in any case: its logits are what the guess starts from.
        session.truncate(min(shared_prefix(session.token_ids, self._tokens), len(self._tokens) - 1))
        sampler = self._sampler.twin()
        self._guessed, self._guessed_from = [], len(self._tokens)
        pending = self._tokens[session.length :]
        while len(self._guessed) < count:
            logits = session.forward(pending)[0]
            pending = [sampler.choose(logits, [*self._tokens, *self._guessed])]
            self._guessed += pending
        return list(self._guessed)

    def _most(self, count: int) -> int:
        return min(count, self._session.context - len(self._tokens))

    def _learn(self) -> None:
        """What became of the last guesses."""
        if self._guessed:
            came = self._tokens[self._guessed_from :]
            self._length.learn(len(self._guessed), shared_prefix(self._guessed, came))
            self._guessed = []
