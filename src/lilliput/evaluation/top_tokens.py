# SPDX-License-Identifier: Apache-2.0
"""What two models would say: their most probable tokens position by position, and what each writes on its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lilliput.arrays import DoubleArray, FloatArray, IntArray
from lilliput.evaluation.compare import LogitsSource
from lilliput.evaluation.divergence import predict, score

CANDIDATES = 5


@dataclass(frozen=True, slots=True)
class Candidates:
    """The most probable tokens of some positions, best first.

    token_ids: int32 [positions, CANDIDATES].  probabilities: float32, the same shape.
    """

    token_ids: IntArray
    probabilities: FloatArray


class TopTokens:
    """A LogitsSource that passes everything on to another and keeps the best tokens of all logits it sees.

    So a report needs no second forward pass; 40 bytes a position are kept.
    """

    def __init__(self, source: LogitsSource) -> None:
        self._source = source
        self.name = source.name
        self.bytes = source.bytes
        self.bits_per_weight = source.bits_per_weight
        self.vocab_size = source.vocab_size
        self._kept: list[Candidates] = []

    def start(self) -> None:
        """Forget all tokens of the model; what was kept stays."""
        self._source.start()

    def advance(self, token_ids: IntArray, *, outputs: int) -> FloatArray:
        """As the model itself; keeps the candidates of every row of logits."""
        logits = self._source.advance(token_ids, outputs=outputs)
        if outputs:
            self._kept.append(best_tokens(logits))
        return logits

    @property
    def seen(self) -> Candidates:
        """Everything so far, in order."""
        return Candidates(
            np.concatenate([part.token_ids for part in self._kept]),
            np.concatenate([part.probabilities for part in self._kept]),
        )


def best_tokens(logits: FloatArray) -> Candidates:
    """The most probable tokens of logits [rows, vocab]; equal ones in order of their ids."""
    count = min(CANDIDATES, logits.shape[1])
    found = np.argpartition(logits, -count, axis=1)[:, -count:]
    chosen = np.take_along_axis(logits, found, axis=1)
    order = np.lexsort((found, -chosen), axis=1)
    token_ids, chosen = np.take_along_axis(found, order, axis=1), np.take_along_axis(chosen, order, axis=1)
    largest = logits.max(axis=1, keepdims=True)
    total = np.exp(logits - largest).sum(axis=1, keepdims=True, dtype=np.float64)
    probabilities = np.exp(chosen - largest) / total
    return Candidates(token_ids.astype(np.int32), probabilities.astype(np.float32))


def most_probable_text(
    source: LogitsSource, prompt: Sequence[int], count: int, *, stop_ids: frozenset[int] = frozenset()
) -> list[int]:
    """At most `count` token ids that follow `prompt`, always the most probable one; ends before a stop token."""
    source.start()
    found: list[int] = []
    fed = np.asarray(prompt, dtype=np.int32)
    while len(found) < count:
        token = int(source.advance(fed, outputs=1)[0].argmax())
        if token in stop_ids:
            break
        found.append(token)
        fed = np.asarray([token], dtype=np.int32)
    return found


def divergence_along(base: LogitsSource, other: LogitsSource, token_ids: Sequence[int], first: int) -> DoubleArray:
    """KL in nats of `other` from `base` where each of token_ids[first:] is predicted: float64 [len - first].

    first: at least 1.  Both models read the same tokens.
    """
    ids = np.asarray(token_ids, dtype=np.int32)
    rows = len(ids) - first
    if rows <= 0:
        return np.empty(0, dtype=np.float64)
    predictions = []
    for source in (base, other):
        source.start()
        predictions.append(predict(source.advance(ids[:-1], outputs=rows), ids[first:]))
    return score(*predictions).kld
