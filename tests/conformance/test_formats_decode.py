# SPDX-License-Identifier: Apache-2.0
"""Every number format decodes random bytes bit for bit as gguf-py does."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from stored_planes import random_planes

from lilliput import _native
from lilliput.arrays import ByteArray, FloatArray
from lilliput.formats import FORMATS, BlockFormat, NumberFormat

ROWS, COLUMNS = 48, 1024
BLOCK_FORMATS = [number_format for number_format in FORMATS.values() if isinstance(number_format, BlockFormat)]
GGML_TYPES = [item for item in BLOCK_FORMATS if item.name.upper() in gguf.GGMLQuantizationType.__members__]
DECODED_BY_GGUF = {"f32", "f16"} | {quantization_type.name.lower() for quantization_type in gguf.quants._type_traits}
NATIVE = set(_native.formats())


def random_blocks(number_format: NumberFormat, rows: int = ROWS) -> ByteArray:
    generator = np.random.default_rng(11)
    row_bytes = number_format.stored_bytes(1, COLUMNS)
    return generator.integers(0, 256, (rows, row_bytes), dtype=np.uint8)


def assert_same_bits(actual: FloatArray, expected: FloatArray) -> None:
    """Equal bit for bit; any NaN equals any NaN."""
    assert actual.dtype == expected.dtype == np.float32
    assert actual.shape == expected.shape
    is_nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(actual), is_nan)
    np.testing.assert_array_equal(actual[~is_nan].view(np.uint32), expected[~is_nan].view(np.uint32))


def test_every_type_that_gguf_can_dequantize_is_a_format() -> None:
    assert set(FORMATS) >= DECODED_BY_GGUF


@pytest.mark.parametrize("number_format", GGML_TYPES, ids=repr)
def test_block_sizes_are_those_of_gguf(number_format: BlockFormat) -> None:
    quantization_type = gguf.GGMLQuantizationType[number_format.name.upper()]
    assert gguf.GGML_QUANT_SIZES[quantization_type] == (number_format.block_size, number_format.block_bytes)


@pytest.mark.parametrize("number_format", [f for f in BLOCK_FORMATS if f.name in DECODED_BY_GGUF], ids=repr)
def test_decode_gives_the_bits_of_gguf_on_random_bytes(number_format: BlockFormat) -> None:
    blocks = random_blocks(number_format)
    with np.errstate(all="ignore"):
        expected = gguf.dequantize(blocks, gguf.GGMLQuantizationType[number_format.name.upper()])
    assert_same_bits(number_format.dequantize({"blocks": blocks}, COLUMNS), expected)


@pytest.mark.parametrize("number_format", [f for f in BLOCK_FORMATS if f.name in NATIVE], ids=repr)
def test_native_decode_gives_the_bits_of_the_array_code(number_format: BlockFormat) -> None:
    blocks = random_blocks(number_format)
    expected = number_format.dequantize({"blocks": blocks}, COLUMNS)
    native = _native.decode(number_format.name, blocks, expected.size).reshape(expected.shape)
    assert_same_bits(native, expected)


@pytest.mark.parametrize("number_format", FORMATS.values(), ids=repr)
def test_values_of_a_column_range_are_that_part_of_the_whole(number_format: NumberFormat) -> None:
    planes = random_planes(number_format, 4, COLUMNS)
    encoded = number_format.unpack(planes, COLUMNS)
    with np.errstate(all="ignore"):
        whole = number_format.dequantize(planes, COLUMNS)
        start, stop = 3 * number_format.unit, 77 * number_format.unit
        part = number_format.values(encoded.codes[:, 3:77], encoded.parameters, slice(start, stop))
    assert_same_bits(part, np.ascontiguousarray(whole[:, start:stop]))


def can_pack(number_format: NumberFormat) -> bool:
    return type(number_format).pack_blocks is not BlockFormat.pack_blocks  # type: ignore[attr-defined]


@pytest.mark.parametrize("number_format", [f for f in BLOCK_FORMATS if can_pack(f)], ids=repr)
def test_pack_is_the_inverse_of_unpack_on_random_bytes(number_format: BlockFormat) -> None:
    blocks = random_blocks(number_format)
    if number_format.name == "tq1_0":
        # 243 of 256 bytes stand for five ternary digits; the others are read as one of those and never written.
        blocks = number_format.pack(number_format.unpack({"blocks": blocks}, COLUMNS))["blocks"]
    encoded = number_format.unpack({"blocks": blocks}, COLUMNS)
    np.testing.assert_array_equal(number_format.pack(encoded)["blocks"], blocks)


@pytest.mark.parametrize("number_format", FORMATS.values(), ids=repr)
def test_codes_and_parameters_have_the_shapes_of_unit_and_scopes(number_format: NumberFormat) -> None:
    encoded = number_format.unpack(random_planes(number_format, ROWS, COLUMNS), COLUMNS)
    assert encoded.codes.shape == (ROWS, COLUMNS // number_format.unit)
    declared = {
        name: (-(-ROWS // (scope.rows or ROWS)), COLUMNS // (scope.columns or COLUMNS))
        for scope in number_format.scopes
        for name in scope.parameters
    }
    assert {name: array.shape[:2] for name, array in encoded.parameters.items()} == declared


@pytest.mark.parametrize("number_format", FORMATS.values(), ids=repr)
def test_read_only_memory_decodes(number_format: NumberFormat) -> None:
    planes = random_planes(number_format, 2, COLUMNS)
    for plane in planes.values():
        plane.flags.writeable = False
    with np.errstate(all="ignore"):
        assert number_format.dequantize(planes, COLUMNS).shape == (2, COLUMNS)


@pytest.mark.parametrize("number_format", FORMATS.values(), ids=repr)
def test_rows_cut_apart_and_joined_are_the_same_matrix(number_format: NumberFormat) -> None:
    rows = 2 * 128 + 40
    planes = random_planes(number_format, rows, 256)
    whole = number_format.dequantize(planes, 256)
    step = number_format.row_step
    cut = 128 if step is None or 128 % step == 0 else step
    parts = [number_format.row_range(planes, start, min(start + cut, rows)) for start in range(0, rows, cut)]
    for name, spec in number_format.stored_planes(rows, 256).items():
        joined = number_format.joined_rows(parts)[name]
        assert (joined.dtype, joined.shape) == (spec.dtype, spec.shape)
        np.testing.assert_array_equal(joined.view(np.uint8), planes[name].view(np.uint8))
    assert_same_bits(np.concatenate([number_format.dequantize(part, 256) for part in parts]), whole)
