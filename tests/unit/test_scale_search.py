# SPDX-License-Identifier: Apache-2.0
"""The searches behind every `fit`, on groups small enough to reason about."""

from __future__ import annotations

import numpy as np
import pytest

from lilliput.errors import FormatError
from lilliput.formats import FORMATS, NumberFormat
from lilliput.formats.levels import Levels
from lilliput.formats.number_format import Encoded
from lilliput.formats.scale_search import (
    LineCandidate,
    finest_first,
    half_rounded,
    line_error,
    nearest_integers,
    nonzero,
    ordered_sum,
    peak_of,
    row_mean_square,
    scale_error,
    search_line,
    search_outer_scale,
    search_scale,
    steps,
    two_sided_anchors,
)

LEVELS = Levels.integers(-4, 3)
ANCHORS = two_sided_anchors(-4, 3, steps(0.55, 1.2, 14))
LINES = finest_first([LineCandidate(stretch) for stretch in steps(0.7, 1.3, 13)])


def column(values: list[float]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.array(values, dtype=np.float32)[:, None]


def test_weights_on_a_grid_are_found_exactly() -> None:
    x = column([0.25 * level for level in (-4, 3, 1, 0, -2, 2, -1, -3)])
    found = search_scale(x, np.ones_like(x), LEVELS, ANCHORS)
    assert found.scale[0] == 0.25
    assert scale_error(x, np.ones_like(x), LEVELS, found.scale)[0] == 0


def test_a_positive_outer_side_takes_a_negative_scale() -> None:
    x = column([4, -3, 1, 0, 2, -2, -1, 3])
    assert search_scale(x, np.ones_like(x), LEVELS, ANCHORS).scale[0] == -1


def test_a_lone_outlier_takes_the_finest_scale_that_holds_it() -> None:
    x = column([0, 0, 0, 8, 0, 0, 0, 0])
    assert search_scale(x, np.ones_like(x), LEVELS, ANCHORS).scale[0] == -2


def test_importance_moves_the_scale_to_the_columns_that_matter() -> None:
    x = column([1.0, 0.3, -0.7, 0.1, 0.55, -0.2, 0.45, 0.05])
    w = np.ones_like(x)
    w[1] = 1e6
    scale = search_scale(x, w, LEVELS, ANCHORS).scale
    nearest = scale * LEVELS.nearest_level(x / scale)
    assert abs(nearest[1, 0] - x[1, 0]) < 1e-3


def test_a_line_is_found_exactly() -> None:
    x = column([0.5 * code - 1.5 for code in (0, 15, 3, 7, 9, 1, 12, 5)])
    line = search_line(x, np.ones_like(x), 15, LINES, minimum_is_positive=True)
    np.testing.assert_allclose([line.scale[0], line.minimum[0]], [0.5, 1.5], rtol=1e-6)
    assert line_error(x, np.ones_like(x), 15, line.scale, line.minimum)[0] < 1e-10


def test_an_all_positive_group_never_adds_where_only_subtraction_is_stored() -> None:
    x = column([10.0, 10.5, 11, 11.5, 12, 12.5, 13, 13.5])
    assert search_line(x, np.ones_like(x), 15, LINES, minimum_is_positive=True).minimum[0] >= 0
    free = search_line(x, np.ones_like(x), 15, LINES, minimum_is_positive=False)
    assert line_error(x, np.ones_like(x), 15, free.scale, free.minimum)[0] < 1e-6
    assert -free.minimum[0] > 9


def test_an_outer_scale_that_divides_all_is_found() -> None:
    values = np.array([[3, -5, 31, 7, 0, 12, -20, 1]], dtype=np.float32).T * np.float32(0.125)
    anchors = [31.5 - 0.5 * k for k in range(9)]
    found = search_outer_scale(
        values, np.ones_like(values), nonzero(peak_of(values)), anchors, nearest_integers(-32, 31)
    )
    assert found[0] == 0.125


def test_half_rounded_is_numpy_s_fp16_but_saturates() -> None:
    values = np.array([1e-8, 3e-8, 6e-8, 0.1, -1 / 3, 65519, 65520, -1e9], dtype=np.float32)
    with np.errstate(over="ignore"):
        expected = np.clip(values.astype(np.float16).astype(np.float32), -65504, 65504)
    np.testing.assert_array_equal(half_rounded(values), expected)


def test_sums_are_taken_in_the_order_that_is_documented() -> None:
    terms = np.array([[1e8], [1.0], [-1e8], [1.0], [1.0], [0], [0], [0]], dtype=np.float32)
    # ((1e8 + 1) + -1e8) + (1 + 1), where 1e8 + 1 rounds to 1e8 in float32.
    assert ordered_sum(terms)[0] == 2


@pytest.mark.parametrize("columns", [32, 96, 7])
def test_row_mean_square_is_the_mean_of_the_squares(columns: int) -> None:
    weight = np.random.default_rng(0).standard_normal((3, columns)).astype(np.float32)
    np.testing.assert_allclose(row_mean_square(weight), (weight.astype(np.float64) ** 2).mean(axis=1), rtol=1e-6)


@pytest.mark.parametrize("number_format", [f for f in FORMATS.values() if not f.can_encode and f.scopes], ids=repr)
def test_formats_without_encoder_refuse_to_fit(number_format: NumberFormat) -> None:
    weight = np.zeros((1, 256), dtype=np.float32)
    for act in (
        lambda: number_format.fit(weight, None),
        lambda: number_format.widest_parameters(weight),
        lambda: number_format.nearest_codes(weight, {}),
        lambda: number_format.pack(Encoded(np.zeros((1, 256), dtype=np.int32), {})),
    ):
        with pytest.raises(FormatError, match=f"{number_format.name}: decoding only"):
            act()
