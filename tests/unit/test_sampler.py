# SPDX-License-Identifier: Apache-2.0
"""Choosing the next token."""

from __future__ import annotations

import numpy as np
import pytest

from lilliput.errors import RuntimeModelError
from lilliput.runtime.sampler import (
    Sampler,
    SamplingOptions,
    above_min_p,
    likeliest,
    nucleus,
    penalized,
    probabilities,
)

LOGITS = np.log(np.array([0.1, 0.4, 0.05, 0.3, 0.15], dtype=np.float32))


def test_greedy_takes_the_largest_logit_and_the_lower_id_of_equals():
    assert Sampler(SamplingOptions()).choose(LOGITS) == 1
    assert Sampler(SamplingOptions()).choose(np.array([1.0, 2.0, 2.0], dtype=np.float32)) == 1


def test_draws_follow_the_softmax_of_logits_over_temperature():
    sampler = Sampler(SamplingOptions(temperature=0.7, seed=3))
    count = 20_000
    drawn = np.bincount([sampler.choose(LOGITS) for _ in range(count)], minlength=5)
    expected = probabilities(LOGITS, 0.7)
    weights = np.exp(LOGITS.astype(np.float64) / 0.7)
    np.testing.assert_allclose(expected, weights / weights.sum(), rtol=1e-12)
    # Five standard deviations of a binomial count.
    assert (np.abs(drawn - count * expected) < 5 * np.sqrt(count * expected * (1 - expected))).all()


def test_the_same_seed_gives_the_same_tokens_and_another_seed_others():
    def tokens(seed: int) -> list[int]:
        sampler = Sampler(SamplingOptions(temperature=1.0, seed=seed))
        return [sampler.choose(LOGITS) for _ in range(40)]

    assert tokens(7) == tokens(7)
    assert tokens(7) != tokens(8)


def test_a_twin_draws_what_the_sampler_will_and_leaves_it_alone():
    sampler, undisturbed = (Sampler(SamplingOptions(temperature=1.0, seed=4)) for _ in range(2))
    for _ in range(5):
        ahead = sampler.twin()
        drawn = [ahead.choose(LOGITS) for _ in range(3)]
        assert [undisturbed.twin().choose(LOGITS), undisturbed.choose(LOGITS)] == [drawn[0]] * 2
        assert sampler.choose(LOGITS) == drawn[0]


def test_near_distributions_mostly_draw_the_same_token():
    random = np.random.default_rng(0)
    logits = random.standard_normal(500).astype(np.float32)
    near = logits + random.standard_normal(500).astype(np.float32) * np.float32(0.1)
    first, second = probabilities(logits, 0.8), probabilities(near, 0.8)
    distance = np.abs(first - second).sum() / 2
    one, other = (Sampler(SamplingOptions(temperature=0.8, seed=9)) for _ in range(2))
    count = 2000
    same = np.mean([one.choose(logits) == other.choose(near) for _ in range(count)])
    # At least (1 - d) / (1 + d) for numbers shared by id (arXiv 2408.07978); five standard deviations below it.
    bound = (1 - distance) / (1 + distance)
    assert same >= bound - 5 * np.sqrt(bound * (1 - bound) / count)


def test_top_k_keeps_the_k_likeliest_and_settles_ties_by_id():
    assert likeliest(LOGITS, 2).ids.tolist() == [1, 3]
    assert likeliest(LOGITS, 0).ids.tolist() == [1, 3, 4, 0, 2]
    assert likeliest(LOGITS, 99).ids.tolist() == [1, 3, 4, 0, 2]
    assert likeliest(np.array([1.0, 3.0, 1.0, 1.0], dtype=np.float32), 2).ids.tolist() == [1, 0]


@pytest.mark.parametrize(("top_p", "kept"), [(0.0, 1), (0.39, 1), (0.41, 2), (0.71, 3), (0.999, 5), (1.0, 5)])
def test_top_p_keeps_the_fewest_that_reach_it(top_p, kept):
    assert nucleus(likeliest(LOGITS, 0), top_p).ids.size == kept


@pytest.mark.parametrize(("min_p", "kept"), [(0.0, 5), (0.12, 5), (0.2, 4), (0.3, 3), (0.7, 2), (1.0, 1)])
def test_min_p_keeps_what_is_likely_beside_the_likeliest(min_p, kept):
    assert above_min_p(likeliest(LOGITS, 0), min_p).ids.size == kept


def test_filters_act_one_after_the_other_as_in_llama_cpp():
    # top_k 3 keeps 0.4, 0.3, 0.15; of these 0.47 + 0.35 reach top_p 0.8; min_p 0.8 then leaves the first alone.
    options = SamplingOptions(temperature=1.0, top_k=3, top_p=0.8, seed=1)
    sampler = Sampler(options)
    assert {sampler.choose(LOGITS) for _ in range(300)} == {1, 3}
    sampler = Sampler(SamplingOptions(temperature=1.0, top_k=3, top_p=0.8, min_p=0.8, seed=1))
    assert {sampler.choose(LOGITS) for _ in range(100)} == {1}


def test_the_penalty_divides_positive_and_multiplies_negative_logits_once():
    logits = np.array([2.0, -2.0, 1.0], dtype=np.float32)
    assert penalized(logits, [0, 1, 1, 0], 2.0).tolist() == [1.0, -4.0, 1.0]
    assert logits.tolist() == [2.0, -2.0, 1.0]


def test_the_penalty_forgets_tokens_beyond_its_window():
    logits = np.array([2.0, 1.9, 0.0], dtype=np.float32)
    sampler = Sampler(SamplingOptions(repetition_penalty=1.5, repetition_window=2))
    assert sampler.choose(logits, [0, 2, 2]) == 0
    assert sampler.choose(logits, [2, 0, 2]) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_an_error(bad):
    with pytest.raises(RuntimeModelError, match="not finite"):
        Sampler(SamplingOptions(temperature=1.0)).choose(np.array([0.0, bad], dtype=np.float32))


def test_a_token_masked_with_minus_infinity_is_never_drawn():
    sampler = Sampler(SamplingOptions(temperature=5.0))
    logits = np.array([0.0, -np.inf, 0.0], dtype=np.float32)
    assert {sampler.choose(logits) for _ in range(200)} == {0, 2}


@pytest.mark.parametrize(
    "options",
    [{"temperature": -1.0}, {"top_k": -1}, {"top_p": 1.5}, {"min_p": -0.1}, {"repetition_penalty": 0.0}, {"seed": -1}],
)
def test_values_without_meaning_are_refused_by_name(options):
    with pytest.raises(RuntimeModelError, match=next(iter(options))):
        SamplingOptions(**options)


def test_what_is_not_filtered_is_not_sorted_and_draws_the_same():
    logits = np.random.default_rng(4).standard_normal(300).astype(np.float32)
    unfiltered = Sampler(SamplingOptions(temperature=0.7, seed=9))
    # As many candidates as tokens: the sorted way.
    sorted_ = Sampler(SamplingOptions(temperature=0.7, seed=9, top_p=0.999999999))
    assert [unfiltered.choose(logits) for _ in range(50)] == [sorted_.choose(logits) for _ in range(50)]
