# SPDX-License-Identifier: Apache-2.0
"""What integer operators of LiteRT mean: values of codes, the operation in float64, rounded to the result's codes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import erf

import numpy as np
from numpy.typing import NDArray

from lilliput.containers.litert.model import Model, Operation, Operator, TensorType

Codes = NDArray[np.integer]
Values = NDArray[np.float64]
LIMITS = {TensorType.INT8: (-128, 127), TensorType.INT16: (-32768, 32767), TensorType.INT32: (-(2**31), 2**31 - 1)}
MOVES = {Operator.RESHAPE, Operator.TRANSPOSE, Operator.GATHER}


@dataclass(frozen=True)
class Kept:
    """A tensor of a file: its codes, scales and zero point as the runtime has them."""

    codes: Codes
    scales: NDArray[np.float32]
    zero_point: int

    @property
    def values(self) -> NDArray[np.float64]:
        if not self.scales.size:
            return self.codes.astype(np.float64)
        steps = self.scales.astype(np.float64).reshape(-1, *[1] * (self.codes.ndim - 1))
        return (self.codes.astype(np.float64) - self.zero_point) * (steps if self.scales.size > 1 else steps.item())


def expected_codes(model: Model, operation: Operation, tensors: Mapping[int, Kept]) -> Codes:
    """The codes that an operation should leave in its one output."""
    out = tensors[operation.outputs[0]]
    inputs = [tensors[index] for index in operation.inputs]
    if operation.operator in MOVES:
        first, second = inputs[0].codes, inputs[1].codes
        match operation.operator:
            case Operator.RESHAPE:
                return first.reshape(out.codes.shape)
            case Operator.TRANSPOSE:
                return first.transpose(second)
            case _:
                return first[second]
    values = _computed(operation, [item.values for item in inputs])
    low, high = LIMITS[model.tensors[operation.outputs[0]].type]
    codes = np.rint(values / float(out.scales[0])) + out.zero_point
    return np.clip(codes, low, high).astype(out.codes.dtype)


def _gelu(x: Values, is_tanh: bool) -> Values:
    if is_tanh:
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + np.vectorize(erf)(x / np.sqrt(2)))


def _softmax(x: Values, scale: float) -> Values:
    powers = np.exp(scale * (x - x.max(-1, keepdims=True)))
    return powers / powers.sum(-1, keepdims=True)


# Values of the inputs, first option (0 where there is none) and second.
MEANINGS: dict[Operator, Callable[[list[Values], float, bool], Values]] = {
    Operator.QUANTIZE: lambda inputs, _, __: inputs[0],
    Operator.ADD: lambda inputs, _, __: inputs[0] + inputs[1],
    Operator.SUB: lambda inputs, _, __: inputs[0] - inputs[1],
    Operator.MUL: lambda inputs, _, __: inputs[0] * inputs[1],
    Operator.MEAN: lambda inputs, _, __: inputs[0].mean(-1, keepdims=True),
    Operator.RSQRT: lambda inputs, _, __: 1 / np.sqrt(inputs[0]),
    Operator.RELU: lambda inputs, _, __: np.maximum(inputs[0], 0),
    Operator.TANH: lambda inputs, _, __: np.tanh(inputs[0]),
    Operator.LOGISTIC: lambda inputs, _, __: 1 / (1 + np.exp(-inputs[0])),
    Operator.GELU: lambda inputs, is_tanh, _: _gelu(inputs[0], bool(is_tanh)),
    Operator.FULLY_CONNECTED: lambda inputs, _, __: inputs[0] @ inputs[1].T + (inputs[2] if len(inputs) > 2 else 0),
    Operator.BATCH_MATMUL: lambda inputs, _, turns: inputs[0] @ (inputs[1].swapaxes(-1, -2) if turns else inputs[1]),
    Operator.SOFTMAX: lambda inputs, scale, _: _softmax(inputs[0], scale),
}


def _computed(operation: Operation, inputs: list[Values]) -> Values:
    first, second = (getattr(operation.options.get(slot), "value", 0) for slot in (0, 1))
    return MEANINGS[operation.operator](inputs, float(first), bool(second))


def run_reference(model: Model, tensors: Mapping[int, Kept], inputs: Mapping[str, Codes]) -> Codes:
    """The whole graph in the reference's own codes; tensors: constants, and the grids of the others."""
    held = dict(tensors)
    for index in model.inputs:
        item = held[index]
        held[index] = Kept(inputs[model.tensors[index].name], item.scales, item.zero_point)
    for operation in model.operations:
        out = operation.outputs[0]
        held[out] = Kept(expected_codes(model, operation, held), held[out].scales, held[out].zero_point)
    return held[model.outputs[0]].codes
