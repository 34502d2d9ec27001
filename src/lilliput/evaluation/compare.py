# SPDX-License-Identifier: Apache-2.0
"""Any number of files against their original, on the same tokens, side by side.

Each window goes through the original and every file in step, a block of positions at a time, so that memory holds one
block of logits of each model, however long the window or large the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Protocol

import numpy as np

from lilliput.arrays import DoubleArray, FloatArray, IntArray
from lilliput.errors import EvaluationError
from lilliput.evaluation.chunks import Chunks
from lilliput.evaluation.divergence import (
    Divergence,
    Estimate,
    Prediction,
    TokenScores,
    join,
    perplexity,
    predict,
    rows_per_block,
    score,
    summarize,
)
from lilliput.evaluation.paired import PairedRatio, paired_ratio
from lilliput.evaluation.text_report import JsonReport, as_json, as_text

# Float32 logits that each model gives in one step, 32 MiB: enough positions for the engine's matmuls to be efficient.
FORWARD_NUMBERS = 1 << 23


class LogitsSource(Protocol):
    """A model that can be asked for logits, window by window.

    name: how the report calls it (its path as given).  bytes: of its files.  bits_per_weight: tensors only.
    """

    name: str
    bytes: int
    bits_per_weight: float
    vocab_size: int

    def start(self) -> None:
        """Forget all tokens: a new window begins."""

    def advance(self, token_ids: IntArray, *, outputs: int) -> FloatArray:
        """Feed the next tokens of the window; logits after the last `outputs` of them, float32 [outputs, vocab]."""


@dataclass(frozen=True, slots=True)
class Floor:
    """One of the models again, in the engine's other arithmetic.

    of: its place among the files, or None for the base.
    """

    source: LogitsSource
    of: int | None = None


@dataclass(frozen=True, slots=True)
class FileResult:
    """One file's measurement.

    scores: position by position, in order of the text.
    """

    name: str
    bytes: int
    bits_per_weight: float
    divergence: Divergence
    scores: TokenScores


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """Everything that was measured in one run.

    files: in the order given.  paired: all pairs, a before b.
    base_nll: of the base at every scored position, float64 [scored].
    floor: one of the models in the engine's other arithmetic against itself: what the engine alone adds, so that a
    smaller divergence says nothing about a file; None if not measured.
    """

    base_name: str
    base_ppl: Estimate
    context: int
    chunks: int
    files: tuple[FileResult, ...]
    paired: tuple[PairedRatio, ...]
    base_nll: DoubleArray
    floor: FileResult | None = None

    def to_json(self) -> JsonReport:
        """The object of `lilliput eval --json`."""
        return as_json(self)

    def to_text(self) -> str:
        """llama-perplexity's blocks, then a table, the pairs and the floor."""
        return as_text(self)


def evaluate(
    base: LogitsSource,
    files: Sequence[LogitsSource],
    chunks: Chunks,
    *,
    floor: Floor | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> EvaluationResult:
    """Measure every file against `base`.

    floor: measure what the engine's arithmetic adds, too.
    progress: called after every window with windows done and windows in all.
    Raises EvaluationError for vocabularies of different size and for logits that are not finite.
    """
    others = [*files, *([floor.source] if floor is not None else [])]
    # What each is compared with, counting the base as 0.
    references = [0] * len(files) + ([0 if floor.of is None else floor.of + 1] if floor is not None else [])
    _check_vocabularies(base, others, chunks)
    base_nll: list[DoubleArray] = []
    parts: list[list[TokenScores]] = [[] for _ in others]
    for index in range(len(chunks)):
        for predictions in _predict_window((base, *others), chunks, index):
            base_nll.append(predictions[0].nll)
            for kept, reference, prediction in zip(parts, references, predictions[1:], strict=True):
                kept.append(score(predictions[reference], prediction))
        if progress is not None:
            progress(index + 1, len(chunks))
    scores = [join(kept) for kept in parts]
    nll = [np.concatenate(base_nll), *(found.nll for found in scores)]
    results = tuple(
        FileResult(source.name, source.bytes, source.bits_per_weight, summarize(nll[reference], found), found)
        for source, reference, found in zip(others, references, scores, strict=True)
    )
    measured = results[: len(files)]
    return EvaluationResult(
        base_name=base.name,
        base_ppl=perplexity(nll[0]),
        context=chunks.context,
        chunks=len(chunks),
        files=measured,
        paired=tuple(_pair(a, b, len(chunks), seed) for a, b in combinations(measured, 2)),
        base_nll=nll[0],
        floor=results[-1] if floor is not None else None,
    )


def _check_vocabularies(base: LogitsSource, others: Sequence[LogitsSource], chunks: Chunks) -> None:
    for other in others:
        if other.vocab_size != base.vocab_size:
            raise EvaluationError(
                f"{other.name}: vocabulary of {other.vocab_size} tokens, {base.name} has {base.vocab_size}; "
                "only files made from the same model can be compared"
            )
    largest = int(chunks.token_ids.max())
    if largest >= base.vocab_size:
        raise EvaluationError(
            f"{base.name}: token {largest} of the text is outside the vocabulary of {base.vocab_size}"
        )


def _predict_window(sources: Sequence[LogitsSource], chunks: Chunks, index: int) -> Iterator[list[Prediction]]:
    """Blocks of positions of one window: the predictions of every model."""
    window, targets, first = chunks.token_ids[index], chunks.targets(index), chunks.first_scored
    for source in sources:
        source.start()
        source.advance(window[:first], outputs=0)
    vocab_size = sources[0].vocab_size
    forward_rows, step = max(1, FORWARD_NUMBERS // vocab_size), rows_per_block(vocab_size)
    for begin in range(0, chunks.scored_per_chunk, forward_rows):
        end = min(begin + forward_rows, chunks.scored_per_chunk)
        fed = window[first + begin : first + end]
        logits = [source.advance(fed, outputs=len(fed)) for source in sources]
        for low in range(0, len(fed), step):
            wanted = targets[begin + low : min(begin + low + step, end)]
            rows = slice(low, low + len(wanted))
            yield [_predict(source, part[rows], wanted, index) for source, part in zip(sources, logits, strict=True)]


def _predict(source: LogitsSource, logits: FloatArray, targets: IntArray, index: int) -> Prediction:
    try:
        return predict(logits, targets)
    except EvaluationError as error:
        raise EvaluationError(f"{source.name}: chunk {index + 1}: {error}; the file is damaged or overflows") from error


def _pair(a: FileResult, b: FileResult, chunks: int, seed: int) -> PairedRatio:
    kld_a, kld_b = a.scores.kld.reshape(chunks, -1), b.scores.kld.reshape(chunks, -1)
    return paired_ratio(a.name, b.name, kld_a, kld_b, seed=seed)
