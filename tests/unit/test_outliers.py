# SPDX-License-Identifier: Apache-2.0
"""Outliers: which weights are kept in fp16, and how little the rest loses then."""

from __future__ import annotations

import numpy as np
import pytest

from lilliput.arrays import FloatArray
from lilliput.errors import FormatError, RecipeError
from lilliput.formats import get_format
from lilliput.formats.families import fitting_sibling
from lilliput.formats.outliers import PLACES, VALUES, WithOutliers
from lilliput.recipes.recipe import find_recipe


def normal(rows: int = 8, columns: int = 512) -> FloatArray:
    return np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)


def relative_error(name: str, weight: FloatArray) -> float:
    number_format = get_format(name)
    planes = number_format.pack(number_format.encode(weight))
    residual = number_format.dequantize(planes, weight.shape[1]) - weight
    return float((residual**2).sum() / (weight**2).sum())


def test_columns_that_stand_out_are_kept_whole() -> None:
    weight = normal()
    large = [3, 100, 101, 300, 511]
    weight[:, large] *= 50
    number_format = get_format("int4_channel+columns1")
    encoded = number_format.encode(weight)
    assert encoded.parameters[PLACES].tolist() == [[large]]
    np.testing.assert_array_equal(encoded.parameters[VALUES][:, 0], weight[:, large].astype(np.float16))
    values = number_format.values(encoded.codes, encoded.parameters)
    np.testing.assert_array_equal(values[:, large], weight[:, large].astype(np.float16))


def test_single_weights_that_stand_out_are_kept_in_each_row() -> None:
    weight = normal()
    places = np.array([np.random.default_rng(row).choice(512, 5, replace=False) for row in range(8)])
    np.put_along_axis(weight, places, 40, axis=1)
    encoded = get_format("int4_g128+sparse1").encode(weight)
    np.testing.assert_array_equal(encoded.parameters[PLACES][:, 0], np.sort(places, axis=1))


@pytest.mark.parametrize("kind", ["columns1", "sparse1"])
def test_the_rest_is_served_as_if_the_outliers_were_not_there(kind: str) -> None:
    weight = normal()
    clean = relative_error("int3_channel", weight) * (weight**2).sum()
    weight[:, 7] = 60
    with_outlier = relative_error("int3_channel", weight) * (weight**2).sum()
    kept = relative_error(f"int3_channel+{kind}", weight) * (weight**2).sum()
    assert kept < 1.01 * clean < 0.5 * with_outlier


def test_importance_decides_which_columns_are_kept() -> None:
    weight = normal()
    importance = np.ones((1, 512), dtype=np.float32)
    importance[0, [9, 10, 200, 201, 202]] = 1e4
    places = get_format("int4_channel+columns1").encode(weight, importance).parameters[PLACES]
    assert set(places.reshape(-1).tolist()) == {9, 10, 200, 201, 202}


@pytest.mark.parametrize(
    ("base", "outliers", "bits"),
    [
        ("q4_k", "sparse0.5", 0.16),
        ("q4_0", "columns2", 0.32),
        ("nf4", "sparse1", 0.32),
        ("palette3_channel", "columns1", 0.16),
    ],
)
def test_any_base_with_scales_gains_by_keeping_outliers(base: str, outliers: str, bits: float) -> None:
    weight = (0.02 * np.random.RandomState(3).standard_t(3, (8, 512))).astype(np.float32)
    name = f"{base}+{outliers}"
    assert relative_error(name, weight) < relative_error(base, weight)
    # How many they are of 4096 columns is rounded.
    assert get_format(name).bits_per_weight == pytest.approx(get_format(base).bits_per_weight + bits, abs=0.005)


@pytest.mark.parametrize("name", ["int4_g128+columns0", "int4_g128+sparse11", "int4_g128+rows1", "f16+columns1"])
def test_illegal_outliers_are_refused_with_their_spelling(name: str) -> None:
    with pytest.raises(FormatError, match=r"outliers are spelled <format>\+columns<p> or <format>\+sparse<p>"):
        get_format(name)
    with pytest.raises(RecipeError, match="outliers are spelled"):
        find_recipe(name)


def test_places_beyond_the_matrix_in_a_damaged_file_are_ignored() -> None:
    number_format = get_format("int4_g128+sparse1")
    planes = dict(number_format.pack(number_format.encode(normal())))
    planes[PLACES] = np.full_like(planes[PLACES], 60000)
    assert np.isfinite(number_format.dequantize(planes, 512)).all()


def test_rows_that_places_cannot_count_are_refused() -> None:
    with pytest.raises(FormatError, match=r"x: row length 131072 is above the 65536 that INT4_G128\+SPARSE1 can count"):
        get_format("int4_g128+sparse1").check_columns("x", 131072)


def test_a_smaller_group_keeps_its_outliers() -> None:
    found = fitting_sibling(get_format("int4_g128+sparse1"), 192)
    assert isinstance(found, WithOutliers)
    assert found.name == "int4_g64+sparse1"
