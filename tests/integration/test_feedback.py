# SPDX-License-Identifier: Apache-2.0
"""What error feedback and coordinate descent promise, on matrices small enough to know the truth."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lilliput.arrays import DoubleArray, FloatArray
from lilliput.errors import CalibrationError, FormatError
from lilliput.formats import FORMATS, Encoded, NumberFormat, get_format
from lilliput.methods import METHODS
from lilliput.methods.descent import DescentOptions, descend
from lilliput.methods.factor import DAMPING, TOKENS_PER_COLUMN, Factor, factorize
from lilliput.methods.feedback import Feedback, FeedbackOptions, feed_back
from lilliput.methods.torch_format import TorchFormat
from lilliput.records import LayerInputs

torch = pytest.importorskip("torch")

SUPPORTED = [number_format for number_format in FORMATS.values() if Feedback().supports(number_format)]
LOOP_ONLY = FeedbackOptions(descent=None)
EPSILON = 2.0**-24


def correlated(columns: int, tokens: int = 4096, seed: int = 0) -> FloatArray:
    """E[x x^T] of inputs whose spectrum falls as 1 / k."""
    draw = np.random.RandomState(seed)
    basis, _ = np.linalg.qr(draw.standard_normal((columns, columns)))
    inputs = draw.standard_normal((tokens, columns)) / np.arange(1, columns + 1) ** 0.5 @ basis.T
    return (inputs.T @ inputs / tokens).astype(np.float32)


def weights(rows: int, columns: int, seed: int = 1) -> FloatArray:
    return (0.02 * np.random.RandomState(seed).standard_t(5, (rows, columns))).astype(np.float32)


def inputs_of(hessian: FloatArray, tokens: int = 4096) -> LayerInputs:
    return LayerInputs(tokens=tokens, mean_square=np.diag(hessian).copy(), hessian=hessian)


def row_losses(values: FloatArray, weight: FloatArray, hessian: FloatArray) -> DoubleArray:
    """tr(D H D^T), row by row, in float64."""
    error = values.astype(np.float64) - weight
    losses: DoubleArray = np.einsum("ij,jk,ik->i", error, hessian.astype(np.float64), error)
    return losses


def triangle_of(factor: Factor) -> DoubleArray:
    """R up to a rotation inside each unit: feedback * chol(metric), block column by block column."""
    columns, unit = len(factor.order), factor.metric.shape[1]
    whole = factor.feedback.double().numpy() + np.eye(columns)
    metric = factor.metric.double().numpy()
    for place in range(0, columns, unit):
        here = slice(place, place + unit)
        whole[:, here] = whole[:, here] @ np.linalg.cholesky(metric[place // unit])
    return whole


@pytest.mark.parametrize(("block", "unit"), [(64, 1), (64, 4), (32, 8), (16, 1)])
def test_the_factor_times_its_transpose_is_the_damped_hessian(block: int, unit: int) -> None:
    hessian = correlated(64)
    factor = factorize(torch.from_numpy(hessian), 4096, block, unit)
    damped = hessian.astype(np.float64) + np.eye(64) * DAMPING * hessian.diagonal().mean(dtype=np.float64)
    triangle = triangle_of(factor)
    # Factor and metric are rounded to float32 once; each entry is a sum of at most 64 products.
    bound = 64 * EPSILON * damped.diagonal().max() * np.abs(factor.feedback.numpy()).max().clip(1)
    found = triangle @ triangle.T
    order = factor.order.numpy()
    np.testing.assert_allclose(found, damped[np.ix_(order, order)], rtol=0, atol=bound)
    np.testing.assert_allclose(factor.hessian.numpy(), damped, rtol=4 * EPSILON, atol=0)
    assert factor.damping == DAMPING
    assert sorted(order.tolist()) == list(range(64))


@pytest.mark.parametrize(("block", "unit"), [(64, 1), (64, 4), (32, 8)])
def test_the_loss_is_the_sum_of_feedback_residuals_under_the_metric(block: int, unit: int) -> None:
    """tr(D H D^T) = sum over units of r^T (R_jj R_jj^T) r, r = D_j + sum_i<j D_i R_ij R_jj^-1."""
    hessian = correlated(64)
    factor = factorize(torch.from_numpy(hessian), 4096, block, unit)
    error = np.random.RandomState(3).standard_normal((5, 64))
    ordered = error[:, factor.order.numpy()]
    residual = (ordered + ordered @ factor.feedback.double().numpy()).reshape(5, -1, unit)
    paid = np.einsum("rui,uij,ruj->r", residual, factor.metric.double().numpy(), residual)
    expected = row_losses(error, np.zeros_like(error), factor.hessian.numpy())
    # Each of 64 x 64 products is off by the float32 rounding of the factor.
    np.testing.assert_allclose(paid, expected, rtol=64 * 64 * EPSILON)


@pytest.mark.parametrize("name", ["q4_0", "q4_k", "iq3_s", "iq2_s", "int4_g128"])
def test_each_code_is_nearest_to_what_feedback_asks_for(name: str) -> None:
    """The codes of the loop are those a plain reading of LDLQ gives, column by column, in float64."""
    chosen, columns = get_format(name), 512
    weight, hessian = weights(3, columns), correlated(columns)
    encoded = feed_back(chosen, weight, inputs_of(hessian), LOOP_ONLY)
    solver = TorchFormat(chosen, columns)
    factor = factorize(torch.from_numpy(hessian), 4096, solver.block, solver.unit)
    order, feedback = factor.order.numpy(), factor.feedback.double().numpy()
    ordered = (chosen.values(encoded.codes, encoded.parameters).astype(np.float64) - weight)[:, order]
    parameters = {key: torch.from_numpy(np.asarray(array)) for key, array in encoded.parameters.items()}
    different = 0
    for place in range(0, columns, solver.unit):
        here = order[place : place + solver.unit]
        target = weight[:, here] - ordered[:, :place] @ feedback[:place, place : place + solver.unit]
        at = slice(int(here[0]), int(here[-1]) + 1)
        code = solver.nearest_codes(
            torch.from_numpy(target.astype(np.float32)), parameters, at, factor.metric[place // solver.unit]
        )
        different += int((code.numpy()[:, 0] != encoded.codes[:, at.start // solver.unit]).sum())
    # Float32 sums of the loop may fall to the other side of a tie, once in ten thousand or so.
    assert different <= weight.size // solver.unit // 500


def all_losses(number_format: NumberFormat, encoded: Encoded, weight: FloatArray, hessian: FloatArray) -> DoubleArray:
    """Losses [rows, all codes of a row] with the parameters as they are."""
    columns = weight.shape[1]
    everything = np.linspace(-10, 10, 999, dtype=np.float32)[None] * np.abs(weight).max()
    first = {name: array[:1] for name, array in encoded.parameters.items()}
    allowed = np.unique(number_format.nearest_codes(everything, first))
    codes = np.array(list(product(allowed, repeat=columns)), dtype=encoded.codes.dtype)
    losses = []
    for row in range(len(weight)):
        parameters = {
            name: np.repeat(array[row : row + 1], len(codes), axis=0) for name, array in encoded.parameters.items()
        }
        losses.append(row_losses(number_format.values(codes, parameters), weight[row : row + 1], hessian))
    return np.array(losses)


@pytest.mark.parametrize("seed", [0, 1, 3])
@pytest.mark.parametrize("sweeps", [0, 3])
def test_feedback_is_never_better_than_trying_all_codes(seed: int, sweeps: int) -> None:
    chosen, columns = get_format("int2_channel"), 4
    weight, hessian = weights(12, columns, seed), correlated(columns, seed=seed) + np.float32(1.0)
    options = FeedbackOptions(descent=DescentOptions(sweeps, refits_scales=False) if sweeps else None)
    encoded = feed_back(chosen, weight, inputs_of(hessian), options)
    damped = factorize(torch.from_numpy(hessian), 4096, columns, 1).hessian.numpy()
    loss = row_losses(chosen.values(encoded.codes, encoded.parameters), weight, damped)
    best = all_losses(chosen, encoded, weight, damped).min(axis=1)
    nearest = chosen.nearest_codes(weight, encoded.parameters)
    plain = row_losses(chosen.values(nearest, encoded.parameters), weight, damped)
    assert (loss >= best * (1 - 1e-12)).all()
    assert loss.sum() < plain.sum()


@pytest.mark.parametrize("name", ["int2_channel", "int4_g128", "q4_k", "nf4", "iq2_s"])
def test_a_diagonal_hessian_asks_for_the_nearest_codes(name: str) -> None:
    chosen, columns = get_format(name), 4 if name == "int2_channel" else 256
    weight = weights(5, columns)
    hessian = np.diag(np.random.RandomState(2).uniform(0.5, 2.0, columns)).astype(np.float32)
    for options in (LOOP_ONLY, FeedbackOptions(DescentOptions(2, refits_scales=False))):
        encoded = feed_back(chosen, weight, inputs_of(hessian), options)
        damped = hessian.diagonal() + np.float32(DAMPING) * hessian.diagonal().mean()
        for place in range(0, columns, chosen.unit):
            here = slice(place, place + chosen.unit)
            metric = np.diag(damped[here])
            nearest = chosen.nearest_codes(weight[:, here], encoded.parameters, here, metric=metric)
            np.testing.assert_array_equal(encoded.codes[:, place // chosen.unit], nearest[:, 0])
    if name == "int2_channel":
        best = all_losses(chosen, encoded, weight, np.diag(damped)).min(axis=1)
        found = row_losses(chosen.values(encoded.codes, encoded.parameters), weight, np.diag(damped))
        np.testing.assert_allclose(found, best, rtol=1e-12)


def test_after_the_descent_no_single_code_can_be_changed_for_the_better() -> None:
    chosen, columns = get_format("int3_channel"), 24
    weight, hessian = weights(8, columns), correlated(columns)
    options = FeedbackOptions(DescentOptions(sweeps=20, refits_scales=False))
    encoded = feed_back(chosen, weight, inputs_of(hessian), options)
    damped = factorize(torch.from_numpy(hessian), 4096, columns, 1).hessian.numpy()
    reached = row_losses(chosen.values(encoded.codes, encoded.parameters), weight, damped)
    for column in range(columns):
        for code in range(int(encoded.codes.max()) + 1):
            codes = encoded.codes.copy()
            codes[:, column] = code
            other = row_losses(chosen.values(codes, encoded.parameters), weight, damped)
            assert (other >= reached - columns * EPSILON * reached).all(), (column, code)


DESCENT_FORMATS = ["q4_k", "q2_k", "q3_k", "iq2_s", "int4_g128", "nf4", "q4_0", "int4_channel", "int4_g128_asym"]


@pytest.mark.parametrize("name", DESCENT_FORMATS)
@given(seed=st.integers(0, 1000), power=st.sampled_from([0.0, 0.5, 1.5]), tokens=st.sampled_from([40, 4096]))
@settings(max_examples=2, deadline=None, derandomize=True)
def test_the_descent_never_raises_the_loss_as_stored(name: str, seed: int, power: float, tokens: int) -> None:
    chosen, columns = get_format(name), 512
    weight = weights(2, columns, seed)
    draw = np.random.RandomState(seed)
    inputs = draw.standard_normal((64, columns)) @ draw.standard_normal((columns, columns)) / 16
    inputs *= np.arange(1, columns + 1) ** -power
    hessian = (inputs.T @ inputs / 64).astype(np.float32)
    encoded = feed_back(chosen, weight, inputs_of(hessian, tokens), LOOP_ONLY)
    solver = TorchFormat(chosen, columns)
    damped = factorize(torch.from_numpy(hessian), tokens, solver.block, solver.unit).hessian
    codes = torch.from_numpy(encoded.codes.copy())
    parameters = {key: torch.from_numpy(np.array(array)) for key, array in encoded.parameters.items()}

    def loss() -> DoubleArray:
        stored = chosen.pack(Encoded(codes.numpy(), {key: array.numpy() for key, array in parameters.items()}))
        return row_losses(chosen.dequantize(stored, columns), weight, damped.numpy())

    before = start = loss()
    for _ in range(2):
        descend(solver, torch.from_numpy(weight), damped, codes, parameters, DescentOptions(sweeps=1))
        after = loss()
        # Each decision compares float32 sums over all columns; what they cannot see is no rise.
        assert (after <= before * (1 + columns * EPSILON)).all()
        before = after
    assert after.sum() < start.sum()


@pytest.mark.parametrize("number_format", SUPPORTED, ids=lambda item: item.name)
def test_the_bytes_hold_exactly_the_values_that_the_solver_saw(number_format: NumberFormat) -> None:
    columns = 256
    rows = max(number_format.row_step or 1, 4)
    weight = weights(rows, columns)
    encoded = feed_back(number_format, weight, inputs_of(correlated(columns)))
    values = np.asarray(number_format.values(encoded.codes, encoded.parameters), dtype=np.float32)
    planes = number_format.pack(encoded)
    assert {name: (p.dtype, p.shape) for name, p in planes.items()} == {
        name: (spec.dtype, spec.shape) for name, spec in number_format.stored_planes(rows, columns).items()
    }
    np.testing.assert_array_equal(number_format.dequantize(planes, columns).view(np.uint32), values.view(np.uint32))
    again = number_format.unpack(planes, columns)
    np.testing.assert_array_equal(again.codes, encoded.codes)


@pytest.mark.parametrize("name", ["q4_k", "iq2_s", "int4_channel"])
@pytest.mark.parametrize("case", ["dead columns", "all dead", "singular", "one token"])
def test_a_starved_hessian_still_gives_finite_codes_no_worse_than_zeros(name: str, case: str) -> None:
    chosen, columns = get_format(name), 256
    weight, tokens = weights(4, columns), 4096
    hessian = correlated(columns)
    if case == "dead columns":
        hessian[:, ::5] = hessian[::5] = 0.0
    elif case == "all dead":
        hessian[:] = 0.0
    elif case == "singular":
        hessian = np.full((columns, columns), 0.7, dtype=np.float32)
    else:
        x = np.random.RandomState(0).standard_normal((1, columns)).astype(np.float32)
        hessian, tokens = x.T @ x, 1
    inputs = inputs_of(hessian, tokens)
    encoded = feed_back(chosen, weight, inputs)
    values = chosen.values(encoded.codes, encoded.parameters)
    assert np.isfinite(values).all()
    # Whatever the inputs say, the weights themselves are not given up: a later input may reach them.
    assert np.square(values - weight).sum() < np.square(weight).sum()
    baseline = METHODS["searched_scales"].quantize(chosen, weight, inputs, threads=1)
    plain = row_losses(chosen.dequantize(baseline, columns), weight, hessian).sum()
    assert row_losses(values, weight, hessian).sum() <= plain


@pytest.mark.parametrize("name", ["q4_k", "q3_k", "q4_0", "q5_1", "iq4_xs", "iq3_s"])
@pytest.mark.parametrize("rows", [1, 37])
def test_parameters_of_a_block_are_those_of_the_array_code(name: str, rows: int) -> None:
    chosen = get_format(name)
    solver = TorchFormat(chosen, 512)
    target = weights(rows, solver.block)
    importance = np.random.RandomState(3).uniform(0.1, 4.0, solver.block).astype(np.float32)
    found = solver.fit_block(torch.from_numpy(target), torch.from_numpy(importance), {})
    mean = torch.from_numpy(importance).mean()
    expected = chosen.fitted(target, (torch.from_numpy(importance) / mean).numpy())
    for key, array in expected.items():
        np.testing.assert_array_equal(found[key].numpy(), array)


def test_dead_columns_get_no_feedback_and_are_counted() -> None:
    hessian = correlated(64)
    hessian[:, 3] = hessian[3] = 0.0
    factor = factorize(torch.from_numpy(hessian), 4096, 64, 1)
    place = factor.order.tolist().index(3)
    assert factor.dead == 1
    assert not factor.feedback[place].any()
    assert not factor.feedback[:, place].any()


def test_the_factor_does_not_depend_on_the_panels_it_is_made_in(monkeypatch: pytest.MonkeyPatch) -> None:
    hessian = torch.from_numpy(correlated(96))
    whole = factorize(hessian, 4096, 32, 4)
    monkeypatch.setattr("lilliput.methods.factor.PANEL", 20)
    parts = factorize(hessian, 4096, 32, 4)
    assert parts.order.tolist() == whole.order.tolist()
    # Sums of 96 float64 products in another order, rounded to float32: at most one unit in the last place.
    np.testing.assert_allclose(parts.feedback.numpy(), whole.feedback.numpy(), rtol=2 * EPSILON, atol=1e-12)
    np.testing.assert_allclose(parts.metric.numpy(), whole.metric.numpy(), rtol=2 * EPSILON, atol=1e-12)


def test_few_tokens_raise_the_damping() -> None:
    hessian = torch.from_numpy(correlated(64))
    enough = TOKENS_PER_COLUMN * 64
    dampings = [factorize(hessian, tokens, 64, 1).damping for tokens in (10 * enough, enough, enough // 8)]
    assert dampings == [DAMPING, DAMPING, 8 * DAMPING]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_hessian_that_is_not_finite_is_refused(value: float) -> None:
    hessian = correlated(32)
    hessian[3, 4] = hessian[4, 3] = value
    with pytest.raises(CalibrationError, match=r"holds NaN or Inf; the model overflows"):
        feed_back(get_format("q4_0"), weights(2, 32), inputs_of(hessian))


def test_an_indefinite_hessian_that_no_damping_mends_is_refused() -> None:
    hessian = np.array([[1.0, 1e9], [1e9, 1.0]], dtype=np.float32)
    with pytest.raises(CalibrationError, match="cannot be factorized even when damped; use more text"):
        feed_back(get_format("int4_channel"), weights(2, 2), inputs_of(hessian))


def test_inputs_without_a_hessian_or_of_another_size_are_refused() -> None:
    with pytest.raises(CalibrationError, match="needs the Hessian"):
        feed_back(get_format("q4_0"), weights(2, 32), LayerInputs(tokens=4))
    with pytest.raises(CalibrationError, match="the Hessian has 32 inputs, the weight 64"):
        feed_back(get_format("q4_0"), weights(2, 64), inputs_of(correlated(32)))
    with pytest.raises(FormatError, match="row length 96 is not a multiple of Q4_K's block of 256"):
        feed_back(get_format("q4_k"), weights(2, 96), inputs_of(correlated(96)))


@pytest.mark.parametrize("columns", [96, 97, 130])
def test_rows_of_any_length_are_done_where_a_channel_shares_its_scale(columns: int) -> None:
    chosen = get_format("int4_channel")
    weight, hessian = weights(4, columns), correlated(columns)
    encoded = feed_back(chosen, weight, inputs_of(hessian))
    nearest = chosen.nearest_codes(weight, encoded.parameters)
    assert (
        row_losses(chosen.values(encoded.codes, encoded.parameters), weight, hessian).sum()
        < row_losses(chosen.values(nearest, encoded.parameters), weight, hessian).sum()
    )


@pytest.mark.parametrize("name", ["q4_k", "q3_k", "iq4_nl", "mxfp4", "int4_g128_asym", "nf4", "fp8_e4m3_channel"])
def test_native_loops_decide_as_the_array_code_but_for_the_order_of_sums(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, columns = get_format(name), 512
    weight, hessian = weights(16, columns), correlated(columns)
    found = feed_back(chosen, weight, inputs_of(hessian))
    monkeypatch.setattr(TorchFormat, "lines", lambda *_: None)
    expected = feed_back(chosen, weight, inputs_of(hessian))
    is_same = (found.codes == expected.codes).all(axis=1)
    for key, array in expected.parameters.items():
        is_same &= (found.parameters[key] == array).all(axis=1)
    # A sum that falls to the other side of a tie sends its row another way: about once in ten thousand decisions.
    assert is_same.sum() >= len(weight) // 2
    damped = factorize(torch.from_numpy(hessian), 4096, columns, 1).hessian.numpy()
    losses = [row_losses(chosen.values(one.codes, one.parameters), weight, damped) for one in (found, expected)]
    # Another way is as good a way: its columns' errors are drawn anew from the same steps.
    assert abs(losses[0].sum() / losses[1].sum() - 1) < 0.05


@pytest.mark.parametrize("name", ["q4_k", "int4_tensor"])
def test_codes_do_not_depend_on_the_number_of_threads(name: str) -> None:
    chosen, columns = get_format(name), 512
    weight, inputs = weights(32, columns), correlated(columns)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            planes = METHODS["feedback"].quantize(chosen, weight, inputs_of(inputs), threads=threads)
            found.append({key: array.tobytes() for key, array in planes.items()})
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1]
