# SPDX-License-Identifier: Apache-2.0
"""Groups in the order of importance: which column lies in which group, and what methods make of it."""

from __future__ import annotations

import numpy as np
import pytest

from lilliput.arrays import FloatArray
from lilliput.containers.gguf import Gguf
from lilliput.errors import FormatError
from lilliput.formats import get_format
from lilliput.formats.ordered_groups import COLUMN_GROUP, OrderedGroups
from lilliput.methods import METHODS
from lilliput.pipeline.repack import has_place
from lilliput.records import NO_INPUTS, LayerInputs

ROWS, COLUMNS, GROUP = 8, 128, 16


def layer() -> tuple[FloatArray, LayerInputs]:
    draw = np.random.RandomState(3)
    weight = draw.standard_normal((ROWS, COLUMNS)).astype(np.float32)
    basis = np.linalg.qr(draw.standard_normal((COLUMNS, COLUMNS)))[0]
    inputs = draw.standard_normal((1024, COLUMNS)) / np.arange(1, COLUMNS + 1) ** 0.5 @ basis.T
    inputs[:, ::9] *= 6
    hessian = (inputs.T @ inputs / len(inputs)).astype(np.float32)
    return weight, LayerInputs(1024, np.diag(hessian).copy(), hessian)


def ordered(kind: str = "asym_") -> OrderedGroups:
    found = get_format(f"int4_g{GROUP}_{kind}ordered")
    assert isinstance(found, OrderedGroups)
    return found


@pytest.mark.parametrize("method", ["round_to_nearest", "searched_scales", "feedback"])
@pytest.mark.parametrize("kind", ["", "asym_"])
def test_columns_are_quantized_in_falling_importance_as_any_matrix(method: str, kind: str) -> None:
    weight, inputs = layer()
    number_format = ordered(kind)
    planes = METHODS[method].quantize(number_format, weight, inputs, threads=1)
    assert inputs.hessian is not None
    order = np.argsort(-np.diag(inputs.hessian), kind="stable")
    assert np.array_equal(planes[COLUMN_GROUP].reshape(-1)[order], np.arange(COLUMNS) // GROUP)
    assert np.diag(inputs.hessian)[order][0] == np.diag(inputs.hessian).max()
    there = LayerInputs(inputs.tokens, np.diag(inputs.hessian)[order], inputs.hessian[order][:, order])
    turned = METHODS[method].quantize(number_format.base, weight[:, order], there, threads=1)
    found = number_format.dequantize(planes, COLUMNS)
    assert np.array_equal(found[:, order], number_format.base.dequantize(turned, COLUMNS))


def test_layers_of_one_input_have_one_order() -> None:
    weight, inputs = layer()
    planes = [METHODS["feedback"].quantize(ordered(), each, inputs, threads=1) for each in (weight, weight[::-1] * 3)]
    assert np.array_equal(planes[0][COLUMN_GROUP], planes[1][COLUMN_GROUP])


def test_without_inputs_columns_stay_as_they_are() -> None:
    weight, _ = layer()
    number_format = ordered()
    planes = METHODS["searched_scales"].quantize(number_format, weight, NO_INPUTS, threads=1)
    assert number_format.is_in_columns_order(planes)
    plain = METHODS["searched_scales"].quantize(number_format.base, weight, NO_INPUTS, threads=1)
    assert np.array_equal(planes["codes"], plain["codes"])


def test_a_range_of_columns_takes_the_parameters_of_its_own_groups() -> None:
    weight, inputs = layer()
    number_format = ordered()
    planes = METHODS["searched_scales"].quantize(number_format, weight, inputs, threads=1)
    encoded = number_format.unpack(planes, COLUMNS)
    whole = number_format.values(encoded.codes, encoded.parameters)
    part = slice(5, 77)
    assert np.array_equal(number_format.values(encoded.codes[:, part], encoded.parameters, part), whole[:, part])
    again = number_format.nearest_codes(whole[:, part], encoded.parameters, part)
    assert np.array_equal(again, encoded.codes[:, part])


def test_groups_that_there_are_not_decode_without_an_error() -> None:
    weight, inputs = layer()
    planes = dict(METHODS["round_to_nearest"].quantize(ordered(), weight, inputs, threads=1))
    planes[COLUMN_GROUP] = planes[COLUMN_GROUP] + np.int32(1 << 30)
    assert np.isfinite(ordered().dequantize(planes, COLUMNS)).all()


def test_only_groups_have_an_order_and_no_other_container_holds_it() -> None:
    with pytest.raises(FormatError, match="_ordered or _asym_ordered for groups by importance"):
        get_format("int4_channel_ordered")
    assert not has_place(get_format("int4_g32_ordered"), Gguf())
