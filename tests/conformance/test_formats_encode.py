# SPDX-License-Identifier: Apache-2.0
"""What every number format that encodes promises: fit, nearest codes and packing, apart and together."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import pytest

from lilliput.arrays import FloatArray
from lilliput.errors import FormatError
from lilliput.formats import FORMATS, NumberFormat
from lilliput.formats.codebook_vectors import CodebookVectors, ShiftedVectors
from lilliput.formats.integer_power_scale import PowerScaleInteger
from lilliput.formats.ordered_groups import OrderedGroups
from lilliput.formats.outliers import WithOutliers
from lilliput.formats.palette import Palette
from lilliput.formats.scoped_number import ScopedNumber
from lilliput.methods import METHODS
from lilliput.methods.searched_scales import encode, encode_with_arrays, error_weights, relative_importance
from lilliput.records import NO_INPUTS, LayerInputs

ROWS, COLUMNS = 6, 512
ENCODERS = [number_format for number_format in FORMATS.values() if number_format.can_encode]
SCALED = [number_format for number_format in ENCODERS if number_format.scopes]
VECTORS = [number_format for number_format in ENCODERS if number_format.unit > 1]


def case() -> tuple[FloatArray, FloatArray]:
    """Heavy-tailed weights with a few large columns, and an importance that spans orders of magnitude."""
    draw = np.random.RandomState(3)
    weight = 0.02 * draw.standard_t(4, (ROWS, COLUMNS))
    weight[:, ::97] *= 6
    return weight.astype(np.float32), np.exp(1.5 * draw.standard_normal(COLUMNS)).astype(np.float32)


def squared_error(number_format: NumberFormat, planes: dict[str, np.ndarray], importance: FloatArray | float) -> float:
    residual = number_format.dequantize(planes, COLUMNS).astype(np.float64) - case()[0]
    return float((importance * residual**2).sum())


@pytest.mark.parametrize("number_format", ENCODERS, ids=repr)
def test_packing_loses_nothing(number_format: NumberFormat) -> None:
    weight, _ = case()
    encoded = number_format.encode(weight)
    planes = number_format.pack(encoded)
    for name, spec in number_format.stored_planes(ROWS, COLUMNS).items():
        assert planes[name].dtype == spec.dtype
        assert planes[name].shape == spec.shape
    unpacked = number_format.unpack(planes, COLUMNS)
    np.testing.assert_array_equal(unpacked.codes, encoded.codes)
    assert set(unpacked.parameters) == set(encoded.parameters)
    for name, stored in encoded.parameters.items():
        assert unpacked.parameters[name].dtype == stored.dtype
        np.testing.assert_array_equal(unpacked.parameters[name], stored)


@pytest.mark.parametrize("number_format", SCALED, ids=repr)
def test_searched_scales_beat_round_to_nearest(number_format: NumberFormat) -> None:
    weight, _ = case()
    # The search alone: stretching its scales afterwards gives squared error away for what it gains behind the layer.
    searched = encode(number_format, weight)
    nearest = METHODS["round_to_nearest"].quantize(number_format, weight, NO_INPUTS, threads=1)
    # Large groups of fine codes clip next to nothing, and a search for other errors than plain ones may lose a little.
    wanted = 0.98 if number_format.bits_per_weight < 6 or not isinstance(number_format, ScopedNumber) else 1.01
    assert squared_error(number_format, searched, 1.0) < wanted * squared_error(number_format, nearest, 1.0)


@pytest.mark.parametrize("number_format", SCALED, ids=repr)
def test_importance_lowers_the_weighted_error(number_format: NumberFormat) -> None:
    weight, importance = case()
    method = METHODS["searched_scales"]
    without = method.quantize(number_format, weight, NO_INPUTS, threads=1)
    weighted = method.quantize(number_format, weight, LayerInputs(1, importance), threads=1)
    # Powers of two are too few for importance to change the choice of every row.
    slack = 1.0 if isinstance(number_format, PowerScaleInteger) else 1 - 1e-9
    limit = slack * squared_error(number_format, without, importance)
    assert squared_error(number_format, weighted, importance) <= limit


@pytest.mark.parametrize("number_format", SCALED, ids=repr)
def test_scale_of_importance_does_not_matter(number_format: NumberFormat) -> None:
    weight, importance = case()
    method = METHODS["searched_scales"]
    once = method.quantize(number_format, weight, LayerInputs(1, importance), threads=1)
    scaled = method.quantize(number_format, weight, LayerInputs(1, importance * np.float32(1024)), threads=1)
    for name, plane in once.items():
        np.testing.assert_array_equal(plane, scaled[name])


@pytest.mark.parametrize("number_format", ENCODERS, ids=repr)
def test_scope_by_scope_gives_what_encode_gives(number_format: NumberFormat) -> None:
    weight, importance = case()
    weights = error_weights(weight, relative_importance(importance))
    parameters: dict[str, np.ndarray] = {}
    for scope in range(len(number_format.scopes)):
        parameters |= number_format.fit(weight, weights, scope=scope, outer=parameters)
    encoded = number_format.encode(weight, weights)
    assert set(parameters) == set(encoded.parameters)
    for name, stored in encoded.parameters.items():
        np.testing.assert_array_equal(parameters[name], stored)
    np.testing.assert_array_equal(number_format.weighted_codes(weight, parameters, weights), encoded.codes)


@pytest.mark.parametrize("number_format", SCALED, ids=repr)
def test_a_slice_of_whole_blocks_fits_like_the_whole(number_format: NumberFormat) -> None:
    if any(scope.columns is None for scope in number_format.scopes):
        pytest.skip("its parameters are those of whole rows")
    weight, importance = case()
    part = number_format.encode(weight[:, 256:], importance[None, 256:])
    whole = number_format.encode(weight, importance[None, :])
    np.testing.assert_array_equal(part.codes, whole.codes[:, 256 // number_format.unit :])


@pytest.mark.parametrize("number_format", ENCODERS, ids=repr)
def test_codes_column_by_column_are_those_of_the_whole(number_format: NumberFormat) -> None:
    weight, _ = case()
    encoded = number_format.encode(weight)
    unit = number_format.unit
    for column in (0, 31, 32, 255, 256, COLUMNS - 1):
        index = column // unit
        columns = slice(index * unit, (index + 1) * unit)
        codes = number_format.nearest_codes(weight[:, columns], encoded.parameters, columns)
        np.testing.assert_array_equal(codes, encoded.codes[:, index : index + 1])


@pytest.mark.parametrize("number_format", [item for item in SCALED if item.unit == 1], ids=repr)
def test_no_other_code_is_nearer(number_format: NumberFormat) -> None:
    weight, _ = case()
    encoded = number_format.encode(weight)
    chosen = np.abs(number_format.values(encoded.codes, encoded.parameters) - weight)
    # Reciprocal and product round three times: a tie may fall to the other side by that much of the largest value.
    slack = 3 * np.finfo(np.float32).eps * np.abs(weight).max()
    for step in (-1, 1):
        other = encoded.codes.astype(np.int32) + step
        legal = (other >= 1 if number_format.name == "q8_0" else other >= 0) & (other <= encoded.codes.max())
        codes = np.where(legal, other, encoded.codes).astype(np.uint8)
        # A pattern beside the chosen one may stand for NaN.
        assert not (chosen > np.abs(number_format.values(codes, encoded.parameters) - weight) + slack).any()


def all_vectors(number_format: NumberFormat, parameters: Mapping[str, np.ndarray]) -> tuple[np.ndarray, FloatArray]:
    """Every code of the first vector of a row (of more than 2^18, a random part) and its values [codes, unit]."""
    assert isinstance(number_format, CodebookVectors)
    bits = {"iq3_s": 13, "iq3_xxs": 23, "iq2_s": 18, "iq2_xs": 16, "iq2_xxs": 15, "iq1_m": 12, "iq1_s": 11}
    n = 1 << bits[number_format.name]
    codes = np.arange(n) if n <= 1 << 18 else np.random.RandomState(1).randint(0, n, 1 << 18)
    codes = codes.astype(np.int32)[:, None]
    repeated = {name: np.repeat(array[:1], len(codes), axis=0) for name, array in parameters.items()}
    return codes, number_format.values(codes, repeated, slice(0, number_format.unit))


def under_metric(residual: FloatArray, metric: np.ndarray) -> np.ndarray:
    return np.einsum("ni,ij,nj->n", residual.astype(np.float64), metric, residual.astype(np.float64))


@pytest.mark.parametrize("kind", ["none", "diagonal", "full"])
@pytest.mark.parametrize("number_format", VECTORS, ids=repr)
def test_no_other_vector_is_nearer(number_format: NumberFormat, kind: str) -> None:
    unit = number_format.unit
    weight, _ = case()
    parameters = {name: array[:1] for name, array in number_format.encode(weight).parameters.items()}
    _, values = all_vectors(number_format, parameters)
    draw = np.random.RandomState(4)
    root = draw.standard_normal((unit, unit))
    metric = {"none": np.eye(unit), "diagonal": np.diag(np.exp(draw.standard_normal(unit)))}.get(kind)
    metric = root @ root.T if metric is None else metric
    given = {"none": None, "diagonal": np.diag(metric).astype(np.float32)}.get(kind, metric.astype(np.float32))
    excess = []
    for _ in range(12):
        target = (0.03 * draw.standard_normal((1, unit))).astype(np.float32)
        found = number_format.nearest_codes(target, parameters, slice(0, unit), metric=given)
        error = under_metric(number_format.values(found, parameters, slice(0, unit)) - target, metric)[0]
        least = under_metric(values - target, metric).min()
        excess.append(error / least - 1)
    # Exact under a diagonal (to rounding); under a full metric signs and entries take turns, and may stop early.
    assert np.max(excess) < 1e-4 if kind != "full" else np.mean(excess) < 0.5
    if kind == "full" and isinstance(number_format, ShiftedVectors):
        assert np.max(excess) < 1e-4


@pytest.mark.parametrize("number_format", VECTORS, ids=repr)
def test_a_full_metric_is_never_worse_served_than_by_its_diagonal(number_format: NumberFormat) -> None:
    weight, _ = case()
    unit = number_format.unit
    parameters = number_format.encode(weight).parameters
    root = np.random.RandomState(4).standard_normal((unit, unit)) + 2 * np.eye(unit)
    metric = root @ root.T
    columns = slice(256, 256 + unit)
    target = weight[:, columns]

    def errors(given: np.ndarray) -> np.ndarray:
        codes = number_format.nearest_codes(target, parameters, columns, metric=given.astype(np.float32))
        return under_metric(number_format.values(codes, parameters, columns) - target, metric)

    full, diagonal = errors(metric), errors(np.diag(metric))
    assert (full <= diagonal * (1 + 1e-4)).all()
    assert full.sum() < diagonal.sum()


@pytest.mark.parametrize("number_format", ENCODERS, ids=repr)
def test_codes_of_decoded_values_decode_to_the_same_values(number_format: NumberFormat) -> None:
    weight, _ = case()
    encoded = number_format.encode(weight)
    values = number_format.values(encoded.codes, encoded.parameters)
    again = number_format.values(number_format.nearest_codes(values, encoded.parameters), encoded.parameters)
    np.testing.assert_array_equal(again, values)


@pytest.mark.parametrize("number_format", SCALED, ids=repr)
def test_linear_terms_add_up_to_the_values(number_format: NumberFormat) -> None:
    weight, _ = case()
    encoded = number_format.encode(weight)
    if isinstance(number_format, Palette | PowerScaleInteger | OrderedGroups | WithOutliers):
        with pytest.raises(FormatError, match=f"{re.escape(number_format.name)}: its"):
            number_format.linear_terms(encoded.codes, encoded.parameters)
        return
    terms = number_format.linear_terms(encoded.codes, encoded.parameters)
    floats = {name for name in number_format.scopes[0].parameters if encoded.parameters[name].dtype.kind == "f"}
    assert set(terms) == floats
    if not terms:
        return
    total = np.zeros_like(weight, dtype=np.float64)
    for name, term in terms.items():
        outer = encoded.parameters[name].astype(np.float64)
        total += np.repeat(outer, COLUMNS // outer.shape[1], axis=1) * term
    values = number_format.values(encoded.codes, encoded.parameters)
    # Products of an fp16 scale, a small scale code and a level are exact or rounded once; the sum rounds once more.
    np.testing.assert_allclose(values, total, rtol=4 * np.finfo(np.float32).eps, atol=1e-7)


@pytest.mark.parametrize("number_format", ENCODERS, ids=repr)
def test_encoding_does_not_depend_on_how_rows_are_cut(
    number_format: NumberFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, importance = case()
    relative = relative_importance(importance)
    whole = encode_with_arrays(number_format, weight, relative)
    monkeypatch.setattr("lilliput.methods.searched_scales.PIECE_WEIGHTS", 2 * COLUMNS)
    pieces = encode_with_arrays(number_format, weight, relative)
    for name, plane in whole.items():
        np.testing.assert_array_equal(plane, pieces[name])


@pytest.mark.parametrize("number_format", [f for f in FORMATS.values() if not f.can_encode], ids=repr)
def test_formats_without_encoder_say_so(number_format: NumberFormat) -> None:
    for method in METHODS.values():
        assert not method.supports(number_format)
