# SPDX-License-Identifier: Apache-2.0
"""Cosines, ranks, agreement and divergence, on numbers that can be checked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from lilliput.evaluation.divergence import Estimate
from lilliput.evaluation.sequences import Answers, Classes, Vectors, VectorScores, spearman
from lilliput.sequences import SequenceEvaluation, SequenceFile


def test_ranks_agree_whatever_the_scale_and_ties_share_theirs() -> None:
    values = np.array([0.1, 0.5, 0.3, 0.9])
    assert spearman(values, values**3) == pytest.approx(1.0)
    assert spearman(values, -values) == pytest.approx(-1.0)
    # Ranks 1.5 1.5 3 and 1 2 3: covariance 1.5, deviations sqrt(1.5) and sqrt(2).
    assert spearman(np.array([1.0, 1.0, 2.0]), np.array([1.0, 2.0, 3.0])) == pytest.approx(1.5 / np.sqrt(1.5 * 2.0))


def test_vectors_are_compared_by_angle_and_by_the_order_of_their_pairs() -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((12, 8)).astype(np.float32)
    scaled = Vectors(values).compared(Vectors(3.0 * values))
    assert scaled.cosine.value == pytest.approx(1.0)
    assert scaled.spearman == pytest.approx(1.0)
    turned = values.copy()
    turned[4] = -turned[4]
    found = Vectors(values).compared(Vectors(turned))
    assert found.lowest_cosine == pytest.approx(-1.0)
    assert found.cosine.value == pytest.approx(10 / 12)
    assert found.spearman < 1.0


def test_classes_agree_where_the_likeliest_is_the_same_and_labels_give_accuracy() -> None:
    base = Classes(np.log(np.array([[0.7, 0.3], [0.4, 0.6]], dtype=np.float32)), np.array([0.0, -1.0]))
    other = Classes(np.log(np.array([[0.2, 0.8], [0.4, 0.6]], dtype=np.float32)), np.array([0.0, -1.0]))
    found = base.compared(other)
    assert found.agreement == 0.5
    assert found.kld.value == pytest.approx((0.7 * np.log(0.7 / 0.2) + 0.3 * np.log(0.3 / 0.8)) / 2, rel=1e-6)
    assert found.accuracy == 0.0
    assert base.compared(base).accuracy == 1.0


def test_answers_are_exact_or_not_and_followed_token_by_token() -> None:
    logits = np.zeros((2, 4), dtype=np.float32)
    other = logits.copy()
    other[1, 0] = 1.0
    base = Answers(((1, 2, 3), (1, 3, 3)), (logits, logits), ((1, 2, 3), None))
    found = base.compared(Answers(((1, 2, 3), (1, 2, 3)), (logits, other), ((1, 2, 2), None)))
    assert found.exact == 0.5
    assert found.wanted == 1.0
    # One of four rows differs: ln((3 + e) / 4) - 1/4.
    assert found.kld.value == pytest.approx((np.log((3 + np.e) / 4) - 0.25) / 4, rel=1e-6)


def test_a_line_a_file_shows_errors_beside_their_means_and_says_where_texts_are_too_few() -> None:
    def text(count: int, error: float) -> str:
        file = SequenceFile("a.gguf", 1000, 8.5, VectorScores(Estimate(0.99, error), 0.98, float("nan")))
        return SequenceEvaluation("embedding", "base", count, (file,)).to_text()

    assert text(100, 0.001) == (
        "embedding, 100 texts, compared with base\n"
        "a.gguf: 1,000 bytes, 8.500 bits per weight; mean cosine 0.99 ± 0.001, lowest cosine 0.98"
    )
    assert text(3, 0.0).startswith("embedding, 3 texts; too few for a standard error, compared with base")
