# SPDX-License-Identifier: Apache-2.0
"""Streaming generation, on a stand-in session that predicts the next integer."""

from __future__ import annotations

import numpy as np
import pytest

from lilliput.errors import RuntimeModelError
from lilliput.runtime.generate import FinishReason, Generation
from lilliput.runtime.prompt_lookup import shared_prefix
from lilliput.runtime.sampler import SamplingOptions

GREEDY = SamplingOptions()


class CountingSession:
    """After token t the likeliest is t + 1, then t + 2; keeps what it was asked to run."""

    def __init__(self, context: int = 100) -> None:
        self.context = context
        self.token_ids: tuple[int, ...] = ()
        self.passes: list[list[int]] = []

    @property
    def length(self) -> int:
        return len(self.token_ids)

    def truncate(self, length: int) -> None:
        self.token_ids = self.token_ids[:length]

    def forward(self, token_ids, output="last", *, progress=None):
        assert output == "last"
        self.passes.append(list(token_ids))
        self.token_ids += tuple(token_ids)
        assert self.length <= self.context
        logits = np.zeros((1, 64), dtype=np.float32)
        logits[0, token_ids[-1] + 1] = 1.0
        logits[0, token_ids[-1] + 2] = 0.5
        return logits


def test_tokens_stream_until_the_limit_and_the_last_one_is_not_run():
    session = CountingSession()
    generation = Generation(session, [5, 6], GREEDY, max_tokens=3)
    assert list(generation) == [7, 8, 9]
    assert session.passes == [[5, 6], [7], [8]]
    assert generation.finish_reason is FinishReason.LENGTH
    timings = generation.timings
    assert (timings.prompt_tokens, timings.prefilled, timings.decoded) == (2, 2, 2)
    assert timings.prefill_tok_s > 0
    assert timings.decode_tok_s > 0


def test_a_stop_token_ends_it_and_is_not_returned():
    generation = Generation(CountingSession(), [5], GREEDY, max_tokens=10, stop_ids=frozenset({8, 20}))
    assert list(generation) == [6, 7]
    assert generation.finish_reason is FinishReason.STOP


def test_a_full_context_ends_it():
    generation = Generation(CountingSession(context=4), [5, 6], GREEDY, max_tokens=10)
    assert list(generation) == [7, 8, 9]
    assert generation.finish_reason is FinishReason.CONTEXT


def test_what_the_session_holds_of_the_prompt_is_not_run_again():
    session = CountingSession()
    list(Generation(session, [1, 2, 3], GREEDY, max_tokens=2))
    assert session.token_ids == (1, 2, 3, 4)
    session.passes.clear()
    assert list(Generation(session, [1, 2, 3, 9], GREEDY, max_tokens=1)) == [10]
    assert session.passes == [[9]]
    session.passes.clear()
    assert list(Generation(session, [1, 2], GREEDY, max_tokens=1)) == [3]
    assert session.passes == [[2]]


def test_no_tokens_wanted_runs_nothing():
    session = CountingSession()
    generation = Generation(session, [5], GREEDY, max_tokens=0)
    assert list(generation) == []
    assert session.passes == []
    assert generation.timings.prefill_tok_s is None
    assert generation.timings.decode_tok_s is None


def test_an_empty_prompt_and_one_longer_than_the_context_are_refused():
    with pytest.raises(RuntimeModelError, match="prompt is empty"):
        Generation(CountingSession(), [], GREEDY, max_tokens=1)
    with pytest.raises(RuntimeModelError, match="5 tokens, more than the context of 4"):
        Generation(CountingSession(context=4), [1] * 5, GREEDY, max_tokens=1)


def test_a_generation_runs_once():
    generation = Generation(CountingSession(), [5], GREEDY, max_tokens=1)
    list(generation)
    with pytest.raises(RuntimeModelError, match="has ended"):
        list(generation)


def test_the_penalty_sees_the_prompt():
    generation = Generation(CountingSession(), [7, 9, 6], SamplingOptions(repetition_penalty=4.0), max_tokens=3)
    assert list(generation) == [8, 10, 11]


@pytest.mark.parametrize(("held", "wanted", "shared"), [((), (1,), 0), ((1, 2), (1, 2, 3), 2), ((1, 2, 3), (1, 9), 1)])
def test_the_shared_prefix_is_what_both_begin_with(held, wanted, shared):
    assert shared_prefix(held, wanted) == shared
