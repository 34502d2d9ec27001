# SPDX-License-Identifier: Apache-2.0
"""What a runtime's rounding does to logits: bounds for tests against runtimes that compute in 16 or 8 bits.

A pass in float64 with weights and every result rounded as the runtime rounds them says how far such roundings reach
through this very model, whatever it enlarges or averages out. The runtime's own errors are another draw of that kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from reference_program import Numbers, ProgramSource, float_tensor, run_program

from lilliput.architectures.program import Linear, Operation, Program
from lilliput.arrays import FloatArray
from lilliput.containers import open_model
from lilliput.recipes.plan import PLAIN_FLOATS
from lilliput.records import QuantizedTensor

BFLOAT16, FLOAT16 = 8, 11
# Roundings of steps within operations (scores, exponentials, partial sums) are not emulated: at most three for each
# that is, and errors add in squares.
UNSEEN = 2.0
InputRounding = Callable[[Numbers], Numbers]
# The rounding of what a quantized weight reads, given its name.
Inputs = Callable[[str], InputRounding]


def significant(values: Numbers, bits: int) -> Numbers:
    """Rounded to so many significant bits."""
    fraction, exponent = np.frexp(values)
    rounded: Numbers = np.ldexp(np.rint(np.ldexp(fraction, bits)), exponent - bits)
    return rounded


def int8_rows(values: Numbers) -> Numbers:
    """Each row in 127 steps of its peak."""
    step = np.maximum(np.abs(values).max(axis=-1, keepdims=True), 1e-30) / 127
    return np.rint(values / step) * step


def e4m3_rows(values: Numbers) -> Numbers:
    """Each row as E4M3 under a scale that takes its peak to 448."""
    scale = np.maximum(np.abs(values).max(axis=-1, keepdims=True), 1e-30) / 448
    return significant(values / scale, 4) * scale


def int8_under(limit_of: dict[str, float]) -> Inputs:
    """127 steps of the range of each weight's inputs, clipped. limit_of: weight -> the largest that was measured."""

    def chosen(weight: str) -> InputRounding:
        step = limit_of[weight] / 127
        return lambda values: np.clip(np.rint(values / step), -128, 127) * step

    return chosen


def error_bound(folder: Path, texts: Sequence[Sequence[int]], bits: int, inputs: Inputs | None = None) -> float:
    """Of the largest error of the logits of these texts."""
    pairs = [exact_and_rounded(folder, text, bits, inputs) for text in texts]
    errors = np.concatenate([rounded - exact for exact, rounded in pairs])
    return largest_error(errors, errors.size)


def exact_and_rounded(
    folder: Path, tokens: Sequence[int], bits: int, inputs: Inputs | None = None
) -> tuple[Numbers, Numbers]:
    """Logits [tokens, vocabulary] of a folder's own weights in float64, and all rounded to `bits`."""
    with_weights = open_model(folder)
    program = with_weights.architecture.program(with_weights.config)
    tensors = {name: with_weights.tensor(name) for name in with_weights.headers}
    quantized = {name for name, header in with_weights.headers.items() if header.format.name not in PLAIN_FLOATS}

    def rounded(number: int, operation: Operation, x: Numbers) -> Numbers:
        reader = _reading_weight(program, number, quantized)
        if inputs is not None and reader is not None:
            x = inputs(reader)(x)
        return significant(x, bits)

    rows = range(len(tokens))
    exact = run_program(ProgramSource(program, tensors), tokens, rows)
    weights = {name: float_tensor(name, _in_bits(tensor, bits)) for name, tensor in tensors.items()}
    return exact, run_program(ProgramSource(program, weights, rounded=rounded), tokens, rows)


def _in_bits(tensor: QuantizedTensor, bits: int) -> FloatArray:
    return significant(tensor.dequantize(), bits).astype(np.float32).reshape(tensor.shape)


def _reading_weight(program: Program, number: int, quantized: set[str]) -> str | None:
    """The quantized weight that reads an operation's result, if one does."""
    made = getattr(program.operations[number], "out", None)
    for operation in program.operations[number + 1 :]:
        if isinstance(operation, Linear) and operation.x == made and operation.weight in quantized:
            return operation.weight
        if getattr(operation, "out", None) == made:
            break
    return None


def largest_error(errors: Numbers, count: int) -> float:
    """A bound of the largest of `count` errors of the kind of these: normal ones reach sqrt(2 ln count) deviations."""
    return UNSEEN * math.sqrt(2 * math.log(count)) * float(np.sqrt(np.mean(errors**2)))
