# SPDX-License-Identifier: Apache-2.0
"""Edge cases of single formats, and of looking formats up."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from lilliput.errors import FormatError
from lilliput.formats import FORMATS, get_format
from lilliput.formats.f16 import count_overflows

ROOT = Path(__file__).resolve().parent.parent.parent


def test_committed_codebooks_are_what_the_gguf_package_gives(capsys: pytest.CaptureFixture[str]) -> None:
    path = ROOT / "tools" / "generate_codebooks.py"
    spec = importlib.util.spec_from_file_location("generate_codebooks", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.main(["--check"]) == 0, capsys.readouterr().out


def test_format_names_are_found_in_any_case() -> None:
    assert get_format("Q4_K") is get_format("q4_k") is FORMATS["q4_k"]


def test_unknown_format_suggests_the_nearest() -> None:
    with pytest.raises(FormatError, match=r"format 'q4k'; nearest: Q4_K, .*; `lilliput formats` lists all"):
        get_format("q4k")


@pytest.mark.parametrize("name", ["Q8_1", "Q8_K"])
def test_activation_formats_are_named_in_the_error(name: str) -> None:
    with pytest.raises(FormatError, match=r"an activation format inside llama\.cpp; no file holds it"):
        get_format(name)


def test_q1_0_bits_choose_the_sign_of_the_scale() -> None:
    bits = np.random.default_rng(3).integers(0, 2, 128).astype(np.uint8)
    block = np.concatenate([np.array([1.5], dtype="<f2").view(np.uint8), np.packbits(bits, bitorder="little")])
    decoded = FORMATS["q1_0"].dequantize({"blocks": block[None]}, 128)
    np.testing.assert_array_equal(decoded[0], np.where(bits == 1, 1.5, -1.5))


@pytest.mark.parametrize("name", ["f64", "i8", "i16", "i32", "i64"])
def test_plain_arrays_decode_to_their_numbers(name: str) -> None:
    numbers = np.array([[0, 1, -1, 100, -128, 127]])
    dtype = {"f64": "<f8", "i8": "<i1", "i16": "<i2", "i32": "<i4", "i64": "<i8"}[name]
    blocks = numbers.astype(dtype).view(np.uint8)
    np.testing.assert_array_equal(FORMATS[name].dequantize({"blocks": blocks}, 6), numbers.astype(np.float32))


@pytest.mark.parametrize(
    ("value", "bits"),
    [
        (1.0, 0x3F80),
        (1.00390625, 0x3F80),  # half a step above 1: to even, down
        (1.01171875, 0x3F82),  # one and a half steps above 1: to even, up
        (-1.01171875, 0xBF82),
        (3.4e38, 0x7F80),  # above the largest number: infinity
        (np.inf, 0x7F80),
        (-np.inf, 0xFF80),
        (1e-40, 0x0001),  # a denormal
        (-0.0, 0x8000),
    ],
)
def test_bf16_rounds_to_nearest_even(value: float, bits: int) -> None:
    codes = FORMATS["bf16"].nearest_codes(np.array([[value]], dtype=np.float32), {})
    assert int(codes[0, 0]) & 0xFFFF == bits


def test_bf16_keeps_nan() -> None:
    number_format = FORMATS["bf16"]
    nans = np.array([[0x7F800001, 0xFFFFFFFF]], dtype=np.uint32).view(np.float32)
    assert np.isnan(number_format.values(number_format.nearest_codes(nans, {}), {})).all()


def test_f16_overflows_are_counted_exactly() -> None:
    edge = np.array([65504, 65519.996, 65520, -65520, 1e30, np.inf, np.nan], dtype=np.float32)
    assert count_overflows(edge) == 3
    codes = FORMATS["f16"].nearest_codes(edge[None], {})
    assert int(np.isinf(codes).sum()) == 3 + 1


def test_rows_that_do_not_divide_into_blocks_are_refused_with_advice() -> None:
    with pytest.raises(FormatError, match=r"blk\.0\.ffn_down\.weight: row length 576 .* Q4_K's block of 256"):
        FORMATS["q4_k"].check_columns("blk.0.ffn_down.weight", 576)


def test_bits_per_weight_is_computed_from_the_layout() -> None:
    assert FORMATS["q4_k"].bits_per_weight == 4.5
    assert FORMATS["q6_k"].bits_per_weight == 6.5625
    assert FORMATS["iq1_s"].bits_per_weight == 1.5625
