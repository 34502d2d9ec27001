# SPDX-License-Identifier: Apache-2.0
"""What is computed for a report: best tokens, intervals over windows, errors and levels of stored weights."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from report_records import measured, quantized_file
from test_evaluation import TableModel, some_chunks

from lilliput.evaluation.compare import evaluate
from lilliput.evaluation.top_tokens import CANDIDATES, TopTokens, best_tokens, divergence_along, most_probable_text
from lilliput.evaluation.verdict import LAST_SAFE_LEVEL, verdict
from lilliput.evaluation.weight_views import group_levels, groups_of_columns, picture, relative_error, sampled_rows
from lilliput.evaluation.window_intervals import exponential, mean_interval
from lilliput.formats import FORMATS, NumberFormat
from lilliput.formats.number_format import Encoded
from lilliput.records import QuantizedTensor
from lilliput.reporting import headline
from lilliput.reports.records import Interval

SCALED = [item for item in FORMATS.values() if item.can_encode and item.bits_per_weight < 12]


def stored(number_format: NumberFormat, weight: np.ndarray) -> QuantizedTensor:
    """Rounded to nearest with the widest scales: every code is used, and no search takes time."""
    if not number_format.scopes:
        return QuantizedTensor("blk.0.attn_q.weight", weight.shape, number_format, {})
    parameters = number_format.widest_parameters(weight)
    planes = number_format.pack(Encoded(number_format.nearest_codes(weight, parameters), parameters))
    return QuantizedTensor("blk.0.attn_q.weight", weight.shape, number_format, planes)


def plain(weight: np.ndarray) -> QuantizedTensor:
    return QuantizedTensor("blk.0.attn_q.weight", weight.shape, FORMATS["f32"], {"blocks": weight.view(np.uint8)})


def few_weights(number_format: NumberFormat) -> np.ndarray:
    return weights(max(4, number_format.row_step or 4), 256)


def weights(rows: int = 128, columns: int = 512) -> np.ndarray:
    return np.random.default_rng(7).normal(0.0, 0.1, (rows, columns)).astype(np.float32)


def test_the_first_sentence_names_the_smallest_safe_file_and_the_nearest_of_equal_size() -> None:
    asked = [(9_000, 0.0001, 0), (6_000, 0.0069, 1), (6_010, 0.0032, 1), (4_000, 0.3, 4)]
    files = [replace(quantized_file(), bytes=size, measured=measured(kld, level)) for size, kld, level in asked]
    assert headline(files) == 2
    assert headline(files[:2]) == 1
    assert headline(files[3:]) == 0


def test_best_tokens_are_the_most_probable_ones_in_order() -> None:
    logits = np.random.default_rng(0).standard_normal((9, 40)).astype(np.float32)
    found = best_tokens(logits)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert np.array_equal(found.token_ids, np.argsort(-logits, axis=1)[:, :CANDIDATES])
    assert np.allclose(found.probabilities, -np.sort(-probabilities, axis=1)[:, :CANDIDATES], rtol=1e-5)
    assert best_tokens(np.zeros((1, 3), np.float32)).token_ids.tolist() == [[0, 1, 2]]


def test_watched_models_measure_the_same_and_remember_every_scored_position() -> None:
    chunks = some_chunks()
    base, file = TopTokens(TableModel("base", 0.0)), TopTokens(TableModel("file", 0.3, seed=1))
    found = evaluate(base, [file], chunks)
    plain_result = evaluate(TableModel("base", 0.0), [TableModel("file", 0.3, seed=1)], chunks)
    assert np.array_equal(found.files[0].scores.kld, plain_result.files[0].scores.kld)
    assert len(base.seen.token_ids) == len(file.seen.token_ids) == chunks.scored
    same = base.seen.token_ids[:, 0] == file.seen.token_ids[:, 0]
    assert np.array_equal(same, found.files[0].scores.same_top)


def test_divergence_along_a_text_is_that_of_the_evaluation() -> None:
    chunks = some_chunks(1)
    base, file = TableModel("base", 0.0), TableModel("file", 0.3, seed=1)
    kld = evaluate(base, [file], chunks).files[0].scores.kld
    along = divergence_along(base, file, chunks.token_ids[0].tolist(), chunks.first_scored + 1)
    assert np.allclose(along, kld, rtol=1e-12)
    assert divergence_along(base, file, [1, 2], 2).size == 0


def test_the_most_probable_text_is_chosen_token_by_token_and_ends_before_a_stop() -> None:
    model = TableModel("base", 0.0)
    found = most_probable_text(model, [3, 4], 6)
    model.start()
    for index, token in enumerate(found):
        logits = model.advance(np.asarray([3, 4, *found[:index]], np.int32), outputs=1)
        assert int(logits[0].argmax()) == token
        model.start()
    assert most_probable_text(model, [3, 4], 6, stop_ids=frozenset(found[2:3])) == found[: found.index(found[2])]


def test_intervals_over_windows_are_wider_where_tokens_of_a_window_are_alike() -> None:
    generator = np.random.default_rng(3)
    own = generator.standard_normal((40, 1))
    alike = mean_interval(np.repeat(own, 50, axis=1))
    apart = mean_interval(generator.standard_normal((40, 50)))
    assert alike.low < alike.value < alike.high
    # 40 independent numbers against 2000: sqrt(50) = 7 times as wide, and a factor of 2 for chance.
    assert alike.half_width > 3.5 * apart.half_width
    # The expected width: 2.02 standard errors (Student's t, 39 degrees), within a fifth for the resampling.
    assert alike.half_width == pytest.approx(2.02 * own.std(ddof=1) / math.sqrt(40), rel=0.2)


def test_few_windows_fall_back_on_independent_tokens() -> None:
    values = np.random.default_rng(3).standard_normal((2, 500))
    found = mean_interval(values)
    assert found.half_width == pytest.approx(1.96 * values.std() / math.sqrt(999), rel=1e-3)
    assert exponential(Interval(0.0, -1.0, 1.0)) == Interval(1.0, math.exp(-1.0), math.e)


def test_a_verdict_goes_by_the_upper_end_of_the_interval() -> None:
    assert verdict(Interval(0.009, 0.0085, 0.0095)).word == "faithful"
    assert verdict(Interval(0.009, 0.0075, 0.0105)).word == "close"
    levels = [verdict(Interval(value, value, value)).level for value in (0.0, 0.005, 0.02, 0.1, 0.5)]
    assert levels == [0, 1, 2, 3, 4]
    assert verdict(Interval(0.01, 0.01, 0.01)).level == LAST_SAFE_LEVEL


@pytest.mark.parametrize("number_format", SCALED, ids=lambda item: item.name)
def test_every_stored_value_of_a_group_lies_on_its_levels(number_format: NumberFormat) -> None:
    weight = few_weights(number_format)
    tensor = stored(number_format, weight)
    if not tensor.planes:
        pytest.skip("a plain number has no grid")
    columns = weight.shape[1]
    encoded = number_format.unpack(tensor.planes, columns)
    group = groups_of_columns(number_format, tensor.planes, columns)[:2][-1]
    levels = group_levels(number_format, encoded, group)
    assert levels == sorted(levels)
    values = number_format.dequantize(tensor.planes, columns)[0, group]
    distance = np.abs(values[:, None] - np.asarray(levels, np.float32)[None]).min(axis=1) if levels else np.zeros(1)
    # Outliers beside the codes lie on no level: at most a few percent of a group.
    assert np.mean(distance > 1e-6) <= (0.05 if "+" in number_format.name else 0.0)


@pytest.mark.parametrize("number_format", SCALED, ids=lambda item: item.name)
def test_the_relative_error_is_that_of_the_stored_values(number_format: NumberFormat) -> None:
    weight = few_weights(number_format)
    tensor = stored(number_format, weight)
    if not tensor.planes:
        pytest.skip("a plain number has no scales")
    values = number_format.dequantize(tensor.planes, weight.shape[1]).astype(np.float64)
    expected = ((weight - values) ** 2).sum() / (weight.astype(np.float64) ** 2).sum()
    assert relative_error(plain(weight), tensor) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("number_format", SCALED, ids=lambda item: item.name)
def test_a_large_tensor_is_sampled_in_rows_that_are_its_own(
    number_format: NumberFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lilliput.evaluation.weight_views.SAMPLE", 2048)
    monkeypatch.setattr("lilliput.evaluation.weight_views.RUNS", 2)
    weight = weights(4 * max(8, number_format.row_step or 8), 256)
    tensor = stored(number_format, weight)
    if not tensor.planes:
        pytest.skip("a plain number has no scales")
    whole = number_format.dequantize(tensor.planes, weight.shape[1])
    for rows, values in sampled_rows(plain(weight), tensor):
        start = int(np.flatnonzero((weight == rows[0]).all(axis=1))[0])
        assert np.array_equal(rows, weight[start : start + len(rows)])
        assert np.array_equal(values, whole[start : start + len(rows)])


def test_a_picture_counts_every_weight_and_shows_one_group() -> None:
    weight = weights()
    found = picture(plain(weight), stored(FORMATS["q4_k"], weight), why="typical", error=0.01)
    assert sum(found.original.counts) == pytest.approx(weight.size, rel=0.01)
    assert len(found.original.edges) == len(found.original.counts) + 1
    assert len(found.levels) == 16
    assert len(found.group) == 32
    # Levels reach as far as the group does, but for half a step.
    assert found.levels[-1] == pytest.approx(max(found.group), abs=found.levels[1] - found.levels[0])
