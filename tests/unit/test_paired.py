# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest

from lilliput.evaluation.paired import expanded_tail, paired_ratio, student_t_quantile


def test_the_same_seed_gives_the_same_interval() -> None:
    kld = np.random.default_rng(0).gamma(0.2, 0.1, (3, 20, 30))
    first = paired_ratio("a", "b", kld[0], kld[1])
    assert first == paired_ratio("a", "b", kld[0], kld[1])
    assert first != paired_ratio("a", "b", kld[0], kld[1], seed=1)


def test_a_clear_difference_is_told_in_both_directions() -> None:
    shared = np.random.default_rng(0).gamma(0.2, 0.1, (20, 30))
    other = shared * np.random.default_rng(1).uniform(1.1, 1.5, shared.shape)
    result = paired_ratio("a", "b", shared, other)
    assert result.high < 1.0
    assert result.verdict == "a is closer to the original than b"
    assert paired_ratio("b", "a", other, shared).verdict == "a is closer to the original than b"


def test_no_difference_is_said_when_there_is_none() -> None:
    kld = np.random.default_rng(3).gamma(0.2, 0.1, (2, 40, 30))
    result = paired_ratio("a", "b", kld[0], kld[1])
    assert result.low < 1.0 < result.high
    assert result.verdict == "no difference"


def test_identical_files_have_ratio_one_even_without_divergence() -> None:
    zeros = np.zeros((2, 5))
    result = paired_ratio("a", "b", zeros, zeros)
    assert (result.kld_ratio, result.low, result.high, result.verdict) == (1.0, 1.0, 1.0, "no difference")


def test_few_chunks_are_said_to_be_too_few() -> None:
    kld = np.random.default_rng(3).gamma(0.2, 0.1, (2, 4, 30))
    result = paired_ratio("a", "b", kld[0], kld[1])
    assert math.isnan(result.low)
    assert "too few chunks to tell (4" in result.verdict


def test_a_file_without_divergence_beats_one_with() -> None:
    kld = np.random.default_rng(3).gamma(0.2, 0.1, (20, 30))
    result = paired_ratio("a", "b", np.zeros_like(kld), kld)
    assert result.kld_ratio == 0.0
    assert result.verdict == "a is closer to the original than b"


# Two-sided 95 % quantiles from the standard table.
@pytest.mark.parametrize(("degrees", "expected"), [(4, 2.7764), (5, 2.5706), (10, 2.2281), (30, 2.0423), (200, 1.9719)])
def test_student_t_quantiles_equal_the_table(degrees: int, expected: float) -> None:
    assert student_t_quantile(0.975, degrees) == pytest.approx(expected, rel=5e-3)


def test_the_tail_narrows_to_the_nominal_one_with_many_chunks() -> None:
    assert expanded_tail(5) < expanded_tail(20) < expanded_tail(10_000) == pytest.approx(0.025, abs=1e-4)


@pytest.mark.parametrize(("chunks", "runs"), [(8, 300), (20, 150)])
def test_the_interval_covers_the_true_ratio_as_often_as_it_says(chunks: int, runs: int) -> None:
    generator = np.random.default_rng(11)
    covered = 0
    for _ in range(runs):
        # Correlated tokens inside a chunk, and files correlated with each other, as in real runs; true ratio 0.9.
        level = generator.gamma(4.0, 0.25, (chunks, 1))
        shared = generator.gamma(0.5, 1.0, (chunks, 8)) * level
        a = 0.9 * shared * generator.gamma(4.0, 0.25, shared.shape)
        b = shared * generator.gamma(4.0, 0.25, shared.shape)
        result = paired_ratio("a", "b", a, b)
        covered += result.low <= 0.9 <= result.high
    # 95 % within 3 standard errors of a binomial count.
    assert abs(covered / runs - 0.95) < 3.0 * math.sqrt(0.95 * 0.05 / runs)


def test_a_file_without_divergence_gives_no_invented_bounds() -> None:
    lossy, exact = np.full((10, 5), 1e-6), np.zeros((10, 5))
    found = paired_ratio("lossy", "exact", lossy, exact)
    assert (found.low, found.kld_ratio, found.high) == (np.inf, np.inf, np.inf)
    assert found.verdict == "exact is closer to the original than lossy"
    assert paired_ratio("exact", "lossy", exact, lossy).high == 0.0
