# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of every format gives the same bits on torch as on numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lilliput.formats import FORMATS, NumberFormat

COLUMNS = 512


@pytest.mark.parametrize("number_format", FORMATS.values(), ids=repr)
def test_values_on_torch_have_the_bits_of_numpy(number_format: NumberFormat) -> None:
    row_bytes = number_format.stored_bytes(1, COLUMNS)
    blocks = np.random.default_rng(5).integers(0, 256, (8, row_bytes), dtype=np.uint8)
    encoded = number_format.unpack({"blocks": blocks}, COLUMNS)
    expected = number_format.dequantize({"blocks": blocks}, COLUMNS)
    parameters = {name: torch.from_numpy(np.array(array)) for name, array in encoded.parameters.items()}
    actual = number_format.values(torch.from_numpy(np.array(encoded.codes)), parameters).numpy()
    is_nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(actual), is_nan)
    np.testing.assert_array_equal(actual[~is_nan].view(np.uint32), expected[~is_nan].view(np.uint32))
