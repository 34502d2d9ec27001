# SPDX-License-Identifier: Apache-2.0
"""The native decoders give the bits that gguf-py gives."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from lilliput import _native
from lilliput.arrays import ByteArray, FloatArray

N_BLOCKS = 512


def random_blocks(name: str) -> ByteArray:
    _, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name.upper()]]
    return np.random.default_rng(7).integers(0, 256, (N_BLOCKS, block_bytes), dtype=np.uint8)


def reference(name: str, blocks: ByteArray) -> FloatArray:
    with np.errstate(all="ignore"):
        values: FloatArray = gguf.dequantize(blocks, gguf.GGMLQuantizationType[name.upper()])
    return values.ravel()


def assert_same_bits(actual: FloatArray, expected: FloatArray) -> None:
    """Equal bit for bit; any NaN equals any NaN."""
    assert actual.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected))
    is_number = ~np.isnan(expected)
    np.testing.assert_array_equal(actual[is_number].view(np.uint32), expected[is_number].view(np.uint32))


def test_every_float_type_that_gguf_can_dequantize_is_there() -> None:
    plain = {"f32", "f16"}
    assert set(_native.formats()) == plain | {qtype.name.lower() for qtype in gguf.quants._type_traits}


@pytest.mark.parametrize("name", _native.formats())
def test_native_decode_gives_the_bits_of_gguf_on_random_bytes(name: str) -> None:
    blocks = random_blocks(name)
    expected = reference(name, blocks)
    assert_same_bits(_native.decode(name, blocks, expected.size), expected)


@pytest.mark.parametrize("name", _native.formats())
def test_native_decode_does_not_depend_on_alignment_or_threads(name: str) -> None:
    blocks = random_blocks(name)
    n_values = reference(name, blocks).size
    shifted = np.empty(blocks.size + 1, dtype=np.uint8)[1:]
    shifted[:] = blocks.ravel()
    assert_same_bits(_native.decode(name, shifted, n_values, threads=3), _native.decode(name, blocks, n_values))


def test_native_decode_names_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"unknown number format 'q9_9'.*q4_k"):
        _native.decode("q9_9", np.zeros(4, dtype=np.uint8), 4)
    with pytest.raises(ValueError, match=r"q8_0: 33 bytes for 32 values; a block of 32 values has 34 bytes"):
        _native.decode("q8_0", np.zeros(33, dtype=np.uint8), 32)
    with pytest.raises(ValueError, match=r"q8_0: 34 bytes for 33 values"):
        _native.decode("q8_0", np.zeros(34, dtype=np.uint8), 33)


def test_native_decode_of_nothing_is_nothing() -> None:
    assert _native.decode("q4_k", np.zeros(0, dtype=np.uint8), 0).shape == (0,)
