# SPDX-License-Identifier: Apache-2.0
"""The measured text as a reader sees it: a passage, the places of largest divergence, free continuations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lilliput.arrays import DoubleArray
from lilliput.evaluation.chunks import Chunks
from lilliput.evaluation.compare import EvaluationResult, LogitsSource
from lilliput.evaluation.top_tokens import Candidates, TopTokens, divergence_along, most_probable_text
from lilliput.reports.records import Candidate, Continuation, Passage, PassageScores, Place, WrittenToken
from lilliput.text.tokenizer import StreamDecoder, Tokenizer
from lilliput.text.vocabulary import Vocabulary

PASSAGE_TOKENS = 256
# Tokens of the text shown before a passage; a continuation starts from the same.
BEFORE = 40
CONTINUED = 64
PLACES = 6
PLACE_BEFORE, PLACE_AFTER = 16, 6
# Two places nearer than this are one.
APART = 8


class TextViews:
    """Reads an evaluation beside its text. base_nll: [scored].  shape: windows, scored per window."""

    def __init__(self, vocabulary: Vocabulary, chunks: Chunks, result: EvaluationResult, base: TopTokens) -> None:
        self._tokenizer = Tokenizer(vocabulary)
        self._chunks = chunks
        self._result = result
        self._base = base
        self._base_seen = base.seen
        self.base_nll: DoubleArray = result.base_nll
        self.shape = (len(chunks), chunks.scored_per_chunk)
        self._window = self._typical_window()

    def passage(self) -> Passage:
        """The beginning of the scored part of the typical window."""
        span = self._span()
        return Passage(
            window=self._window + 1,
            before=self._decode(self._before()),
            tokens=tuple(self._pieces(self._before(), self._targets()[: len(span)])),
            candidates=self._candidates(self._base_seen, span),
        )

    def scores(self, index: int, passage: Passage, seen: Candidates) -> PassageScores:
        """What file `index` made of the passage. seen: its candidates at all scored positions."""
        span = self._span()
        klds = self._result.files[index].scores.kld[span.start : span.stop]
        return PassageScores(tuple(rounded(value) for value in klds), self._candidates(seen, span))

    def places(self, index: int, seen: Candidates) -> tuple[Place, ...]:
        """Where file `index` is farthest from the original, worst first."""
        kld = self._result.files[index].scores.kld
        chosen: list[int] = []
        # A text that repeats itself would show the same place six times.
        seen_words: set[tuple[int, ...]] = set()
        for position in np.argsort(-kld, kind="stable").tolist():
            if len(chosen) == PLACES or kld[position] <= 0.0:
                break
            here = self._last_words(position)
            if here not in seen_words and all(abs(position - other) >= APART for other in chosen):
                seen_words.add(here)
                chosen.append(position)
        return tuple(self._place(position, float(kld[position]), seen) for position in chosen)

    def continuation(self, other: LogitsSource, prompt: str | None) -> Continuation | None:
        """Both models' most probable continuation of `prompt`, or of what stands before the passage."""
        context = self._chunks.context
        ids = self._tokenizer.encode(prompt) if prompt is not None else self._before()
        ids = ids[: max(context // 2, 1)]
        count = min(CONTINUED, context - len(ids))
        if not ids or count <= 0:
            return None
        stop = self._tokenizer.end_of_generation_ids
        written = [most_probable_text(source, ids, count, stop_ids=stop) for source in (self._base, other)]
        tokens = [self._written(ids, found, other) for found in written]
        parts_at = next((at for at, (a, b) in enumerate(zip(*written, strict=False)) if a != b), None)
        if parts_at is None and len(written[0]) != len(written[1]):
            parts_at = min(map(len, written))
        return Continuation(self._decode(ids), tokens[0], tokens[1], parts_at)

    def _written(self, prompt: Sequence[int], found: Sequence[int], other: LogitsSource) -> tuple[WrittenToken, ...]:
        klds = divergence_along(self._base, other, [*prompt, *found], len(prompt))
        pieces = self._pieces(prompt, found)
        return tuple(WrittenToken(text, rounded(kld)) for text, kld in zip(pieces, klds, strict=True))

    def _typical_window(self) -> int:
        """Of the file that differs most, a window of middling KL: of the middle third the one of fewest lines."""
        worst = max(self._result.files, key=lambda file: file.divergence.mean_kld.value)
        sums = worst.scores.kld.reshape(self.shape).sum(axis=1)
        order = np.argsort(sums, kind="stable")
        middle, reach = (len(order) - 1) // 2, len(order) // 6
        candidates: list[int] = order[middle - reach : middle + reach + 1].tolist()
        return min(candidates, key=self._lines)

    def _lines(self, window: int) -> int:
        return self._decode(self._chunks.targets(window).tolist()).count("\n")

    def _span(self) -> range:
        """Scored positions of the passage."""
        start = self._window * self.shape[1]
        return range(start, start + min(PASSAGE_TOKENS, self.shape[1]))

    def _targets(self) -> list[int]:
        found: list[int] = self._chunks.targets(self._window).tolist()
        return found

    def _before(self) -> list[int]:
        first = self._chunks.first_scored + 1
        found: list[int] = self._chunks.token_ids[self._window, max(0, first - BEFORE) : first].tolist()
        return found

    def _last_words(self, position: int) -> tuple[int, ...]:
        """The token before a scored position, and its own."""
        window, offset = divmod(position, self.shape[1])
        at = self._chunks.first_scored + 1 + offset
        return tuple(self._chunks.token_ids[window, at - 1 : at + 1].tolist())

    def _place(self, position: int, kld: float, seen: Candidates) -> Place:
        window, offset = divmod(position, self.shape[1])
        ids: list[int] = self._chunks.token_ids[window].tolist()
        at = self._chunks.first_scored + 1 + offset
        before = ids[max(0, at - PLACE_BEFORE) : at]
        rest = self._pieces(before, ids[at : at + 1 + PLACE_AFTER])
        span = range(position, position + 1)
        return Place(
            before=self._decode(before),
            token=rest[0],
            after="".join(rest[1:]),
            kld=rounded(kld),
            original=self._candidates(self._base_seen, span)[0],
            quantized=self._candidates(seen, span)[0],
        )

    def _candidates(self, seen: Candidates, span: range) -> tuple[tuple[Candidate, ...], ...]:
        ids, probabilities = seen.token_ids[span.start : span.stop], seen.probabilities[span.start : span.stop]
        return tuple(
            tuple(Candidate(self._name(token), rounded(p)) for token, p in zip(*row, strict=True))
            for row in zip(ids.tolist(), probabilities.tolist(), strict=True)
        )

    def _name(self, token_id: int) -> str:
        r"""A token on its own; bytes that are no characters as \x escapes."""
        if token_id >= len(self._tokenizer):
            return f"token {token_id}"
        return self._tokenizer.piece(token_id, skip_special=False).decode("utf-8", "backslashreplace")

    def _decode(self, ids: Sequence[int]) -> str:
        return "".join(self._pieces((), ids)).lstrip("\ufffd")

    def _pieces(self, before: Sequence[int], ids: Sequence[int]) -> list[str]:
        """Text that each of `ids` adds after `before`; a character of several tokens stands at its last one."""
        decoder = StreamDecoder(self._tokenizer, skip_special=False, continues=True)
        for token in before:
            decoder.feed(token)
        found = [decoder.feed(token) for token in ids]
        if found:
            found[-1] += decoder.finish()
        return found


def rounded(value: float) -> float:
    """Four significant digits; more would only make pages heavy."""
    return float(f"{value:.4g}")
