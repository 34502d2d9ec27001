# SPDX-License-Identifier: Apache-2.0
"""Guesses from the text so far, and generation that verifies them, on a stand-in for the engine."""

from __future__ import annotations

import numpy as np
import pytest

from lilliput.errors import RuntimeModelError
from lilliput.runtime.generate import FinishReason, Generation
from lilliput.runtime.prompt_lookup import PromptLookup
from lilliput.runtime.sampler import Sampler, SamplingOptions

PERIOD = 7
# Longer than any text here: nothing repeats itself, and a draft has to guess.
LONG_PERIOD = 150


class CyclingSession:
    """After position p come noisy logits that depend on p and the token alone, and mostly favour a cycle."""

    def __init__(self, context: int = 200, seed: int = 0, period: int = PERIOD) -> None:
        self.period = period
        self.vocab_size = period + 3
        self.context = context
        self.seed = seed
        self.token_ids: tuple[int, ...] = ()
        self.passes: list[int] = []

    @property
    def length(self) -> int:
        return len(self.token_ids)

    def truncate(self, length: int) -> None:
        assert length <= self.length
        self.token_ids = self.token_ids[:length]

    def forward(self, token_ids, output="last", *, progress=None):
        start = self.length
        self.token_ids += tuple(token_ids)
        assert self.length <= self.context
        self.passes.append(len(token_ids))
        rows = [self.logits(start + index, token) for index, token in enumerate(token_ids)]
        return np.stack(rows if output == "all" else rows[-1:])

    def logits(self, position: int, token: int):
        noise = (
            np.random.default_rng([position, token, *[self.seed] * bool(self.seed)])
            .standard_normal(self.period + 3)
            .astype(np.float32)
        )
        noise[(token + 1) % self.period] += np.float32(3.0)
        return noise


def generated(guesses: int, sampling: SamplingOptions, *, period: int = PERIOD, **options):
    session = CyclingSession(period=period)
    generation = Generation(session, list(range(PERIOD)) * 2, sampling, max_tokens=80, guesses=guesses, **options)
    return list(generation), generation, session


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("guesses", [1, 3, 10])
def test_guesses_change_no_token(guesses: int, temperature: float):
    sampling = SamplingOptions(temperature=temperature, seed=5)
    expected, plain, held = generated(0, sampling)
    tokens, generation, session = generated(guesses, sampling)
    assert tokens == expected
    assert session.token_ids == held.token_ids
    assert generation.timings.decoded == plain.timings.decoded == 79
    assert generation.timings.passes < plain.timings.passes == 79


def test_a_stop_token_among_true_guesses_ends_it_and_leaves_the_cache():
    sampling = SamplingOptions()
    expected, _, held = generated(0, sampling, stop_ids=frozenset({5}))
    tokens, generation, session = generated(4, sampling, stop_ids=frozenset({5}))
    assert tokens == expected
    assert session.token_ids == held.token_ids
    assert generation.finish_reason is FinishReason.STOP


def test_guesses_never_run_past_the_context_or_the_limit():
    session = CyclingSession(context=20)
    generation = Generation(session, list(range(PERIOD)) * 2, SamplingOptions(), max_tokens=80, guesses=8)
    assert len(list(generation)) == 7
    assert generation.finish_reason is FinishReason.CONTEXT
    assert session.length == 20
    session = CyclingSession()
    list(Generation(session, list(range(PERIOD)) * 2, SamplingOptions(), max_tokens=3, guesses=8))
    assert session.length == 2 * PERIOD + 2


def test_the_latest_place_of_the_longest_match_is_continued():
    lookup = PromptLookup([1, 2, 3, 9, 1, 2, 4, 8, 1, 2])
    assert lookup.guess(2) in ([4], [4, 8])
    lookup.append(3)
    assert lookup.guess(3) in ([9], [9, 1], [9, 1, 2])
    lookup.append(7)
    assert lookup.guess(3) == []
    assert PromptLookup([1, 2, 1, 2]).guess(0) == []
    assert PromptLookup([5]).guess(3) == []


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_draft_changes_no_token_and_saves_passes(temperature: float, seed: int):
    sampling = SamplingOptions(temperature=temperature, seed=5)
    expected, plain, held = generated(0, sampling)
    tokens, generation, session = generated(6, sampling, draft=CyclingSession(seed=seed))
    assert tokens == expected
    assert session.token_ids == held.token_ids
    assert generation.timings.decoded == plain.timings.decoded
    assert generation.timings.passes < plain.timings.passes


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_draft_that_is_the_model_is_always_right_and_guesses_further(temperature: float):
    # Sampled or not: it draws with the numbers that the sampler will use.
    sampling = SamplingOptions(temperature=temperature, seed=3)
    draft = CyclingSession(period=LONG_PERIOD)
    tokens, generation, session = generated(40, sampling, draft=draft, period=LONG_PERIOD)
    assert tokens == generated(0, sampling, period=LONG_PERIOD)[0]
    # The prompt, then all guesses beside a token that is known, until 79 tokens have run.
    assert sum(session.passes[1:]) == 79
    assert session.passes[1] < session.passes[4]
    assert generation.timings.passes <= 12


def test_a_draft_that_is_always_wrong_is_soon_asked_no_more():
    draft = CyclingSession(period=LONG_PERIOD)
    draft.logits = lambda position, token: np.eye(1, LONG_PERIOD + 3, LONG_PERIOD + 2, dtype=np.float32)[0]
    tokens, _, session = generated(8, SamplingOptions(temperature=0.0), draft=draft, period=LONG_PERIOD)
    assert tokens == generated(0, SamplingOptions(temperature=0.0), period=LONG_PERIOD)[0]
    assert session.passes[1] > 2
    assert len(session.passes) > 70
    assert len(draft.passes) < len(session.passes) / 4


def test_where_the_text_repeats_itself_a_wrong_draft_does_not_stand_in_the_way():
    draft = CyclingSession()
    draft.logits = lambda position, token: np.eye(1, PERIOD + 3, PERIOD + 2, dtype=np.float32)[0]
    sampling = SamplingOptions()
    tokens, generation, _ = generated(8, sampling, draft=draft)
    _, alone, _ = generated(8, sampling)
    assert tokens == generated(0, sampling)[0]
    assert generation.timings.passes <= alone.timings.passes + 2


def test_a_copy_is_noticed_while_nothing_is_guessed():
    lookup = PromptLookup([*range(100, 140)])
    for token in [*range(50), *range(100, 104)]:
        assert lookup.guess(0) == []
        lookup.append(token)
    assert lookup.promise(0) == 1.0
    few = len(lookup.guess(15))
    for token in range(104, 124):
        lookup.append(token)
        lookup.guess(0)
    assert len(lookup.guess(15)) >= few
    assert lookup.guess(15) == list(range(124, 139))
    assert lookup.promise(15) > 3.0


def test_what_chooses_may_be_the_callers_own():
    class Dictated(Sampler):
        def choose(self, logits, previous=()):
            return len(previous) % 5

    session = CyclingSession()
    assert list(Generation(session, [0, 1], Dictated(SamplingOptions()), max_tokens=6, guesses=3)) == [2, 3, 4, 0, 1, 2]


def test_a_draft_of_another_vocabulary_is_refused():
    draft = CyclingSession()
    draft.vocab_size = 5
    with pytest.raises(RuntimeModelError, match="5 tokens"):
        generated(4, SamplingOptions(), draft=draft)
