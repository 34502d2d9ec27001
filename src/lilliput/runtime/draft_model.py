# SPDX-License-Identifier: Apache-2.0
"""Guessing the next tokens with a smaller model: the same one in fewer bits, for one.

The draft runs a token at a time, the model then verifies all of them in one pass. A guess counts only if it is what the
sampler chose from the model's own logits, so the output is distributed as without a draft, greedy or sampled.
How many tokens are guessed follows what came true: one more after a pass that accepted all, else one beyond the last
that was accepted.
Source: Fast Inference from Transformers via Speculative Decoding, https://arxiv.org/abs/2211.17192.
"""

from __future__ import annotations

from collections.abc import Sequence

from lilliput.runtime.session import Session

FIRST_GUESSES = 3


class DraftModel:
    """A draft session beside the tokens so far; a guesser as `PromptLookup` is."""

    def __init__(self, session: Session, token_ids: Sequence[int]) -> None:
        """Begin after the prompt; what the session holds of it already is kept."""
        self._session = session
        self._tokens = list(token_ids)
        self._ahead = FIRST_GUESSES
        self._guessed: list[int] = []
        self._guessed_from = 0

    def append(self, token: int) -> None:
        """Add the token that came next."""
        self._tokens.append(token)

    def guess(self, count: int) -> list[int]:
        """At most `count` tokens that may come next."""
        self._learn()
        count = min(count, self._ahead, self._session.context - len(self._tokens))
        if count <= 0:
            return []
        session = self._session
        # The last token runs in any case: its logits are what the guess starts from.
        session.truncate(min(shared_prefix(session.token_ids, self._tokens), len(self._tokens) - 1))
        logits = session.forward(self._tokens[session.length :])[0]
        self._guessed, self._guessed_from = [int(logits.argmax())], len(self._tokens)
        while len(self._guessed) < count:
            logits = session.forward(self._guessed[-1:])[0]
            self._guessed.append(int(logits.argmax()))
        return list(self._guessed)

    def _learn(self) -> None:
        """How far to guess, from what became of the last guesses."""
        if self._guessed:
            came = self._tokens[self._guessed_from :]
            accepted = shared_prefix(self._guessed, came)
            self._ahead = self._ahead + 1 if accepted == len(self._guessed) else accepted + 1
            self._guessed = []


def shared_prefix(held: Sequence[int], wanted: Sequence[int]) -> int:
    """How many leading tokens two sequences share."""
    for index, (ours, theirs) in enumerate(zip(held, wanted, strict=False)):
        if ours != theirs:
            return index
    return min(len(held), len(wanted))
