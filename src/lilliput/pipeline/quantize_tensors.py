# SPDX-License-Identifier: Apache-2.0
"""The loop from plan rows to quantized tensors: one tensor, one slab of rows in float32 at a time.

Peak memory is one stored tensor plus a few slabs, whatever the model's size; a format that shares a parameter over a
whole tensor takes that tensor in float32 at once. Every row of the plan yields one tensor
and one ledger entry, in plan order; a row that cannot be done raises, it is never skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import lcm

import numpy as np

from lilliput.arrays import DoubleArray, FloatArray
from lilliput.checkpoints.model_source import ModelSource
from lilliput.errors import FormatError
from lilliput.formats import BlockFormat, NumberFormat, Planes
from lilliput.formats.f16 import count_overflows
from lilliput.formats.native_decode import decode
from lilliput.methods import METHODS
from lilliput.recipes.ledger import LedgerEntry, entry_for
from lilliput.recipes.plan import Plan
from lilliput.records import NO_INPUTS, LayerInputs, QuantizedTensor, Statistics, TensorPlan

# 16 MB of float32 a slab: large enough to keep every thread busy, small beside any model's own tensors.
SLAB_WEIGHTS = 1 << 22


def quantized_tensors(
    source: ModelSource, plan: Plan, statistics: Statistics | None, *, threads: int
) -> Iterator[tuple[QuantizedTensor, LedgerEntry]]:
    """Yield each planned tensor, quantized, with what was done to it; a tied tensor has no row of its own.

    Raises FormatError naming the tensor that holds NaN or infinity.
    """
    for row in plan.rows:
        yield _quantize(source.tensor(row.name), row, statistics, threads)
        # Taken and written by now: its pages of the mapped checkpoint need not stay in memory.
        source.release(row.name)


@dataclass(slots=True)
class _Work:
    """One tensor under way: finished slabs, and sums of squares per column in float64."""

    inputs: LayerInputs
    error: DoubleArray
    energy: DoubleArray
    overflows: int = 0
    planes: list[Planes] = field(default_factory=list)

    def errors(self) -> tuple[float | None, float | None]:
        """Relative squared error, plain and weighted by the input mean square."""
        plain = _ratio(float(self.error.sum()), float(self.energy.sum()))
        importance = self.inputs.mean_square
        if importance is None:
            return plain, None
        return plain, _ratio(float(self.error @ importance), float(self.energy @ importance))


def _quantize(
    tensor: QuantizedTensor, row: TensorPlan, statistics: Statistics | None, threads: int
) -> tuple[QuantizedTensor, LedgerEntry]:
    inputs = statistics.inputs.get(row.name) if statistics is not None else None
    known = LayerInputs(inputs.tokens, inputs.input_mean_square) if inputs is not None and inputs.tokens else NO_INPUTS
    work = _Work(known, np.zeros(tensor.columns), np.zeros(tensor.columns))
    is_kept = tensor.format.name == row.format.name
    for weight in _slabs(tensor, tensor.format if is_kept else row.format, threads):
        _check_finite(row.name, weight)
        if not is_kept:
            _quantize_slab(weight, row, work, threads)
    planes = tensor.planes if is_kept else row.format.joined_rows(work.planes)
    entry = entry_for(
        row,
        reason=f"{row.reason}; {work.overflows} values beyond F16's range became infinite" if work.overflows else None,
        errors=(0.0, None if known is NO_INPUTS else 0.0) if is_kept else work.errors(),
        tokens=inputs.tokens if inputs is not None else 0,
    )
    return QuantizedTensor(row.name, row.shape, row.format, planes), entry


def _quantize_slab(weight: FloatArray, row: TensorPlan, work: _Work, threads: int) -> None:
    planes = METHODS[row.method].quantize(row.format, weight, work.inputs, threads=threads)
    residual = decode(row.format, planes, weight.shape[1], threads=threads) - weight
    if row.format.name == "f16":
        work.overflows += count_overflows(weight)
        residual[~np.isfinite(residual)] = 0.0
    work.error += np.square(residual, out=residual).sum(axis=0, dtype=np.float64)
    work.energy += np.square(weight).sum(axis=0, dtype=np.float64)
    work.planes.append(planes)


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
