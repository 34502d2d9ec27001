# SPDX-License-Identifier: Apache-2.0
"""What quantization costs models that do not predict the next token: measured by what they are for.

Sentence vectors: the cosine between each text's two vectors, and whether texts keep their order: Spearman's correlation
of the similarities of all pairs of texts, which is what a search by vectors ranks by.
Classes: how often the likeliest class stays, the KL divergence of the classes, and accuracy where labels are known.
Tags, spans, masked tokens: how often a text keeps all of its tags, its span, its tokens, how often each single one of
them stays, and the KL divergence at each of these places.
Answers: how often the greedy answer is the original's token for token, and the KL divergence of each next token along
the original's answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lilliput.arrays import DoubleArray, FloatArray
from lilliput.checkpoints.model_source import ModelSource
from lilliput.errors import EvaluationError
from lilliput.evaluation.divergence import Estimate, mean_estimate, predict, score
from lilliput.runtime.answers import AnswerOptions, answer
from lilliput.runtime.encoder_decoder import EncoderDecoderSession
from lilliput.runtime.encoder_session import EncoderSession
from lilliput.runtime.session import EngineOptions

Tokens = Sequence[int]


@dataclass(frozen=True, slots=True)
class VectorScores:
    """cosine: mean over texts.  lowest_cosine: of the worst text.  spearman: of all pairs' similarities."""

    cosine: Estimate
    lowest_cosine: float
    spearman: float


@dataclass(frozen=True, slots=True)
class ClassScores:
    """agreement: share of texts with the same likeliest class.  kld: nats.  accuracy: None without labels."""

    agreement: float
    kld: Estimate
    accuracy: float | None


@dataclass(frozen=True, slots=True)
class AnswerScores:
    """exact: share of texts whose greedy answer is the original's.  kld, same_top: per token of the original's answers.

    wanted: share of greedy answers that are those the texts came with; None where they came with none.
    """

    exact: float
    kld: Estimate
    same_top: float
    wanted: float | None


@dataclass(frozen=True, slots=True)
class PlaceScores:
    """exact: share of texts of which everything stays.  agreement: share of single choices.  kld: nats a choice.

    accuracy: share of masked tokens that were the text's own; None for other heads.
    """

    exact: float
    agreement: float
    kld: Estimate
    accuracy: float | None


Scores = VectorScores | ClassScores | AnswerScores | PlaceScores


@dataclass(frozen=True, slots=True)
class Sample:
    """One text in tokens, special ones included.  label: index of its class.  wanted: tokens of its answer.

    segments: of each token; None for one sentence.  masked: places whose tokens are masked, and what they were.
    """

    tokens: Tokens
    label: int | None = None
    wanted: Tokens | None = None
    segments: Tokens | None = None
    masked: tuple[tuple[int, int], ...] = ()


class Measured(Protocol):
    """What a model made of the samples, kept so that others can be compared with it."""

    def compared(self, other: Measured) -> Scores:
        """How far `other` is from this one."""


def measure(
    source: ModelSource, samples: Sequence[Sample], options: EngineOptions, base: Measured | None = None
) -> Measured:
    """Run a model on the samples. base: what the original made of them; answers are compared along its own.

    Raises EvaluationError for no samples, or a model that predicts the next token.
    """
    if not samples:
        raise EvaluationError("no texts to measure on; give a file with at least one line of text")
    match source.config.task:
        case "embedding":
            return Vectors.of(EncoderSession(source, options), samples)
        case "classification":
            return Classes.of(EncoderSession(source, options), samples)
        case "tagging" | "spans" | "masked_token":
            return Places.of(EncoderSession(source, options), samples)
        case "sequence_to_sequence":
            session = EncoderDecoderSession(source, options)
            return Answers.of(session, samples, base if isinstance(base, Answers) else None)
        case _:
            raise EvaluationError(f"{source.path.name}: predicts the next token; it is measured on running text")


@dataclass(frozen=True, slots=True)
class Vectors:
    """values: [texts, width]."""

    values: FloatArray

    @classmethod
    def of(cls, session: EncoderSession, samples: Sequence[Sample]) -> Vectors:
        """One vector a text."""
        return cls(session.embed_each([sample.tokens for sample in samples]))

    def compared(self, other: Measured) -> VectorScores:
        """Cosines and ranks."""
        assert isinstance(other, Vectors)
        a, b = _unit(self.values), _unit(other.values)
        cosines = np.einsum("ij,ij->i", a, b)
        pairs = np.triu_indices(len(a), 1)
        ranks = spearman((a @ a.T)[pairs], (b @ b.T)[pairs]) if len(a) > 2 else 1.0
        return VectorScores(mean_estimate(cosines), float(cosines.min()), ranks)


@dataclass(frozen=True, slots=True)
class Classes:
    """logits: [texts, labels].  labels: of the texts that have one, else -1."""

    logits: FloatArray
    labels: DoubleArray

    @classmethod
    def of(cls, session: EncoderSession, samples: Sequence[Sample]) -> Classes:
        """Logits of every text."""
        logits = session.classify_each([sample.tokens for sample in samples])
        known = [-1 if sample.label is None else sample.label for sample in samples]
        return cls(logits, np.asarray(known, dtype=np.float64))

    def compared(self, other: Measured) -> ClassScores:
        """Agreement and divergence."""
        assert isinstance(other, Classes)
        targets = np.zeros(len(self.logits), dtype=np.int32)
        scores = score(predict(self.logits, targets), predict(other.logits, targets))
        labelled = self.labels >= 0
        chosen = other.logits.argmax(axis=1)
        accuracy = float((chosen == self.labels)[labelled].mean()) if labelled.any() else None
        return ClassScores(float(scores.same_top.mean()), mean_estimate(scores.kld), accuracy)


@dataclass(frozen=True, slots=True)
class Answers:
    """tokens: the greedy answer to each text.  logits: after each token of the original's answers, [tokens, vocab].

    wanted: what each text came with.
    """

    tokens: tuple[tuple[int, ...], ...]
    logits: tuple[FloatArray, ...]
    wanted: tuple[Tokens | None, ...]

    @classmethod
    def of(cls, session: EncoderDecoderSession, samples: Sequence[Sample], base: Answers | None) -> Answers:
        """Answer every text, then follow the original's answers."""
        answers, logits = [], []
        for index, sample in enumerate(samples):
            found = answer(session, sample.tokens, AnswerOptions())
            answers.append(found.token_ids)
            followed = found.token_ids if base is None else base.tokens[index]
            session.truncate(0)
            logits.append(session.forward(followed[:-1] or followed, "all"))
        return cls(tuple(answers), tuple(logits), tuple(sample.wanted for sample in samples))

    def compared(self, other: Measured) -> AnswerScores:
        """Exact answers and divergence."""
        assert isinstance(other, Answers)
        exact = [a == b for a, b in zip(self.tokens, other.tokens, strict=True)]
        divergences, same = [], []
        for tokens, ours, theirs in zip(self.tokens, self.logits, other.logits, strict=True):
            targets = np.asarray(tokens[1:] or tokens, dtype=np.int32)
            scores = score(predict(ours, targets), predict(theirs, targets))
            divergences.append(scores.kld)
            same.append(scores.same_top)
        hits = [tuple(want) == found for want, found in zip(self.wanted, other.tokens, strict=True) if want is not None]
        return AnswerScores(
            float(np.mean(exact)),
            mean_estimate(np.concatenate(divergences)),
            float(np.concatenate(same).mean()),
            float(np.mean(hits)) if hits else None,
        )


@dataclass(frozen=True, slots=True)
class Places:
    """choices: logits of the choices in each text, [choices, options]; of a span two, each over the text's tokens.

    wanted: what was masked, where anything was.
    """

    choices: tuple[FloatArray, ...]
    wanted: tuple[Tokens, ...]

    @classmethod
    def of(cls, session: EncoderSession, samples: Sequence[Sample]) -> Places:
        """What the head says of every token, of every text's start and end, or of every mask."""
        found = []
        for sample in samples:
            logits = session.token_logits(sample.tokens, sample.segments)
            match session.traits.head:
                case "spans":
                    logits = np.ascontiguousarray(logits.T)
                case "masked":
                    logits = logits[[place for place, _ in sample.masked]]
            found.append(logits)
        return cls(tuple(found), tuple([token for _, token in sample.masked] for sample in samples))

    def compared(self, other: Measured) -> PlaceScores:
        """Choices that stay, and divergence."""
        assert isinstance(other, Places)
        same, divergences, hits = [], [], []
        for ours, theirs, wanted in zip(self.choices, other.choices, self.wanted, strict=True):
            targets = np.zeros(len(ours), dtype=np.int32)
            scores = score(predict(ours, targets), predict(theirs, targets))
            same.append(scores.same_top)
            divergences.append(scores.kld)
            hits.extend(theirs.argmax(axis=1)[: len(wanted)] == np.asarray(wanted, dtype=np.int64))
        return PlaceScores(
            float(np.mean([texts.all() for texts in same])),
            float(np.concatenate(same).mean()),
            mean_estimate(np.concatenate(divergences)),
            float(np.mean(hits)) if hits else None,
        )


def spearman(a: DoubleArray, b: DoubleArray) -> float:
    """Correlation of ranks; equal values share the mean of their ranks."""
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def _ranks(values: DoubleArray) -> DoubleArray:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: DoubleArray = (ends - (counts - 1) / 2.0)[places]
    return ranks


def _unit(values: FloatArray) -> DoubleArray:
    wide = values.astype(np.float64)
    result: DoubleArray = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
    return result
