# SPDX-License-Identifier: Apache-2.0
"""The loop from plan rows to quantized tensors: one tensor, one slab of rows in float32 at a time.

Peak memory is one stored tensor plus a few slabs, whatever the model's size; a format that shares a parameter over a
whole tensor takes that tensor in float32 at once. Every row of the plan yields one tensor
and one ledger entry, in plan order; a row that cannot be done raises, it is never skipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import lcm

import numpy as np

from lilliput.arrays import Array, DoubleArray, FloatArray
from lilliput.calibration.expert_inputs import STARVED_BELOW, expert_inputs, starved_experts, with_prior
from lilliput.checkpoints.model_source import ModelSource
from lilliput.errors import CalibrationError, FormatError
from lilliput.formats import BlockFormat, NumberFormat, Planes
from lilliput.formats.f16 import count_overflows
from lilliput.formats.native_decode import decode
from lilliput.methods import METHODS
from lilliput.recipes.ledger import LedgerEntry, entry_for
from lilliput.recipes.plan import Plan
from lilliput.records import NO_INPUTS, LayerInputs, QuantizedTensor, Statistics, TensorPlan

# Tensors and what was done to them, by name.
Done = Mapping[str, tuple[QuantizedTensor, LedgerEntry]]

# 16 MB of float32 a slab: large enough to keep every thread busy, small beside any model's own tensors.
SLAB_WEIGHTS = 1 << 22
# Experts that a note names; it counts the others.
NAMED = 6


def quantized_tensors(
    source: ModelSource, plan: Plan, statistics: Statistics | None, ready: Done, *, threads: int
) -> Iterator[tuple[QuantizedTensor, LedgerEntry]]:
    """Yield each planned tensor, quantized, with what was done to it; a tied tensor has no row of its own.

    ready: tensors that are done already.  Raises FormatError naming the tensor that holds NaN or infinity.
    """
    for row in plan.rows:
        if row.name in ready:
            yield ready[row.name]
            continue
        tensor = source.tensor(row.name)
        if len(row.shape) > 2 and statistics is not None:
            yield quantize_stack(tensor, row, expert_inputs(statistics, row.name, row.shape[0]), threads=threads)
        else:
            yield quantize_tensor(tensor, row, _inputs_of(row, statistics), threads=threads)
        # Taken and written by now: its pages of the mapped checkpoint need not stay in memory.
        source.release(row.name)


def _inputs_of(row: TensorPlan, statistics: Statistics | None) -> LayerInputs:
    inputs = statistics.inputs.get(row.name) if statistics is not None else None
    return LayerInputs(inputs.tokens, inputs.input_mean_square) if inputs is not None and inputs.tokens else NO_INPUTS


@dataclass(slots=True)
class _Attempt:
    """One method on one tensor: finished slabs, and sums of squares per column in float64.

    held_out: loss tr(D H D^T) on tokens that no method saw, and of zeros in place of the weights.
    """

    method: str
    error: DoubleArray
    energy: DoubleArray
    overflows: int = 0
    held_out: float = 0.0
    planes: list[Planes] = field(default_factory=list)

    def errors(self, inputs: LayerInputs) -> tuple[float | None, float | None]:
        """Relative squared error, plain and weighted by the input mean square."""
        plain = _ratio(float(self.error.sum()), float(self.energy.sum()))
        importance = inputs.mean_square
        if importance is None:
            return plain, None
        return plain, _ratio(float(self.error @ importance), float(self.energy @ importance))


def quantize_tensor(
    tensor: QuantizedTensor, row: TensorPlan, inputs: LayerInputs, *, threads: int
) -> tuple[QuantizedTensor, LedgerEntry]:
    """One tensor as `row` plans it, with what was done to it.

    A method that uses the Hessian is compared with its baseline on the held-out inputs, and the better one is kept;
    a tensor that no token reached gets the baseline.
    Raises FormatError naming the tensor that holds NaN or infinity, CalibrationError naming the one whose Hessian does.
    """
    is_kept = tensor.format.name == row.format.name
    methods = [] if is_kept else _methods_to_try(row, inputs)
    attempts = [_Attempt(method, np.zeros(tensor.columns), np.zeros(tensor.columns)) for method in methods]
    for weight in _slabs(tensor, tensor.format if is_kept else row.format, threads):
        _check_finite(row.name, weight)
        target = weight if inputs.retargeting is None else retargeted(weight, inputs.retargeting)
        for attempt in attempts:
            _quantize_slab(target, row, attempt, inputs, threads)
    if is_kept:
        errors = (0.0, None if inputs.mean_square is None else 0.0)
        entry = entry_for(row, errors=errors, tokens=inputs.tokens)
        return QuantizedTensor(row.name, row.shape, row.format, tensor.planes), entry
    # The baseline comes last and stays unless the method is truly lower: a loss that is NaN never wins.
    chosen = min(reversed(attempts), key=lambda attempt: attempt.held_out)
    entry = entry_for(
        row,
        method=chosen.method,
        reason="; ".join([row.reason, *_remarks(row, attempts, chosen, inputs)]),
        errors=chosen.errors(inputs),
        tokens=inputs.tokens,
    )
    return QuantizedTensor(row.name, row.shape, row.format, row.format.joined_rows(chosen.planes)), entry


def quantize_stack(
    tensor: QuantizedTensor, row: TensorPlan, inputs: Sequence[LayerInputs], *, threads: int
) -> tuple[QuantizedTensor, LedgerEntry]:
    """A tensor [experts, out, in] as `row` plans it.  inputs: what each expert saw.

    Starved experts are fitted with a neutral prior, and the ledger names them. A format that shares a parameter over
    the whole tensor is fitted to all experts at once.  Raises as quantize_tensor.
    """
    whole = row.format.row_step is None or tensor.format.row_step is None or tensor.format.name == row.format.name
    if whole or not any(each.tokens for each in inputs):
        return quantize_tensor(tensor, row, NO_INPUTS, threads=threads)
    results = [
        quantize_tensor(expert, replace(row, shape=expert.shape), each, threads=threads)
        for expert, each in zip(experts_of_stack(tensor), with_prior(inputs), strict=True)
    ]
    planes = row.format.joined_rows([part.planes for part, _ in results])
    entry = _joined([entry for _, entry in results], row, inputs)
    return QuantizedTensor(row.name, row.shape, row.format, planes), entry


def experts_of_stack(tensor: QuantizedTensor) -> Iterator[QuantizedTensor]:
    """The matrices of a stack, one at a time."""
    planes = tensor.planes
    if isinstance(tensor.format, BlockFormat):
        planes = {"blocks": planes["blocks"].reshape(tensor.rows, -1)}
    rows = tensor.shape[-2]
    for start in range(0, tensor.rows, rows):
        part = tensor.format.row_range(planes, start, start + rows)
        yield QuantizedTensor(tensor.name, tensor.shape[-2:], tensor.format, part)


def _joined(entries: Sequence[LedgerEntry], row: TensorPlan, inputs: Sequence[LayerInputs]) -> LedgerEntry:
    """What was done to a stack, from what was done to its experts: errors are means, tokens are added up."""
    reason = row.reason
    fallen = [expert for expert, entry in enumerate(entries) if entry.method != row.method]
    if fallen:
        reason += f"; {entries[fallen[0]].method} for {len(fallen)} of {len(entries)} experts"
    if starved := starved_experts(inputs):
        named = ", ".join(map(str, starved[:NAMED])) + (" …" if len(starved) > NAMED else "")
        reason += (
            f"; {len(starved)} of {len(entries)} experts saw fewer than {STARVED_BELOW} tokens ({named}): "
            "fitted with the mean of all experts"
        )
    return replace(
        entries[0],
        name=row.name,
        shape=row.shape,
        method=row.method if len(fallen) < len(entries) else entries[0].method,
        reason=reason,
        bytes=row.nbytes,
        relative_error=_mean([entry.relative_error for entry in entries]),
        weighted_error=_mean([entry.weighted_error for entry in entries]),
        tokens=sum(each.tokens for each in inputs),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return float(np.mean(found)) if found else None


def _methods_to_try(row: TensorPlan, inputs: LayerInputs) -> list[str]:
    method = METHODS[row.method]
    if method.needs != "hessian" or method.baseline is None:
        return [row.method]
    if inputs.hessian is None:
        return [method.baseline]
    return [row.method] if inputs.held_out is None else [row.method, method.baseline]


def _remarks(row: TensorPlan, attempts: list[_Attempt], chosen: _Attempt, inputs: LayerInputs) -> Iterator[str]:
    """What the ledger adds to the plan's reason."""
    if inputs.retargeting is not None:
        yield "retargeted to quantized inputs"
    if len(attempts) == 1 and chosen.method != row.method:
        yield f"no token of the text reached it, so {chosen.method}"
    elif len(attempts) == 1 and METHODS[row.method].needs == "hessian":
        yield "kept unjudged: the text is too short to hold a part of it out"
    if chosen.overflows:
        yield f"{chosen.overflows} values beyond F16's range became infinite"
    if len(attempts) > 1:
        ratio = _ratio(attempts[0].held_out, attempts[-1].held_out)
        fell_back = chosen is not attempts[0]
        yield f"held-out loss {ratio:.3f} of {attempts[-1].method}'s{', which is kept' if fell_back else ''}"


def _quantize_slab(weight: FloatArray, row: TensorPlan, attempt: _Attempt, inputs: LayerInputs, threads: int) -> None:
    try:
        planes = METHODS[attempt.method].quantize(row.format, weight, inputs, threads=threads)
    except CalibrationError as error:
        raise CalibrationError(f"{row.name}: {error}") from error
    residual = decode(row.format, planes, weight.shape[1], threads=threads) - weight
    if row.format.name == "f16":
        attempt.overflows += count_overflows(weight)
        residual[~np.isfinite(residual)] = 0.0
    if inputs.held_out is not None:
        attempt.held_out += quadratic_loss(residual, inputs.held_out)
    attempt.error += np.square(residual, out=residual).sum(axis=0, dtype=np.float64)
    attempt.energy += np.square(weight).sum(axis=0, dtype=np.float64)
    attempt.planes.append(planes)


def retargeted(weight: FloatArray, retargeting: Array) -> FloatArray:
    """W + W R of weight W [rows, columns]: what to round instead of it."""
    import torch

    change = torch.from_numpy(weight) @ torch.as_tensor(retargeting, dtype=torch.float32).cpu()
    target: FloatArray = weight + change.numpy()
    return target


def quadratic_loss(residual: FloatArray, hessian: Array) -> float:
    """tr(D H D^T) of residual D [rows, columns]: the sum over float32 products in float64, in a fixed order."""
    import torch

    difference = torch.from_numpy(residual)
    spread = (difference @ torch.as_tensor(hessian, dtype=torch.float32).cpu()).numpy()
    return float(np.einsum("ij,ij->", spread, residual, dtype=np.float64))


def _slabs(tensor: QuantizedTensor, target: NumberFormat, threads: int) -> Iterator[FloatArray]:
    """Float32 [rows, columns] pieces of the tensor, cut where both its own and the target format may be cut."""
    planes = tensor.planes
    if isinstance(tensor.format, BlockFormat):
        planes = {"blocks": planes["blocks"].reshape(tensor.rows, -1)}
    step = slab_rows(tensor.format, target, tensor.rows, tensor.columns)
    for start in range(0, tensor.rows, step):
        part = tensor.format.row_range(planes, start, min(start + step, tensor.rows))
        yield decode(tensor.format, part, tensor.columns, threads=threads)


def slab_rows(stored: NumberFormat, target: NumberFormat, rows: int, columns: int) -> int:
    """Rows of one slab: all of them where either format shares a parameter over the whole tensor."""
    if stored.row_step is None or target.row_step is None:
        return max(rows, 1)
    together = lcm(stored.row_step, target.row_step)
    return max(1, SLAB_WEIGHTS // max(columns, 1) // together) * together


def _ratio(error: float, energy: float) -> float:
    return error / energy if energy > 0.0 else 0.0


def _check_finite(name: str, weight: FloatArray) -> None:
    # A finite sum proves finite terms; only otherwise is the closer look worth its time.
    if np.isfinite(np.sum(weight, dtype=np.float64)):
        return
    bad = np.argwhere(~np.isfinite(weight))
    if len(bad):
        first_row, first_column = (int(i) for i in bad[0])
        raise FormatError(
            f"{name}: {len(bad)} values are NaN or infinite (the first at row {first_row}, column {first_column}); "
            "the checkpoint is damaged or its training diverged: download it again or repair this tensor"
        )
