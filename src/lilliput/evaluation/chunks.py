# SPDX-License-Identifier: Apache-2.0
"""Cutting a text into the windows that are scored, exactly as llama-perplexity does.

The text is tokenized once, with BOS in front where the model wants one, and cut into windows of `context` tokens; an
incomplete last window is dropped. Where the model wants BOS, it replaces the first token of every window. Only the
second half of a window is scored, so that every prediction has seen at least half a window: logits of positions
context/2 .. context-2 predict tokens context/2+1 .. context-1.
Source: llama.cpp, tools/perplexity/perplexity.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lilliput.arrays import IntArray
from lilliput.errors import EvaluationError

# The smallest window that has one token to score.
SMALLEST_CONTEXT = 4
# The command line takes no smaller one: a few scored tokens a window say nothing.
SMALLEST_ADVISED = 16


@dataclass(frozen=True, slots=True)
class Chunks:
    """Windows of one text.

    token_ids: int32 [chunks, context], as they are fed, BOS in place.
    """

    token_ids: IntArray

    @property
    def context(self) -> int:
        """Tokens in a window."""
        return int(self.token_ids.shape[1])

    @property
    def first_scored(self) -> int:
        """Position of the first logits that are scored."""
        return self.context // 2

    @property
    def scored_per_chunk(self) -> int:
        """Predictions scored in each window."""
        return self.context - 1 - self.first_scored

    @property
    def scored(self) -> int:
        """Predictions scored in all."""
        return len(self) * self.scored_per_chunk

    def targets(self, chunk: int) -> IntArray:
        """The tokens to predict: int32 [scored_per_chunk]."""
        return self.token_ids[chunk, self.first_scored + 1 :]

    def __len__(self) -> int:
        return int(self.token_ids.shape[0])

    def __iter__(self) -> Iterator[IntArray]:
        return iter(self.token_ids)


def cut(
    token_ids: Sequence[int] | IntArray, context: int, *, bos_token_id: int | None = None, limit: int | None = None
) -> Chunks:
    """Cut one tokenized text into windows.

    bos_token_id: set for models that want BOS, whose tokenizer has put one in front already.
    limit: at most this many tokens of the text are used, but always one window.
    Raises EvaluationError for a text shorter than one window.
    """
    if context < SMALLEST_CONTEXT:
        raise EvaluationError(f"context of {context} tokens: at least {SMALLEST_CONTEXT} are needed to score any")
    ids = np.asarray(token_ids, dtype=np.int32)
    if ids.size < context:
        hint = f" or --context {ids.size}" if ids.size >= SMALLEST_ADVISED else ""
        raise EvaluationError(
            f"the text has {ids.size} tokens, less than one context of {context}; give more text{hint}"
        )
    count = ids.size // context
    if limit is not None:
        count = max(1, min(count, limit // context))
    windows = ids[: count * context].reshape(count, context).copy()
    if bos_token_id is not None:
        windows[:, 0] = bos_token_id
    return Chunks(windows)
