# SPDX-License-Identifier: Apache-2.0
"""Answers of an encoder-decoder: greedy or by beam search, the same tokens as transformers' `generate`.

Beam search keeps the `beams` likeliest unfinished answers and the `beams` best finished ones, and ends when no
unfinished one can become better. Scores are sums of log-probabilities over length ** length_penalty.
Source of the details: transformers, generation/utils.py (`_beam_search`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lilliput.arrays import Array, DoubleArray, FloatArray
from lilliput.errors import RuntimeModelError
from lilliput.runtime.encoder_decoder import EncoderDecoderSession

# True: end with as many finished answers as beams.  False: when the best unfinished one, scored at its present length,
# is worse than the worst finished one.  "never": the same, but scored at the length that would favour it most.
EarlyStopping = bool | Literal["never"]
_IMPOSSIBLE = -1e9


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """How to answer. The defaults are greedy.

    max_length: tokens of an answer, its start token included; None means the session's context.
    length_penalty: above 0 favours long answers.  no_repeat_ngram: no run of so many tokens comes twice; 0 off.
    """

    beams: int = 1
    max_length: int | None = None
    min_length: int = 0
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = False
    no_repeat_ngram: int = 0

    def __post_init__(self) -> None:
        """Raise RuntimeModelError for values without meaning."""
        for is_valid, claim in (
            (self.beams >= 1, f"beams are {self.beams}, must be at least 1"),
            (self.max_length is None or self.max_length >= 2, f"max length is {self.max_length}, must be at least 2"),
            (self.no_repeat_ngram >= 0, f"no-repeat n-gram is {self.no_repeat_ngram}, must be 0 (off) or more"),
        ):
            if not is_valid:
                raise RuntimeModelError(claim)


@dataclass(frozen=True, slots=True)
class Answer:
    """token_ids: start and end token included.  score: of the whole, None for a greedy one."""

    token_ids: tuple[int, ...]
    score: float | None = None


def answer(session: EncoderDecoderSession, token_ids: Sequence[int], options: AnswerOptions | None = None) -> Answer:
    """Encode a text and answer it. Raises RuntimeModelError, also where the session follows fewer beams."""
    options = options or AnswerOptions()
    if options.beams > session.beams:
        raise RuntimeModelError(f"{options.beams} beams, but the session follows at most {session.beams}")
    session.encode(token_ids)
    max_length = min(options.max_length or session.context, session.context)
    if options.beams == 1:
        return _greedy(session, options, max_length)
    return _BeamSearch(session, options, max_length).run()


def _greedy(session: EncoderDecoderSession, options: AnswerOptions, max_length: int) -> Answer:
    tokens = [session.traits.start_token_id]
    while len(tokens) < max_length:
        logits = session.forward(tokens[-1:])[0]
        tokens.append(int(np.argmax(_allowed(session, options, tokens, logits, max_length))))
        if tokens[-1] in session.traits.end_token_ids:
            break
    return Answer(tuple(tokens))


@dataclass(frozen=True, slots=True)
class _Beam:
    """tokens: so far.  score: sum of log-probabilities; of a finished one divided by the length penalty.

    source: the running beam that it continues.
    """

    tokens: tuple[int, ...]
    score: float
    source: int = 0


class _BeamSearch:
    """One search; the session's answers 0..beams-1 are the running beams."""

    def __init__(self, session: EncoderDecoderSession, options: AnswerOptions, max_length: int) -> None:
        self._session = session
        self._options = options
        self._max_length = max_length
        self._ends = frozenset(session.traits.end_token_ids)
        start = (session.traits.start_token_id,)
        # All start from the same token, so that all but the first are ruled out until they differ.
        self._running = [_Beam(start, 0.0 if index == 0 else _IMPOSSIBLE) for index in range(options.beams)]
        self._finished: list[_Beam] = []

    def run(self) -> Answer:
        """The best answer."""
        length = 1
        while length < self._max_length:
            candidates = self._continuations()
            is_last = length + 1 == self._max_length
            ends = [is_last or beam.tokens[-1] in self._ends for beam in candidates]
            self._finish(candidates, ends, length)
            if all(ends):
                break
            open_beams = [beam for beam, has_ended in zip(candidates, ends, strict=True) if not has_ended]
            self._running = open_beams[: self._options.beams]
            self._session.reorder([beam.source for beam in self._running])
            length += 1
            if not self._can_improve(length):
                break
        best = max(self._finished, key=lambda beam: beam.score, default=self._running[0])
        return Answer(best.tokens, best.score)

    def _continuations(self) -> list[_Beam]:
        """The likeliest continuations of all running beams, best first: enough that as many as beams stay open."""
        logits = self._session.step([beam.tokens[-1] for beam in self._running])
        scores = np.concatenate(
            [
                _allowed(self._session, self._options, beam.tokens, log_softmax(row), self._max_length) + beam.score
                for beam, row in zip(self._running, logits, strict=True)
            ]
        )
        count = min(max(2, 1 + len(self._ends)) * self._options.beams, scores.size)
        order = np.argsort(-scores, kind="stable")[:count]
        vocab_size = logits.shape[1]
        return [
            _Beam((*self._running[index // vocab_size].tokens, int(index % vocab_size)), float(scores[index]), source)
            for index in order
            for source in (int(index // vocab_size),)
        ]

    def _finish(self, candidates: list[_Beam], ends: list[bool], length: int) -> None:
        """Take the candidates that have ended, if they are among the best, into the list of finished ones."""
        if self._options.early_stopping is True and len(self._finished) == self._options.beams:
            return
        # The start token does not count.
        penalty = length**self._options.length_penalty
        best = zip(candidates[: self._options.beams], ends, strict=False)
        done = [_Beam(beam.tokens, beam.score / penalty) for beam, has_ended in best if has_ended]
        merged = sorted([*self._finished, *done], key=lambda beam: -beam.score)
        self._finished = merged[: self._options.beams]

    def _can_improve(self, length: int) -> bool:
        options = self._options
        if len(self._finished) < options.beams:
            return True
        if options.early_stopping is True:
            return False
        favourable = self._max_length - 1 if options.early_stopping == "never" and options.length_penalty > 0 else None
        reached = (favourable or length - 1) ** options.length_penalty
        return bool(self._running[0].score / reached > self._finished[-1].score)


def _allowed(
    session: EncoderDecoderSession, options: AnswerOptions, tokens: Sequence[int], scores: Array, max_length: int
) -> Array:
    """Scores [vocab_size] with what must not follow at minus infinity, or one forced token alone."""
    traits = session.traits
    forced = None
    if len(tokens) == 1:
        forced = traits.forced_first_token_id
    if len(tokens) == max_length - 1 and traits.forced_last_token_id is not None:
        forced = traits.forced_last_token_id
    if forced is not None:
        only = np.full_like(scores, -np.inf)
        only[forced] = 0.0
        return only
    banned = {*traits.banned_token_ids, *_repeating(tokens, options.no_repeat_ngram)}
    if len(tokens) < options.min_length:
        banned |= set(traits.end_token_ids)
    if not banned:
        return scores
    result = scores.copy()
    result[list(banned)] = -np.inf
    return result


def _repeating(tokens: Sequence[int], size: int) -> set[int]:
    """Tokens that would end a run of `size` tokens that has come before."""
    if size < 1 or len(tokens) + 1 < size:
        return set()
    last = tuple(tokens[len(tokens) - size + 1 :])
    starts = range(len(tokens) - size + 1)
    return {tokens[start + size - 1] for start in starts if tuple(tokens[start : start + size - 1]) == last}


def log_softmax(logits: FloatArray) -> DoubleArray:
    """Log-probabilities [vocab_size] float64. Raises RuntimeModelError for logits that are not finite."""
    largest = float(logits.max())
    if not np.isfinite(largest):
        raise RuntimeModelError("the model's logits are not finite: its weights are damaged or overflow F16")
    shifted = logits.astype(np.float64) - largest
    result: DoubleArray = shifted - np.log(np.exp(shifted).sum())
    return result
