# SPDX-License-Identifier: Apache-2.0
"""Guessing from the text so far where it repeats itself, with a smaller model elsewhere: whichever promises more.

Guesses from the text cost nothing and reach further; a draft is right where the text is new. What the text would have
said is compared with what came even while the draft guesses, so that a copy is noticed when it begins.
"""

from __future__ import annotations

from lilliput.runtime.draft_model import DraftModel
from lilliput.runtime.prompt_lookup import PromptLookup


class TextAndDraft:
    """A guesser as both of these are."""

    def __init__(self, text: PromptLookup, draft: DraftModel) -> None:
        """Of the same tokens so far."""
        self._text = text
        self._draft = draft

    def append(self, token: int) -> None:
        """Add the token that came next."""
        self._text.append(token)
        self._draft.append(token)

    def guess(self, count: int) -> list[int]:
        """At most `count` tokens that may come next."""
        if self._text.promise(count) > self._draft.promise(count):
            return self._text.guess(count)
        return self._draft.guess(count)
