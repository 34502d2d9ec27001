# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of every format gives the same bits on torch as on numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from stored_planes import random_planes

from lilliput.formats import FORMATS, NumberFormat

COLUMNS = 512


@pytest.mark.parametrize("number_format", FORMATS.values(), ids=repr)
def test_values_on_torch_have_the_bits_of_numpy(number_format: NumberFormat) -> None:
    planes = random_planes(number_format, 8, COLUMNS, seed=5)
    encoded = number_format.unpack(planes, COLUMNS)
    expected = number_format.dequantize(planes, COLUMNS)
    parameters = {name: torch.from_numpy(np.array(array)) for name, array in encoded.parameters.items()}
    actual = number_format.values(torch.from_numpy(np.array(encoded.codes)), parameters).numpy()
    is_nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(actual), is_nan)
    np.testing.assert_array_equal(actual[~is_nan].view(np.uint32), expected[~is_nan].view(np.uint32))


@pytest.mark.parametrize("number_format", [f for f in FORMATS.values() if f.can_encode], ids=repr)
def test_encoding_on_torch_gives_the_codes_of_numpy(number_format: NumberFormat) -> None:
    draw = np.random.RandomState(9)
    weight = (0.02 * draw.standard_t(4, (4, COLUMNS))).astype(np.float32)
    importance = np.exp(draw.standard_normal((1, COLUMNS))).astype(np.float32)
    expected = number_format.encode(weight, importance)
    actual = number_format.encode(torch.from_numpy(weight), torch.from_numpy(importance))
    np.testing.assert_array_equal(actual.codes.numpy(), expected.codes)
    for name, stored in expected.parameters.items():
        np.testing.assert_array_equal(actual.parameters[name].numpy(), stored)
