# SPDX-License-Identifier: Apache-2.0
"""The native encoders give the array code's bytes, whatever the instruction set and the number of threads."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from lilliput import _native
from lilliput.arrays import FloatArray
from lilliput.formats import FORMATS
from lilliput.methods.searched_scales import encode_with_arrays, mean_square_share, relative_importance

ROOT = Path(__file__).resolve().parent.parent.parent


def unkind_rows(columns: int) -> FloatArray:
    """Heavy tails, zeros, constants, tiny and huge numbers: one kind a row."""
    draw = np.random.RandomState(8)
    weight = draw.standard_t(4, (9, columns)) * 0.02
    weight[1] = 0
    weight[2, : columns // 2] = 0
    weight[3] = 0.75
    weight[4] = -0.75
    weight[5] *= 1e-6
    weight[6] *= 1e-40
    weight[7, 3] = 3e38
    weight[8] = np.abs(weight[8])
    return weight.astype(np.float32)


@pytest.mark.parametrize("isa", _native.available_instruction_sets())
@pytest.mark.parametrize("name", _native.encoders())
def test_native_encoder_gives_the_bytes_of_the_array_code(name: str, isa: str) -> None:
    # 1280 columns are 5 blocks of 256 and 40 groups of 32: no instruction set's lanes divide both.
    weight = unkind_rows(1280)
    importance = np.exp(1.5 * np.random.RandomState(2).standard_normal(1280)).astype(np.float32)
    for relative in (None, relative_importance(importance)):
        expected = encode_with_arrays(FORMATS[name], weight, relative)["blocks"]
        share = mean_square_share(FORMATS[name])
        np.testing.assert_array_equal(_native.encode(name, weight, relative, share, 1, isa), expected)


@pytest.mark.parametrize("name", _native.encoders())
def test_native_encoder_does_not_depend_on_threads(name: str) -> None:
    weight = unkind_rows(512)
    np.testing.assert_array_equal(_native.encode(name, weight, threads=3), _native.encode(name, weight))


def test_native_encoders_are_of_formats_that_encode() -> None:
    names = set(_native.encoders())
    assert names
    assert names <= {name for name, number_format in FORMATS.items() if number_format.can_encode}


def test_native_encoder_names_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="q4_k: rows of 96 weights do not divide into blocks of 256"):
        _native.encode("q4_k", np.zeros((1, 96), dtype=np.float32))
    with pytest.raises(ValueError, match="q4_0: importance of 3 columns for rows of 32"):
        _native.encode("q4_0", np.zeros((1, 32), dtype=np.float32), np.ones(3, dtype=np.float32))
    with pytest.raises(ValueError, match="mxfp4: no native encoder"):
        _native.encode("mxfp4", np.zeros((1, 256), dtype=np.float32))


def test_native_encoder_of_no_rows_gives_no_rows() -> None:
    assert _native.encode("q4_k", np.zeros((0, 256), dtype=np.float32)).shape == (0, 144)


def test_committed_candidates_are_what_the_formats_declare(capsys: pytest.CaptureFixture[str]) -> None:
    path = ROOT / "tools" / "generate_encoder_candidates.py"
    spec = importlib.util.spec_from_file_location("generate_encoder_candidates", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.main(["--check"]) == 0, capsys.readouterr().out
