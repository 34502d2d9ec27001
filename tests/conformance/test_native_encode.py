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
from lilliput.formats.codebook_vectors import CodebookVectors
from lilliput.formats.vector_search import vector_table
from lilliput.methods.searched_scales import encode_with_arrays, mean_square_share, relative_importance

ROOT = Path(__file__).resolve().parent.parent.parent
VECTORS = [item for item in FORMATS.values() if isinstance(item, CodebookVectors)]


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


def vectors_of(number_format: CodebookVectors, n: int) -> FloatArray:
    """[unit, n] in units of the scale, about as large as the codebook's levels; some zero and some far too large."""
    draw = np.random.RandomState(6)
    largest = vector_table(number_format.grid).levels[-1]
    y = 0.4 * largest * draw.standard_normal((number_format.unit, n))
    y[:, 0] = 0
    y[:, 1] *= 1e6
    return y.astype(np.float32)


def by_arrays(number_format: CodebookVectors, y: FloatArray, metric: FloatArray) -> np.ndarray:
    """Codes of y under scales of 1: one row a vector."""
    n = y.shape[1]
    parameters = {
        "scale": np.full((n, 1), 2 / number_format.factor, dtype=np.float16),
        "scale_code": np.zeros((n, 256 // number_format.group_size), dtype=np.uint8),
    }
    if number_format.group_choice is not None:
        parameters[number_format.group_choice] = parameters["scale_code"]
        y = y + np.float32(0.125)
    columns = slice(0, number_format.unit)
    return number_format.nearest_codes_by_arrays(y.T, parameters, columns, metric=metric)[:, 0]


def decoded(number_format: CodebookVectors, codes: np.ndarray) -> FloatArray:
    zeros = np.zeros((len(codes), 256 // number_format.group_size), dtype=np.uint8)
    parameters = {} if number_format.group_choice is None else {number_format.group_choice: zeros}
    level = number_format.level(codes[:, None], parameters, slice(0, number_format.unit))
    return level if number_format.group_choice is None else level - np.float32(0.125)


@pytest.mark.parametrize("isa", _native.available_instruction_sets())
@pytest.mark.parametrize("number_format", VECTORS, ids=repr)
def test_native_vectors_under_a_diagonal_are_those_of_the_array_code(number_format: CodebookVectors, isa: str) -> None:
    y = vectors_of(number_format, 203)
    diagonal = np.exp(np.random.RandomState(2).standard_normal(len(y))).astype(np.float32)
    found = _native.nearest_vectors(number_format.name, y, np.diag(diagonal), 1, isa)
    np.testing.assert_array_equal(found, by_arrays(number_format, y, diagonal))
    assert found.dtype == np.int32


@pytest.mark.parametrize("isa", _native.available_instruction_sets())
@pytest.mark.parametrize("number_format", VECTORS, ids=repr)
def test_native_vectors_under_a_metric_are_as_near_as_the_array_codes(number_format: CodebookVectors, isa: str) -> None:
    y = vectors_of(number_format, 203)
    root = np.random.RandomState(3).standard_normal((len(y), len(y))) + 2 * np.eye(len(y))
    metric = (root @ root.T / 40).astype(np.float32)

    def errors(codes: np.ndarray) -> np.ndarray:
        residual = (decoded(number_format, codes) - y.T).astype(np.float64)
        return np.einsum("ni,ij,nj->n", residual, metric, residual)

    found = _native.nearest_vectors(number_format.name, y, metric, 1, isa)
    ours, theirs = errors(found), errors(by_arrays(number_format, y, metric))
    # Scores are rounded in another order: now and then a start of nearly the same score wins, for better or worse.
    assert np.isclose(ours, theirs, rtol=1e-3).mean() > 0.97
    assert abs(np.log(ours[2:].sum() / theirs[2:].sum())) < 0.01
    np.testing.assert_array_equal(_native.nearest_vectors(number_format.name, y, metric, 3, isa), found)


def test_native_vectors_name_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="q4_k: its codes are no vectors"):
        _native.nearest_vectors("q4_k", np.zeros((1, 4), dtype=np.float32), np.eye(1, dtype=np.float32))
    with pytest.raises(ValueError, match="iq3_s: vectors of 8 columns and a metric of 8 by 8 where both are 4"):
        _native.nearest_vectors("iq3_s", np.zeros((8, 4), dtype=np.float32), np.eye(8, dtype=np.float32))
