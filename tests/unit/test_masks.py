# SPDX-License-Identifier: Apache-2.0
"""Masks: which weights go, and that they are gone."""

from __future__ import annotations

import numpy as np
import pytest
from header_models import header_model

from lilliput.arrays import FloatArray
from lilliput.errors import CalibrationError, FormatError, RecipeError
from lilliput.formats import get_format
from lilliput.methods import METHODS
from lilliput.methods.masks import has_exact_zero, kept
from lilliput.recipes.plan import resolve
from lilliput.records import NO_INPUTS, LayerInputs, Role

MASKS = [name for name in METHODS if name.removesuffix("_2_4") in ("magnitude_mask", "wanda", "sparse_gpt")]


def case(rows: int = 12, columns: int = 256) -> tuple[FloatArray, LayerInputs]:
    draw = np.random.default_rng(1)
    weight = draw.standard_normal((rows, columns)).astype(np.float32)
    inputs = draw.standard_normal((1024, columns)) @ draw.standard_normal((columns, columns)) / 16
    hessian = (inputs.T @ inputs / 1024).astype(np.float32)
    return weight, LayerInputs(1024, np.diag(hessian).copy(), hessian)


@pytest.mark.parametrize("method", MASKS)
@pytest.mark.parametrize("name", ["int4_g64", "int4_g128_asym", "int8_channel", "q4_0", "q3_k", "nf4", "pot4_g32"])
def test_the_pattern_is_in_the_decoded_values(method: str, name: str) -> None:
    weight, inputs = case()
    number_format = get_format(name)
    planes = METHODS[method].quantize(number_format, weight, inputs, threads=1)
    is_zero = number_format.dequantize(planes, 256) == 0
    if method.endswith("_2_4"):
        assert (is_zero.reshape(12, -1, 4).sum(axis=2) >= 2).all()
    else:
        assert (is_zero.sum(axis=1) >= 128).all()


def test_wanda_keeps_what_magnitude_times_input_makes_large() -> None:
    weight = np.array([[1.0, -2.0, 3.0, 0.5]], dtype=np.float32)
    mean_square = np.array([100.0, 1.0, 1.0, 400.0], dtype=np.float32)
    for method, expected in (("magnitude_mask", [[0, -2, 3, 0]]), ("wanda", [[1, 0, 0, 0.5]])):
        for pattern in ("", "_2_4"):
            chosen = METHODS[method + pattern]
            planes = chosen.quantize(get_format("f32"), weight, LayerInputs(1, mean_square), threads=1)
            np.testing.assert_array_equal(get_format("f32").dequantize(planes, 4), expected)


def test_equal_scores_keep_the_earlier_weights_and_exactly_as_many_as_the_pattern_says() -> None:
    np.testing.assert_array_equal(kept(np.ones((1, 8)), "2_4"), [[1, 1, 0, 0, 1, 1, 0, 0]])
    np.testing.assert_array_equal(kept(np.ones((1, 5)), "half"), [[1, 1, 1, 0, 0]])


def test_rows_that_do_not_divide_into_fours_are_refused() -> None:
    with pytest.raises(FormatError, match="rows of 6 do not divide into fours"):
        kept(np.ones((1, 6)), "2_4")


def test_exact_zeros_are_found_by_what_formats_decode() -> None:
    having = ("f16", "q8_0", "q4_0", "q6_k", "q3_k", "int4_g128", "int4_g128_asym", "nf4", "ternary_g128", "fp4_g32")
    lacking = ("q4_1", "q4_k", "q2_k", "iq4_nl", "iq3_s", "int4_g64_affine", "palette4_tensor", "binary_g128")
    assert [has_exact_zero(get_format(name)) for name in having] == [True] * len(having)
    assert [has_exact_zero(get_format(name)) for name in lacking] == [False] * len(lacking)


@pytest.mark.parametrize("method", MASKS)
def test_a_format_without_a_zero_is_refused_with_the_reason(method: str) -> None:
    weight, inputs = case(2)
    with pytest.raises(FormatError, match=f"Q4_K has no exact zero, so that {method} would leave no weight out"):
        METHODS[method].quantize(get_format("q4_k"), weight, inputs, threads=1)
    with pytest.raises(RecipeError, match=rf"method '{method}' .* Q4_K.*serves formats with an exact zero"):
        resolve(header_model(), "q4_k", statistics_present=True, method=method)


@pytest.mark.parametrize("method", [name for name in MASKS if "magnitude" not in name])
def test_masks_by_input_need_to_know_the_inputs(method: str) -> None:
    with pytest.raises(CalibrationError, match="--text"):
        METHODS[method].quantize(get_format("int4_g64"), case(2)[0], NO_INPUTS, threads=1)


@pytest.mark.parametrize("pattern", ["", "_2_4"])
def test_weights_that_stay_make_up_for_those_that_go(pattern: str) -> None:
    weight, inputs = case(32)
    # Fine codes: what is left is the error of the mask.
    number_format = get_format("int8_g64")

    def loss(method: str) -> float:
        planes = METHODS[method + pattern].quantize(number_format, weight, inputs, threads=1)
        error = (number_format.dequantize(planes, 256) - weight).astype(np.float64)
        return float(np.einsum("ij,jk,ik->", error, inputs.hessian, error))

    assert loss("sparse_gpt") < 0.75 * loss("wanda")


@pytest.mark.parametrize("method", MASKS)
def test_masks_stay_inside_the_layers(method: str) -> None:
    plan = resolve(header_model(), "int4_g128", statistics_present=True, method=method)
    methods = {row.role: row.method for row in plan.rows if len(row.shape) > 1}
    assert methods[Role.TOKEN_EMBEDDING] == methods[Role.OUTPUT] == "searched_scales"
    assert methods[Role.ATTENTION_Q] == methods[Role.FFN_DOWN] == method


@pytest.mark.parametrize("method", ["wanda", "searched_clipping"])
def test_a_plan_without_statistics_refuses_methods_that_weigh_by_inputs(method: str) -> None:
    with pytest.raises(RecipeError, match=f"method '{method}' weighs by the inputs of .*; give --text"):
        resolve(header_model(), "int4_g128", statistics_present=False, method=method)
