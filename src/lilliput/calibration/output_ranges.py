# SPDX-License-Identifier: Apache-2.0
"""Ranges of what every operation gives, for files whose activations are integers from end to end.

Beside each buffer also what lies inside of an operation and has to be stored between two integer ones:

norms        mean, centred, squares (the sum of a row's squares), inverse (1 / sqrt(squares + width epsilon)),
             normed (centred times inverse), scaled (times the weight, before the bias)
attention    scores (q k^T, before any scale), biased (with a relative bias)
activations  activated (of a gate, before the product)

The whole model is in memory, in float32: such files are of small models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lilliput.architectures.encoder_half import place, program_of_fixed_graphs
from lilliput.architectures.program import (
    Attention,
    Embed,
    Glu,
    LayerNorm,
    Linear,
    Operation,
    Program,
    RmsNorm,
    Rope,
)
from lilliput.arrays import IntArray
from lilliput.checkpoints.model_source import ModelSource
from lilliput.errors import CalibrationError

if TYPE_CHECKING:
    import torch

    from lilliput.calibration.torch_program import ProgramRun

Ranges = dict[str, tuple[float, float]]


def output_ranges(
    source: ModelSource, sequences: Sequence[IntArray], progress: Callable[[int, int], None] | None = None
) -> Ranges:
    """Smallest and largest value of each result over token ids [length] each, by `encoder_half.place`.

    Raises CalibrationError for values that are not finite.
    """
    import torch

    from lilliput.calibration import torch_program

    program = program_of_fixed_graphs(source.architecture, source.config)
    values: dict[str, torch.Tensor] = {}

    def value(name: str) -> torch.Tensor:
        if name not in values:
            values[name] = torch.from_numpy(source.tensor(name).dequantize().copy())
        return values[name]

    def expert(name: str, number: int, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, value(name)[number])

    def linear(run: torch_program.LinearRun, x: torch.Tensor) -> torch.Tensor:
        bias = None if run.bias is None else value(run.bias).reshape(-1)
        return torch.nn.functional.linear(x, value(run.weight), bias)

    def factors(name: str) -> np.ndarray:
        return source.tensor(name).dequantize().reshape(-1)

    seen = _Seen()
    with torch.inference_mode():
        for index, ids in enumerate(sequences):
            rotations = torch_program.rotations(program.operations, len(ids), factors, torch.device("cpu"))
            run = torch_program.ProgramRun(value, linear, rotations, expert=expert)
            _observe(program, run, torch.from_numpy(np.asarray(ids, dtype=np.int64))[None], seen)
            if progress is not None:
                progress(index + 1, len(sequences))
    return seen.ranges


class _Seen:
    """Extremes so far."""

    def __init__(self) -> None:
        self.ranges: Ranges = {}

    def add(self, name: str, x: torch.Tensor) -> None:
        low, high = (float(end) for end in x.aminmax())
        if not math.isfinite(low) or not math.isfinite(high):
            raise CalibrationError(f"operation {name}: its result holds NaN or Inf; check the text and the weights")
        earlier = self.ranges.get(name, (low, high))
        self.ranges[name] = min(low, earlier[0]), max(high, earlier[1])


def _observe(program: Program, run: ProgramRun, tokens: torch.Tensor, seen: _Seen) -> None:
    from lilliput.calibration import torch_program

    buffers: dict[str, torch.Tensor] = {}
    for number, operation in enumerate(program.operations):
        _observe_inside(number, operation, run, buffers, seen)
        if isinstance(operation, Embed):
            buffers[operation.out] = torch_program.embedded(operation, run.value(operation.weight), tokens)
        else:
            step: Operation | torch_program.LinearRun = operation
            if isinstance(operation, Linear):
                parts = ((operation.out, operation.rows),)
                step = torch_program.LinearRun(operation.x, operation.weight, operation.bias, parts)
            run.step(step, buffers)
        made = operation.x if isinstance(operation, Rope) else getattr(operation, "out", None)
        if made is not None:
            seen.add(place(number, operation), buffers[made])


def _observe_inside(
    number: int, operation: Operation, run: ProgramRun, buffers: dict[str, torch.Tensor], seen: _Seen
) -> None:
    from lilliput.calibration import torch_program

    def add(part: str, x: torch.Tensor) -> None:
        seen.add(place(number, operation, part), x)

    match operation:
        case LayerNorm() | RmsNorm():
            x = buffers[operation.x].double()
            if isinstance(operation, RmsNorm):
                x = x.reshape(*x.shape[:-1], operation.groups, -1)
            else:
                mean = x.mean(-1, keepdim=True)
                add("mean", mean)
                x = x - mean
                add("centred", x)
            squares = x.square().sum(-1, keepdim=True)
            inverse = (squares + x.shape[-1] * operation.epsilon).rsqrt()
            add("squares", squares)
            add("inverse", inverse)
            add("normed", x * inverse)
            add("scaled", x * inverse * math.sqrt(x.shape[-1]) * run.value(operation.weight))
        case Attention():
            scores = torch_program.scores(operation, buffers[operation.q], buffers[operation.k])
            add("scores", scores)
            if operation.bias is not None:
                table = run.value(operation.bias.weight)
                bias = torch_program.biases(operation, operation.bias, table, scores.shape[-1])
                finite = bias.isfinite()
                add("bias", bias[finite])
                add("biased", (scores * operation.scale + bias)[..., finite])
        case Glu():
            add("activated", torch_program.activated(operation.activation, buffers[operation.gate]))
        case _:
            pass
