# SPDX-License-Identifier: Apache-2.0
"""The five-second test that runs before every commit: the smallest walk through the core."""

from __future__ import annotations

import numpy as np

from lilliput.formats import FORMATS, get_format


def test_a_block_survives_encoding_and_packing() -> None:
    weight = np.random.default_rng(0).normal(size=(2, 256)).astype(np.float32)
    for name in ("q8_0", "q4_k"):
        number_format = get_format(name)
        planes = number_format.pack(number_format.encode(weight))
        error = np.abs(number_format.dequantize(planes, 256) - weight).max()
        assert error < 4.0 / 2 ** (number_format.bits_per_weight - 1)


def test_every_format_computes_its_bits_per_weight() -> None:
    assert all(0 < item.bits_per_weight <= 64 for item in FORMATS.values())
