# SPDX-License-Identifier: Apache-2.0
"""Stretched scales: what least squares took from the length of the weights is given back."""

from __future__ import annotations

import numpy as np
import pytest

from lilliput.containers.gguf_types import holds
from lilliput.formats import FORMATS, BlockFormat
from lilliput.methods.searched_scales import encode, relative_importance, stretched

STRETCHED = [
    name for name, form in FORMATS.items() if isinstance(form, BlockFormat) and form.half_places and form.can_encode
]


def weights(seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal((4, 512)).astype(np.float32)


def test_every_format_with_fp16_scales_says_where_they_are() -> None:
    searched = {name for name, form in FORMATS.items() if isinstance(form, BlockFormat) and form.can_encode}
    searched = {name for name in searched if FORMATS[name].scopes and holds(FORMATS[name])}
    # Exponents, fp8 numbers and scales that are spread over several words cannot be stretched in place. Ternary formats
    # leave so much that a longer vector is a worse one.
    assert searched - set(STRETCHED) == {"mxfp4", "nvfp4", "iq1_m", "iq1_s", "tq1_0", "tq2_0"}


@pytest.mark.parametrize("name", STRETCHED)
def test_blocks_project_onto_their_weights_with_length_one(name: str) -> None:
    number_format, weight = FORMATS[name], weights()
    importance = np.random.RandomState(1).uniform(0.1, 5.0, 512).astype(np.float32)
    before = encode(number_format, weight, importance)
    after = stretched(number_format, before, weight, importance)
    size = number_format.block_size
    weighted = (weight * relative_importance(importance)).reshape(4, -1, size)
    original = weight.reshape(4, -1, size)

    def length(planes: dict) -> np.ndarray:
        values = number_format.dequantize(planes, 512).reshape(4, -1, size)
        return np.einsum("rbc,rbc->rb", weighted, values) / np.einsum("rbc,rbc->rb", weighted, original)

    # fp16 keeps 11 bits of each scale.
    np.testing.assert_allclose(length(after), 1.0, atol=2.0**-10)
    assert np.abs(length(before) - 1.0).max() > np.abs(length(after) - 1.0).max()
    codes = (number_format.unpack(planes, 512).codes for planes in (before, after))
    np.testing.assert_array_equal(*codes)


def test_zeros_stay_zeros_and_huge_weights_stay_finite() -> None:
    weight = weights()
    weight[0] = 0.0
    weight[1] *= 1e8
    for name in ("q4_0", "iq2_s", "q2_k"):
        planes = stretched(FORMATS[name], encode(FORMATS[name], weight), weight)
        values = FORMATS[name].dequantize(planes, 512)
        assert not values[0].any()
        assert np.isfinite(values).all()
