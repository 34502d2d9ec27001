# SPDX-License-Identifier: Apache-2.0
"""Input formats and calibrated ranges, in numpy."""

from __future__ import annotations

import numpy as np
import pytest

from lilliput.activations import FloatInputs, IntegerInputs, RangeObserver, WithOutlierColumns, get_input_format
from lilliput.activations.ranges import BINS
from lilliput.errors import CalibrationError, FormatError

NAMES = ("int8_token", "int8_token_asym", "int4_g32", "int8_g64_asym", "int8_static", "int6_static_asym")


@pytest.fixture
def inputs() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((9, 128)).astype(np.float32)


@pytest.mark.parametrize("name", [*NAMES, "fp8_e4m3_token", "fp8_e5m2_static", "int8_token+outliers6", "f32"])
def test_a_name_gives_the_format_of_that_name(name: str) -> None:
    assert get_input_format(name.upper()).name == name


@pytest.mark.parametrize("name", ["int9_token", "int8", "int8_static+outliers6", "fp8_e4m3_g32", "f32+outliers2"])
def test_a_wrong_name_is_refused_with_how_names_are_spelled(name: str) -> None:
    with pytest.raises(FormatError, match="int<2-8>_token"):
        get_input_format(name)


@pytest.mark.parametrize("name", ["int8_token", "int8_token_asym", "int5_token", "int8_g32", "int8_g64_asym"])
def test_dynamic_codes_are_within_half_a_step_of_every_input(name: str, inputs: np.ndarray) -> None:
    kind = get_input_format(name)
    assert isinstance(kind, IntegerInputs)
    codes = kind.quantize(inputs)
    steps = np.repeat(codes.scale, inputs.shape[1] // codes.scale.shape[1], axis=1)
    # The zero point of an asymmetric range is rounded too, which can push its ends out by half a step more.
    bound = 0.5 if kind.is_symmetric else 1.0
    assert (np.abs(codes.values() - inputs) <= bound * steps * (1 + 1e-5)).all()


def test_asymmetric_codes_of_one_sided_inputs_have_half_the_step(inputs: np.ndarray) -> None:
    positive = np.abs(inputs)
    two_sided, one_sided = IntegerInputs(8, None, True, False), IntegerInputs(8, None, False, False)
    assert np.allclose(one_sided.quantize(positive).scale, two_sided.quantize(positive).scale * 127 / 255)


def test_a_token_of_zeros_has_no_scale_and_only_zero_points() -> None:
    codes = IntegerInputs(8, None, True, False).quantize(np.zeros((2, 16), np.float32))
    assert (codes.scale == 0).all()
    assert (codes.codes == 128).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_makes_the_scale_of_its_token_nan(bad: float, inputs: np.ndarray) -> None:
    inputs[4, 7] = bad
    scale = IntegerInputs(8, None, True, False).quantize(inputs).scale[:, 0]
    assert np.isnan(scale[4])
    assert np.isfinite(np.delete(scale, 4)).all()


def test_static_inputs_need_a_range_and_are_cut_to_it(inputs: np.ndarray) -> None:
    kind = IntegerInputs(8, None, False, True)
    with pytest.raises(CalibrationError, match="calibration data"):
        kind.quantize(inputs)
    values = kind.quantize(inputs, kind.fixed_scale(-0.5, 1.0)).values()
    step = 1.5 / 255
    assert values.min() >= -0.5 - step
    assert values.max() <= 1.0 + step


def test_columns_that_do_not_divide_into_groups_are_refused() -> None:
    with pytest.raises(FormatError, match="smaller group"):
        IntegerInputs(8, 64, True, False).groups(96)


def test_rounding_to_eight_bit_floats_keeps_three_bits_of_fraction(inputs: np.ndarray) -> None:
    rounded = FloatInputs("e4m3", False).rounded(inputs)
    scale = np.abs(inputs).max(axis=1, keepdims=True) / 448
    # Half a step: 1/16 of a normal number, 2^-10 of the scale below.
    assert (np.abs(rounded - inputs) <= np.maximum(np.abs(inputs) / 16, scale * 2**-10) * 1.001).all()


def test_columns_with_outliers_are_found(inputs: np.ndarray) -> None:
    inputs[3, 20] = -9.0
    kind = WithOutlierColumns(IntegerInputs(8, None, True, False), 6.0)
    assert np.flatnonzero(kind.outliers(inputs)).tolist() == [20]


def observed(values: np.ndarray) -> RangeObserver:
    observer = RangeObserver()
    for part in np.array_split(values, 3):
        observer.observe(part)
    return observer


def squared_error(kind: IntegerInputs, values: np.ndarray, low: float, high: float) -> float:
    return float(((kind.quantize(values, kind.fixed_scale(low, high)).values() - values) ** 2).sum())


@pytest.mark.parametrize("method", ["percentile", "mse", "entropy"])
@pytest.mark.parametrize("name", ["int8_static", "int8_static_asym"])
def test_one_outlier_does_not_set_the_range(method: str, name: str) -> None:
    values = np.random.default_rng(2).standard_normal((4000, 16)).astype(np.float32)
    values[77, 3] = 400.0
    kind = get_input_format(name)
    assert isinstance(kind, IntegerInputs)
    _, high = observed(values).range_of(kind, method)
    assert 2.0 < high < 0.9 * 400.0


@pytest.mark.parametrize("name", ["int8_static", "int8_static_asym", "int4_static"])
def test_the_mse_range_beats_the_whole_one(name: str) -> None:
    values = np.random.default_rng(3).laplace(size=(4000, 16)).astype(np.float32)
    kind = get_input_format(name)
    assert isinstance(kind, IntegerInputs)
    seen = observed(values)
    whole = squared_error(kind, values, *seen.range_of(kind, "min_max"))
    assert squared_error(kind, values, *seen.range_of(kind, "mse")) < whole


def test_the_histogram_keeps_its_count_while_its_range_doubles() -> None:
    values = np.random.default_rng(4).standard_normal((300, 8)).astype(np.float32)
    values[200:] *= 50
    observer = observed(values)
    counts, centres = observer.histogram()
    assert counts.sum() == values.size
    step = centres[1] - centres[0]
    expected, _ = np.histogram(values, bins=BINS, range=(centres[0] - step / 2, centres[-1] + step / 2))
    # A bin holds what fell into its parts; float32 inputs may round across one border.
    assert np.abs(np.cumsum(counts) - np.cumsum(expected)).max() <= 2
    assert observer.low == values.min()
    assert observer.high == values.max()


def test_ranges_of_nothing_seen_and_of_infinities_are_refused() -> None:
    observer = RangeObserver()
    with pytest.raises(CalibrationError, match="no inputs were seen"):
        observer.range_of(IntegerInputs(8, None, True, True), "mse")
    with pytest.raises(CalibrationError, match="infinite or NaN"):
        observer.observe(np.array([[np.inf]], np.float32))
