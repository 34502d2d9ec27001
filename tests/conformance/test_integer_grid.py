# SPDX-License-Identifier: Apache-2.0
"""Integers move between formats as their structure says: exactly, with rounded scales, or not at all."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from lilliput.formats import FORMATS, Encoded, NumberFormat, Planes, get_format
from lilliput.formats.integer_grid import Fit, fit, grid_shape, moved

NAMES = (
    *("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q6_k", "q3_k"),
    *("int4_g32", "int4_g128", "int4_g32_asym", "int4_g128_asym", "int4_channel", "int4_tensor", "int4_g64_affine"),
    *("int8_g32", "int8_channel", "int8_channel_asym", "int3_g16", "int2_g64_asym", "int6_g16", "int5_g128"),
    *("int8_channel_narrow", "int4_g32_narrow", "ternary_channel", "ternary_g128", "int8_channel_pow2"),
)
ROWS, COLUMNS = 3, 512


def rounded(number_format: NumberFormat) -> Planes:
    """Random weights with outliers, and with a mean that moves zero points."""
    generator = np.random.default_rng(5)
    weight = generator.normal(0.01, 0.05, (ROWS, COLUMNS)).astype(np.float32)
    weight[:, ::50] *= 4
    parameters = number_format.widest_parameters(weight)
    return number_format.pack(Encoded(number_format.nearest_codes(weight, parameters), parameters))


@pytest.mark.parametrize(("source", "target"), list(product(NAMES, NAMES)))
def test_values_move_as_the_structure_says(source: str, target: str) -> None:
    before, after = get_format(source), get_format(target)
    found = fit(before, after, COLUMNS)
    if found is None:
        return
    planes = rounded(before)
    values = before.dequantize(planes, COLUMNS)
    again = after.dequantize(moved(planes, before, after, COLUMNS), COLUMNS)
    if found is Fit.EXACT:
        assert np.array_equal(again, values)
    else:
        # One scale, and for a minimum one more number as large as 255 scales, each rounded to 11 bits.
        assert np.abs(again - values).max() <= 2 * 2.0**-11 * 255 / 128 * np.abs(values).max() + 2.0**-24 * 256


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("q4_0", "int4_g32", Fit.EXACT),
        ("int4_g32", "q4_0", Fit.EXACT),
        ("int4_g128", "q4_0", Fit.EXACT),
        ("q4_0", "int4_g128", None),
        ("q8_0", "int8_g32", Fit.EXACT),
        ("int4_g128_asym", "q4_1", Fit.ROUNDED),
        # Codes less their zero point are -15..15, which 5 bits hold.
        ("int4_g128_asym", "q5_0", Fit.EXACT),
        ("int3_g32_asym", "q4_0", Fit.EXACT),
        ("int4_g32", "int4_g32_asym", Fit.EXACT),
        ("int4_g32_asym", "int4_g32", None),
        ("q4_1", "int4_g32_affine", Fit.EXACT),
        ("q4_1", "int4_g32_asym", None),
        ("int8_channel", "q8_0", Fit.ROUNDED),
        ("int4_tensor", "int4_channel", Fit.EXACT),
        ("int8_channel_narrow", "int8_channel", Fit.EXACT),
        ("int8_channel", "int8_channel_narrow", None),
        ("int8_channel_narrow", "q8_0", Fit.ROUNDED),
        ("int8_channel_pow2", "q8_0", Fit.EXACT),
        ("int8_channel", "int8_channel_pow2", None),
        ("int4_g32", "int5_g32_narrow", Fit.EXACT),
        ("ternary_g128", "q4_0", Fit.EXACT),
        ("int4_channel", "int4_tensor", None),
        ("q6_k", "int6_g16", Fit.ROUNDED),
        ("int6_g16", "q6_k", None),
        ("q5_0", "int4_g32", None),
        ("q4_k", "int4_g32_asym", None),
        ("nf4", "q4_0", None),
        ("mxfp4", "mxfp4", Fit.EXACT),
    ],
)
def test_what_fits_what(source: str, target: str, expected: Fit | None) -> None:
    assert fit(get_format(source), get_format(target), COLUMNS) is expected


def test_rows_that_do_not_divide_fit_nothing() -> None:
    assert fit(get_format("int4_channel"), get_format("q4_0"), 80) is None


def test_formats_of_other_kinds_have_no_grid() -> None:
    without = {name for name, item in FORMATS.items() if grid_shape(item) is None}
    assert {"f32", "nf4", "mxfp4", "iq4_nl", "q4_k", "fp8_e4m3_channel", "palette4_tensor"} <= without
