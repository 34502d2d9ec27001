# SPDX-License-Identifier: Apache-2.0
"""The loop from plan rows to quantized tensors: one tensor, one slab of rows in float32 at a time.

Peak memory is one stored tensor plus a few slabs, whatever the model's size. Every row of the plan yields one tensor
and one ledger entry, in plan order; a row that cannot be done raises, it is never skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast

import numpy as np

from lilliput.arrays import FloatArray
from lilliput.checkpoints.model_source import ModelSource
from lilliput.errors import FormatError
from lilliput.formats import BlockFormat, NumberFormat, Planes
from lilliput.formats.native_decode import decode
from lilliput.methods import METHODS
from lilliput.recipes.ledger import LedgerEntry
from lilliput.recipes.plan import Plan
from lilliput.records import QuantizedTensor, Statistics, TensorPlan

# 16 MB of float32 a slab: large enough to keep every thread busy, small beside any model's own tensors.
SLAB_WEIGHTS = 1 << 22
F16_LARGEST = 65504.0
COPY = "copy"


@dataclass(slots=True)
class _Errors:
    """Sums of one tensor, gathered slab by slab in float64."""

    squared: float = 0.0
    weighted: float = 0.0
    energy: float = 0.0
    weighted_energy: float = 0.0
    overflows: int = 0
    planes: list[Planes] = field(default_factory=list)


def quantized_tensors(
    source: ModelSource, plan: Plan, statistics: Statistics | None, *, threads: int
) -> Iterator[tuple[QuantizedTensor, LedgerEntry]]:
    """Yield each planned tensor, quantized, with what was done to it. Tied tensors share bytes and are not yielded.

    Raises FormatError naming the tensor that holds NaN or infinity.
    """
    for row in plan.rows:
        if row.tied_to is None:
            yield _quantize(source.tensor(row.name), row, statistics, threads)


def _quantize(
    tensor: QuantizedTensor, row: TensorPlan, statistics: Statistics | None, threads: int
) -> tuple[QuantizedTensor, LedgerEntry]:
    inputs = statistics.inputs.get(row.name) if statistics is not None else None
    importance = inputs.input_mean_square if inputs is not None and inputs.tokens > 0 else None
    errors = _Errors()
    if tensor.format.name == row.format.name:
        planes = tensor.planes
        for weight in _slabs(tensor, threads):
            _check_finite(row.name, weight)
    else:
        for weight in _slabs(tensor, threads):
            _check_finite(row.name, weight)
            _quantize_slab(weight, row, importance, errors, threads)
        planes = _joined(errors.planes)
    done = QuantizedTensor(row.name, row.shape, row.format, planes)
    return done, LedgerEntry(
        name=row.name,
        source_name=row.source_name,
        planned_format=row.format.name,
        format=done.format.name,
        method=row.method,
        reason=row.reason,
        bytes=done.nbytes,
        relative_error=errors.squared / errors.energy if errors.energy else 0.0,
        weighted_relative_error=errors.weighted / errors.weighted_energy if errors.weighted_energy else None,
        tokens_seen=inputs.tokens if inputs is not None else 0,
        f16_overflows=errors.overflows,
    )


def _quantize_slab(
    weight: FloatArray, row: TensorPlan, importance: FloatArray | None, errors: _Errors, threads: int
) -> None:
    method = METHODS[row.method]
    # Vectors and embeddings have no input statistics of their own.
    planes = method.quantize(row.format, weight, importance, threads=threads)
    residual = decode(row.format, planes, weight.shape[1], threads=threads) - weight
    if row.format.name == "f16":
        errors.overflows += int(np.count_nonzero(np.abs(weight) > F16_LARGEST))
        residual = np.where(np.isfinite(residual), residual, 0.0).astype(np.float32)
    squares, energies = residual * residual, weight * weight
    errors.squared += float(squares.sum(dtype=np.float64))
    errors.energy += float(energies.sum(dtype=np.float64))
    if importance is not None:
        errors.weighted += float(squares.sum(axis=0, dtype=np.float64) @ importance.astype(np.float64))
        errors.weighted_energy += float(energies.sum(axis=0, dtype=np.float64) @ importance.astype(np.float64))
    errors.planes.append(planes)


def _slabs(tensor: QuantizedTensor, threads: int) -> Iterator[FloatArray]:
    """Float32 [rows, columns] pieces of the tensor."""
    if not isinstance(tensor.format, BlockFormat):
        yield tensor.format.dequantize(tensor.planes, tensor.columns).reshape(-1, tensor.columns)
        return
    blocks = tensor.planes["blocks"].reshape(tensor.rows, -1)
    step = max(1, SLAB_WEIGHTS // tensor.columns)
    for start in range(0, tensor.rows, step):
        yield decode(tensor.format, {"blocks": blocks[start : start + step]}, tensor.columns, threads=threads)


def _joined(slabs: list[Planes]) -> Planes:
    if len(slabs) == 1:
        return slabs[0]
    return {"blocks": np.concatenate([slab["blocks"] for slab in slabs])}


def _check_finite(name: str, weight: FloatArray) -> None:
    # A sum is finite only if every term is, or if huge terms overflow it: look closer only then.
    if np.isfinite(np.sum(weight, dtype=np.float64)):
        return
    bad = np.argwhere(~np.isfinite(weight))
    if len(bad):
        first_row, first_column = (int(i) for i in bad[0])
        raise FormatError(
            f"{name}: {len(bad)} values are NaN or infinite (the first at row {first_row}, column {first_column}); "
            "the checkpoint is damaged or its training diverged: download it again or repair this tensor"
        )


def supports(method: str, number_format: NumberFormat) -> bool:
    """Whether a method can choose codes for a format."""
    return cast(bool, METHODS[method].supports(number_format))
