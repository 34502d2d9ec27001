# SPDX-License-Identifier: Apache-2.0
"""The integer kernel gives the bits of its numpy meaning, on every instruction set and number of threads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from lilliput import _native
from lilliput.activations import FixedScale, IntegerInputs, get_input_format

ISAS = _native.available_instruction_sets()


@dataclass(frozen=True)
class Case:
    tokens: int
    rows: int
    columns: int
    inputs: str = "int8_token"
    groups: int = 1
    has_zero_points: bool = False
    fixed: FixedScale | None = None


CASES = (
    Case(1, 16, 64),
    Case(2, 33, 7),
    Case(5, 48, 66),
    Case(13, 37, 70, "int8_token_asym"),
    Case(12, 96, 257, "int5_token"),
    Case(40, 100, 256, "int8_token_asym", groups=2, has_zero_points=True),
    Case(29, 40, 256, "int8_g64_asym", groups=4, has_zero_points=True),
    Case(3, 33, 256, "int8_g64"),
    Case(7, 64, 96, "int4_token_asym", has_zero_points=True),
    Case(31, 64, 128, "int8_static", fixed=FixedScale(0.02, 128)),
    Case(9, 64, 128, "int8_static_asym", groups=8, fixed=FixedScale(0.015, 90)),
)


def in_panels(codes: np.ndarray) -> np.ndarray:
    """[rows, columns] -> [panels, quads, 16, 4], filled up with zeros."""
    rows, columns = codes.shape
    padded = np.zeros((-(-rows // 32) * 32, -(-columns // 4) * 4), codes.dtype)
    padded[:rows, :columns] = codes
    return np.ascontiguousarray(padded.reshape(-1, 16, padded.shape[1] // 4, 4).transpose(0, 2, 1, 3))


def in_parameter_panels(parameter: np.ndarray) -> np.ndarray:
    padded = np.zeros((-(-len(parameter) // 32) * 32, parameter.shape[1]), parameter.dtype)
    padded[: len(parameter)] = parameter
    return np.ascontiguousarray(padded.reshape(-1, 16, parameter.shape[1]).transpose(0, 2, 1))


@dataclass(frozen=True)
class Weight:
    codes: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray | None
    bias: np.ndarray

    def bound(self) -> _native.IntegerWeight:
        points = None if self.zero_point is None else in_parameter_panels(self.zero_point)
        return _native.IntegerWeight(in_panels(self.codes), in_parameter_panels(self.scale), points, *self.codes.shape)


def weight_of(case: Case) -> Weight:
    random = np.random.default_rng(case.rows)
    return Weight(
        random.integers(-128, 128, (case.rows, case.columns)).astype(np.int8),
        (random.random((case.rows, case.groups)) + 0.1).astype(np.float32),
        random.integers(-128, 128, (case.rows, case.groups)).astype(np.int32) if case.has_zero_points else None,
        random.standard_normal(case.rows).astype(np.float32),
    )


def expected(case: Case, weight: Weight, x: np.ndarray) -> np.ndarray:
    """The sums in int64, then every float operation in the order that the kernel states."""
    kind = get_input_format(case.inputs)
    assert isinstance(kind, IntegerInputs)
    entered = kind.quantize(x, case.fixed)
    own = entered.scale.shape[1]
    groups = max(own, case.groups)
    level = entered.codes.astype(np.int64) - np.repeat(entered.zero_point, case.columns // own, axis=1)
    integers = weight.codes.astype(np.int64)
    if weight.zero_point is not None:
        integers = integers - np.repeat(weight.zero_point, case.columns // case.groups, axis=1)
    total: np.ndarray | None = None
    for group, (left, right) in enumerate(
        zip(np.split(level, groups, axis=1), np.split(integers, groups, axis=1), strict=True)
    ):
        scale = weight.scale[:, group if case.groups > 1 else 0]
        part = (left @ right.T).astype(np.float32) * scale
        if own > 1:
            part = part * entered.scale[:, group, None]
        total = part if total is None else total + part
    assert total is not None
    return (total if own > 1 else total * entered.scale) + weight.bias


def native_inputs(case: Case) -> _native.IntegerInput:
    kind = get_input_format(case.inputs)
    assert isinstance(kind, IntegerInputs)
    fixed = case.fixed
    return _native.IntegerInput(
        is_symmetric=kind.is_symmetric,
        bits=kind.bits,
        groups=kind.groups(case.columns),
        scale=fixed.scale if fixed else None,
        zero_point=fixed.zero_point if fixed else 0,
    )


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.tokens}x{case.rows}x{case.columns}-{case.inputs}")
def test_the_kernel_has_the_bits_of_its_meaning(case: Case, isa: str) -> None:
    x = np.random.default_rng(5).standard_normal((case.tokens, case.columns)).astype(np.float32) * 3
    weight = weight_of(case)
    for threads in (1, 3):
        out = np.empty((case.tokens, case.rows), np.float32)
        weight.bound().multiply(x, native_inputs(case), out, weight.bias, threads, isa)
        assert np.array_equal(out, expected(case, weight, x))


@pytest.mark.parametrize("isa", ISAS)
def test_many_threads_give_the_same_bits(isa: str) -> None:
    case = Case(130, 200, 520)
    x = np.random.default_rng(6).standard_normal((case.tokens, case.columns)).astype(np.float32)
    weight = weight_of(case)
    results = []
    for threads in (1, 2, 7):
        results.append(np.empty((case.tokens, case.rows), np.float32))
        weight.bound().multiply(x, native_inputs(case), results[-1], weight.bias, threads, isa)
    assert np.array_equal(results[0], expected(case, weight, x))
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])


@pytest.mark.parametrize("isa", ISAS)
def test_bfloat16_goes_in_and_comes_out_rounded_to_nearest_even(isa: str) -> None:
    case = Case(6, 40, 70)
    bits = (np.random.default_rng(7).standard_normal((6, 70)).astype(np.float32).view(np.uint32) >> 16).astype(
        np.uint16
    )
    x = (bits.astype(np.uint32) << 16).view(np.float32)
    weight = weight_of(case)
    out = np.empty((6, 40), np.uint16)
    weight.bound().multiply(bits, native_inputs(case), out, weight.bias, 1, isa)
    whole = expected(case, weight, x).view(np.uint32)
    assert np.array_equal(out, ((whole + 0x7FFF + ((whole >> 16) & 1)) >> 16).astype(np.uint16))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("inputs", ["int8_token", "int8_token_asym", "int8_static"])
def test_a_token_that_is_not_finite_gives_nan_and_leaves_the_others_alone(isa: str, bad: float, inputs: str) -> None:
    fixed = FixedScale(0.1, 128) if inputs == "int8_static" else None
    case = Case(4, 32, 64, inputs, fixed=fixed)
    x = np.random.default_rng(8).standard_normal((4, 64)).astype(np.float32)
    weight = weight_of(case)
    whole = expected(case, weight, x)
    x[2, 63] = bad
    out = np.empty((4, 32), np.float32)
    weight.bound().multiply(x, native_inputs(case), out, weight.bias, 1, isa)
    assert np.isnan(out[2]).all()
    assert np.array_equal(np.delete(out, 2, axis=0), np.delete(whole, 2, axis=0))


def test_inputs_and_results_may_be_rows_of_something_wider() -> None:
    case = Case(5, 16, 32)
    wide = np.random.default_rng(9).standard_normal((5, 50)).astype(np.float32)
    weight = weight_of(case)
    out = np.zeros((5, 20), np.float32)
    weight.bound().multiply(wide[:, 3:35], native_inputs(case), out[:, 2:18], weight.bias)
    assert np.array_equal(out[:, 2:18], expected(case, weight, np.ascontiguousarray(wide[:, 3:35])))
    assert (out[:, :2] == 0).all()
    assert (out[:, 18:] == 0).all()


def test_arrays_that_do_not_fit_are_refused() -> None:
    case = Case(4, 32, 64)
    weight = weight_of(case)
    bound, inputs = weight.bound(), native_inputs(case)
    x, out = np.zeros((4, 64), np.float32), np.zeros((4, 32), np.float32)
    for wrong_x, wrong_out, bias in (
        (x[:, :60], out, weight.bias),
        (x, out[:, :31], weight.bias),
        (x[:3], out, weight.bias),
        (x, out, weight.bias[:31]),
        (x.T.copy().T, out, weight.bias),
        (x.astype(np.float64), out, weight.bias),
    ):
        with pytest.raises((ValueError, TypeError)):
            bound.multiply(wrong_x, inputs, wrong_out, bias)
    with pytest.raises(ValueError, match="another shape"):
        _native.IntegerWeight(in_panels(weight.codes), in_parameter_panels(weight.scale), None, 65, 64)
    with pytest.raises(ValueError, match="do not fit each other"):
        bound.multiply(x, _native.IntegerInput(is_symmetric=True, bits=8, groups=3), out, None)
