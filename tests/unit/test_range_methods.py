# SPDX-License-Identifier: Apache-2.0
"""Methods that choose ranges: percentile, entropy, searched clipping, half-quadratic zero points."""

from __future__ import annotations

import numpy as np
import pytest

from lilliput.arrays import FloatArray
from lilliput.errors import CalibrationError
from lilliput.formats import FORMATS, get_format
from lilliput.methods import METHODS
from lilliput.methods.clipped_range import entropy_threshold
from lilliput.methods.searched_clipping import SHARES
from lilliput.records import NO_INPUTS, LayerInputs


def normal_rows(rows: int, columns: int, seed: int = 0) -> FloatArray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


@pytest.mark.parametrize("name", ["int8_channel", "int4_tensor", "fp8_e4m3_block128"])
def test_the_outermost_level_reaches_the_percentile(name: str) -> None:
    number_format = get_format(name)
    weight = normal_rows(130, 512)
    weight[3, 7] = 50
    planes = METHODS["percentile_clipping"].quantize(number_format, weight, NO_INPUTS, threads=1)
    values = number_format.dequantize(planes, 512)
    region = {"int8_channel": weight[3:4], "int4_tensor": weight, "fp8_e4m3_block128": weight[:128, :128]}[name]
    reached = np.abs(values[3, 7])
    # One step of the coarsest of these: 4-bit integers reach -8 of 8, but only 7 of 8 above zero.
    assert 0.87 * np.quantile(np.abs(region), 0.999) <= reached <= 1.001 * np.quantile(np.abs(region), 0.999)


def test_entropy_keeps_evenly_filled_ranges_whole_and_cuts_lone_outliers_off() -> None:
    even = np.linspace(0, 1, 8192, dtype=np.float32)[None]
    assert entropy_threshold(even, 8)[0] > 0.95
    normal = np.abs(normal_rows(1, 8192))
    outlier = normal.copy()
    outlier[0, 0] = 40
    assert entropy_threshold(outlier, 8)[0] < 8


def test_entropy_treats_every_row_by_itself() -> None:
    magnitudes = np.abs(normal_rows(5, 4096)) * np.float32([[1], [10], [0.1], [3], [0.02]])
    together = entropy_threshold(magnitudes, 8)
    alone = [entropy_threshold(magnitudes[row : row + 1], 8)[0] for row in range(5)]
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("name", ["percentile_clipping", "entropy_clipping"])
def test_clipped_ranges_beat_absmax_where_an_outlier_sets_it(name: str) -> None:
    number_format = get_format("int4_channel")
    weight = normal_rows(16, 1024)
    weight[:, 5] = 30

    def error(method: str) -> float:
        planes = METHODS[method].quantize(number_format, weight, NO_INPUTS, threads=1)
        residual = number_format.dequantize(planes, 1024) - weight
        return float((residual[:, np.arange(1024) != 5] ** 2).sum())

    assert error(name) < 0.2 * error("round_to_nearest")


def test_clipped_ranges_are_for_formats_wider_than_groups() -> None:
    for name in ("percentile_clipping", "entropy_clipping"):
        assert not METHODS[name].supports(get_format("int4_g128"))
        assert not METHODS[name].supports(get_format("q4_0"))
        assert METHODS[name].supports(get_format("int8_tensor"))


def test_searched_clipping_finds_the_share_of_least_output_error() -> None:
    number_format = get_format("int3_g32")
    weight = normal_rows(1, 32, seed=4)
    root = normal_rows(64, 32, seed=5)
    hessian = root.T @ root / 64
    inputs = LayerInputs(64, np.diag(hessian).copy(), hessian)
    planes = METHODS["searched_clipping"].quantize(number_format, weight, inputs, threads=1)

    def cost(values: FloatArray) -> float:
        error = (values - weight).astype(np.float64)
        return float((error @ hessian * error).sum())

    tried = []
    for share in SHARES:
        limit = np.abs(weight).max() * np.float32(share)
        parameters = number_format.widest_parameters(np.clip(weight, -limit, limit))
        tried.append(cost(number_format.values(number_format.nearest_codes(weight, parameters), parameters)))
    # float32 in the search, float64 here.
    assert cost(number_format.dequantize(planes, 32)) <= min(tried) * (1 + 1e-5)


def test_searched_clipping_uses_mean_squares_where_there_is_no_hessian() -> None:
    number_format, weight = get_format("int3_g64"), normal_rows(8, 256)
    mean_square = np.exp(2 * np.random.default_rng(6).standard_normal(256)).astype(np.float32)

    def error(method: str) -> float:
        planes = METHODS[method].quantize(number_format, weight, LayerInputs(1, mean_square), threads=1)
        return float((mean_square * (number_format.dequantize(planes, 256) - weight) ** 2).sum())

    assert error("searched_clipping") < error("round_to_nearest")


def test_searched_clipping_without_statistics_is_refused() -> None:
    with pytest.raises(CalibrationError, match="clipping is judged by the layer's inputs; give --text"):
        METHODS["searched_clipping"].quantize(get_format("int4_g32"), normal_rows(1, 32), NO_INPUTS, threads=1)


def test_half_quadratic_moves_the_line_to_where_most_weights_are() -> None:
    number_format = get_format("int2_g64_affine")
    # Four levels and an outlier: min-max leaves every level but one between the weights.
    weight = np.tile(np.float32([0.05, 1.05, 2.05, 2.95]), (4, 16))
    weight[:, 0] = -0.4
    method = METHODS["half_quadratic"]
    values = number_format.dequantize(method.quantize(number_format, weight, NO_INPUTS, threads=1), 64)
    plain = number_format.dequantize(
        METHODS["round_to_nearest"].quantize(number_format, weight, NO_INPUTS, threads=1), 64
    )
    assert np.median(np.abs(values - weight)) < 0.5 * np.median(np.abs(plain - weight))


def test_half_quadratic_serves_lines_and_zero_points_only() -> None:
    supported = {name for name, number_format in FORMATS.items() if METHODS["half_quadratic"].supports(number_format)}
    assert {"q4_1", "q5_1", "int4_g64_affine", "int4_g128_asym", "int8_channel_asym"} <= supported
    assert not supported & {"q4_0", "q4_k", "int4_g128", "nf4", "palette2_g128"}
