# SPDX-License-Identifier: Apache-2.0
"""Encoders on unkind input: zeros, denormals, huge numbers, constant rows, ragged shapes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lilliput.arrays import FloatArray
from lilliput.formats import FORMATS, NumberFormat
from lilliput.methods import METHODS
from lilliput.records import NO_INPUTS, LayerInputs

SCALED = [number_format for number_format in FORMATS.values() if number_format.can_encode and number_format.scopes]
# "copy" chooses no scales.
SCALE_CHOOSERS = [METHODS["searched_scales"], METHODS["round_to_nearest"]]
EXTREMES = [0.0, -0.0, 1e-45, -1e-40, 1e-20, 6e-8, 1e-3, -1.0, 1.0, 3.0, 1e4, -1e9, 3e38, -3e38]


@st.composite
def unkind_weights(draw: st.DrawFn, block: int) -> FloatArray:
    """[1..3, 1..2 blocks] of a base row, scaled, with some numbers replaced by extremes."""
    rows, blocks = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    columns = blocks * block
    kind = draw(st.sampled_from(["zeros", "constant", "random"]))
    seed = draw(st.integers(0, 2**31))
    generator = np.random.default_rng(seed)
    base = {
        "zeros": np.zeros((rows, columns)),
        "constant": np.full((rows, columns), draw(st.sampled_from(EXTREMES))),
        "random": generator.standard_normal((rows, columns)) * draw(st.sampled_from([1e-30, 1e-8, 1e-3, 1.0, 1e4])),
    }[kind].astype(np.float32)
    for value in draw(st.lists(st.sampled_from(EXTREMES), max_size=4)):
        base[generator.integers(rows), generator.integers(columns)] = value
    return base


@pytest.mark.parametrize("number_format", SCALED, ids=repr)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_finite_weight_encodes_to_finite_values(number_format: NumberFormat, data: st.DataObject) -> None:
    weight = data.draw(unkind_weights(number_format.block_size))
    importance = data.draw(st.sampled_from([None, 0.0, 1e-30, 1.0, 1e20]))
    columns = weight.shape[1]
    per_column = None if importance is None else np.full(columns, importance, dtype=np.float32)
    for method in SCALE_CHOOSERS:
        values = number_format.dequantize(
            method.quantize(number_format, weight, LayerInputs(1, per_column), threads=1), columns
        )
        assert np.isfinite(values).all()


@pytest.mark.parametrize("number_format", SCALED, ids=repr)
def test_zeros_stay_zero(number_format: NumberFormat) -> None:
    weight = np.zeros((2, 512), dtype=np.float32)
    for method in SCALE_CHOOSERS:
        assert not number_format.dequantize(method.quantize(number_format, weight, NO_INPUTS, threads=1), 512).any()


@pytest.mark.parametrize("number_format", SCALED, ids=repr)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31), exponent=st.integers(-4, 4))
def test_values_stay_within_one_step_of_the_weights(number_format: NumberFormat, seed: int, exponent: int) -> None:
    weight = np.random.default_rng(seed).standard_normal((2, 512))
    least, greatest = number_format.full_precision
    weight = (weight * np.clip(10.0**exponent, least, greatest / np.abs(weight).max())).astype(np.float32)
    values = number_format.dequantize(
        METHODS["searched_scales"].quantize(number_format, weight, NO_INPUTS, threads=1), 512
    )
    # No error exceeds the largest weight of its block: zero would do better than that.
    together = min(scope.rows or 2 for scope in number_format.scopes)
    width = min(scope.columns or 512 for scope in number_format.scopes)
    blocks = np.abs(weight).reshape(2 // min(together, 2), -1, 512 // width, width)
    limit = np.broadcast_to(blocks.max(axis=(1, 3), keepdims=True), blocks.shape).reshape(2, 512)
    residual = np.abs(values - weight)
    # A palette's own entries round once more.
    assert (residual <= limit * 1.001).all()
    # Signs alone leave 1 - 2 / pi of a normal distribution's squares.
    left = 0.25 if number_format.bits_per_weight > 1.5 else 0.45
    assert (residual**2).sum() < (weight.astype(np.float64) ** 2).sum() * left


@pytest.mark.parametrize("number_format", SCALED, ids=repr)
def test_columns_without_importance_still_count(number_format: NumberFormat) -> None:
    weight = np.random.default_rng(1).standard_normal((2, 512)).astype(np.float32)
    importance = np.ones(512, dtype=np.float32)
    importance[:256] = 0
    planes = METHODS["searched_scales"].quantize(number_format, weight, LayerInputs(1, importance), threads=1)
    half = number_format.dequantize(planes, 512)[:, :256]
    left = 0.25 if number_format.bits_per_weight > 1.5 else 0.45
    assert ((half - weight[:, :256]) ** 2).sum() < (weight[:, :256] ** 2).sum() * left
