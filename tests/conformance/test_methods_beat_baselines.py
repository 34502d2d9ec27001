# SPDX-License-Identifier: Apache-2.0
"""Every method beats the baseline it names, on correlated inputs, for every format of 4.5 bits or less it supports."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from lilliput.arrays import DoubleArray, FloatArray
from lilliput.formats import FORMATS, NumberFormat
from lilliput.methods import METHODS, TensorMethod
from lilliput.records import LayerInputs

ROWS, COLUMNS, TOKENS = 16, 512, 4096
PAIRS = [
    pytest.param(method, number_format, id=f"{method.name}-{number_format.name}")
    for method in METHODS.values()
    for number_format in FORMATS.values()
    if method.baseline is not None and number_format.bits_per_weight <= 4.5 and method.supports(number_format)
]


@cache
def layer() -> tuple[FloatArray, LayerInputs]:
    """Heavy-tailed weights, and inputs whose spectrum falls as 1 / k, with a few columns far larger than the rest."""
    draw = np.random.RandomState(7)
    weight = (0.02 * draw.standard_t(5, (ROWS, COLUMNS))).astype(np.float32)
    basis, _ = np.linalg.qr(draw.standard_normal((COLUMNS, COLUMNS)))
    inputs = draw.standard_normal((2 * TOKENS, COLUMNS)) / np.arange(1, COLUMNS + 1) ** 0.5 @ basis.T
    inputs[:, ::101] *= 8
    seen, unseen = (half.T @ half / TOKENS for half in (inputs[:TOKENS], inputs[TOKENS:]))
    known = LayerInputs(
        tokens=TOKENS,
        mean_square=np.diag(seen).astype(np.float32),
        hessian=seen.astype(np.float32),
        held_out=unseen.astype(np.float32),
    )
    return weight, known


@cache
def loss(method: str, number_format: str) -> float:
    """tr(D H D^T) on inputs that the method has not seen."""
    weight, inputs = layer()
    chosen = FORMATS[number_format]
    planes = METHODS[method].quantize(chosen, weight, inputs, threads=1)
    error: DoubleArray = chosen.dequantize(planes, COLUMNS).astype(np.float64) - weight
    return float(np.einsum("ij,jk,ik->", error, np.asarray(inputs.held_out, dtype=np.float64), error))


@pytest.mark.parametrize(("method", "number_format"), PAIRS)
def test_it_beats_its_baseline(method: TensorMethod, number_format: NumberFormat) -> None:
    assert method.baseline is not None
    assert METHODS[method.baseline].supports(number_format)
    assert loss(method.name, number_format.name) < loss(method.baseline, number_format.name)
