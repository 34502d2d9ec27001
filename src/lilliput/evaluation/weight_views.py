# SPDX-License-Identifier: Apache-2.0
"""How a stored tensor differs from its original: relative squared error, histograms, and the grid of one group.

Large tensors are sampled: SAMPLE weights in RUNS runs of rows, evenly spaced, so that memory and time stay bounded.
The relative error of a million weights is known to a fraction of a percent.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import lcm

import numpy as np

from lilliput.arrays import Array, FloatArray
from lilliput.formats import NumberFormat
from lilliput.formats.native_decode import decode
from lilliput.formats.number_format import Encoded, Planes
from lilliput.formats.ordered_groups import COLUMN_GROUP, OrderedGroups
from lilliput.records import QuantizedTensor
from lilliput.reports.records import Histogram, WeightPicture

SAMPLE = 1 << 20
RUNS = 16
BINS = 96
# The histogram ends where this share of the weights lies beyond.
BEYOND = 0.001
# More levels than this are no grid that one could see.
MOST_LEVELS = 256
LONGEST_GROUP = 256


def relative_error(original: QuantizedTensor, quantized: QuantizedTensor) -> float:
    """Sum (w - v)^2 / sum w^2 over the sample, in float64; 0 for an all-zero tensor that stayed so."""
    error = energy = 0.0
    for weight, value in sampled_rows(original, quantized):
        difference = weight.astype(np.float64) - value
        error += float(np.vdot(difference, difference))
        energy += float(np.sum(np.square(weight, dtype=np.float64)))
    return error / energy if energy else (0.0 if error == 0.0 else float("inf"))


def picture(original: QuantizedTensor, quantized: QuantizedTensor, *, why: str, error: float) -> WeightPicture:
    """Histograms of both, and the weights and levels of one typical group."""
    pairs = list(sampled_rows(original, quantized))
    weight = np.concatenate([pair[0].reshape(-1) for pair in pairs])
    value = np.concatenate([pair[1].reshape(-1) for pair in pairs])
    group, levels, name = _group(original, quantized)
    peak = max(float(np.quantile(np.abs(weight), 1.0 - BEYOND)), *(abs(level) for level in levels[:1] + levels[-1:]), 0)
    edges = np.linspace(-peak or -1.0, peak or 1.0, BINS + 1)
    return WeightPicture(
        tensor=quantized.name,
        why=why,
        format=quantized.format.name.upper(),
        relative_error=error,
        original=_histogram(weight, edges),
        quantized=_histogram(value, edges),
        group=group,
        levels=levels,
        group_name=name,
    )


def sampled_rows(original: QuantizedTensor, quantized: QuantizedTensor) -> Iterator[tuple[FloatArray, FloatArray]]:
    """Float32 rows of both, [n, columns] each; all of a small tensor, evenly spaced runs of a large one."""
    rows, columns = quantized.rows, quantized.columns
    step = lcm(original.format.row_step or 1, quantized.format.row_step or 1)
    run = -(-SAMPLE // RUNS // max(columns, 1) // step) * step or step
    if rows <= run * RUNS:
        starts, run = np.zeros(1, dtype=np.int64), rows
    else:
        starts = np.linspace(0, rows - run, RUNS).astype(np.int64) // step * step
    for start in starts.tolist():
        yield _rows(original, start, start + run), _rows(quantized, start, start + run)


def _rows(tensor: QuantizedTensor, start: int, stop: int) -> FloatArray:
    if len(tensor.shape) < 2:
        return tensor.dequantize().reshape(1, -1)
    return decode(tensor.format, _planes(tensor, start, stop), tensor.columns)


def _planes(tensor: QuantizedTensor, start: int, stop: int) -> Planes:
    return tensor.planes if (start, stop) == (0, tensor.rows) else tensor.format.row_range(tensor.planes, start, stop)


def _histogram(values: FloatArray, edges: Array) -> Histogram:
    counts, _ = np.histogram(values, edges)
    return Histogram(tuple(float(f"{edge:.6g}") for edge in edges), tuple(counts.tolist()))


def _group(original: QuantizedTensor, quantized: QuantizedTensor) -> tuple[tuple[float, ...], tuple[float, ...], str]:
    """Float weights and levels of the group of median peak in a row of the middle, and how to call it."""
    number_format = quantized.format
    step = lcm(original.format.row_step or 1, number_format.row_step or 1)
    row = quantized.rows // 2 // step * step
    stop = min(row + step, quantized.rows)
    planes = _planes(quantized, row, stop)
    weight = _rows(original, row, stop)[0]
    groups = groups_of_columns(number_format, planes, quantized.columns)
    peaks = np.abs(weight[groups]).max(axis=1)
    columns = groups[int(np.argsort(peaks, kind="stable")[len(peaks) // 2])]
    levels = group_levels(number_format, number_format.unpack(planes, quantized.columns), columns)
    shown = weight[columns][:LONGEST_GROUP]
    first, last = int(columns[0]), int(columns[-1])
    is_run = last - first == len(columns) - 1
    name = f"row {row}, " + (f"columns {first} to {last}" if is_run else f"{len(columns)} columns that share a scale")
    return tuple(float(f"{item:.5g}") for item in shown), tuple(float(f"{item:.6g}") for item in levels), name


def groups_of_columns(number_format: NumberFormat, planes: Planes, columns: int) -> Array:
    """int64 [groups, width]: the columns that share all parameters; whole rows where nothing narrower is declared.

    Columns beyond the last whole group are left out.
    """
    if isinstance(number_format, OrderedGroups):
        # Ascending within each group, since the sort is stable.
        order = np.argsort(np.asarray(planes[COLUMN_GROUP]).reshape(-1), kind="stable")
        return order.reshape(-1, number_format.block_size)
    widths = [scope.columns for scope in number_format.scopes if scope.columns is not None and scope.columns > 1]
    width = min([*widths, columns])
    return np.arange(columns // width * width).reshape(-1, width)


def group_levels(number_format: NumberFormat, encoded: Encoded, columns: Array) -> list[float]:
    """The values that codes of these columns can take in the first row, ascending; empty where there are too many.

    Of formats whose codes stand for several columns, the values that the group does take, and their negatives.
    encoded: whole rows.  columns: integers, one of `groups_of_columns`.
    """
    codes = np.asarray(encoded.codes)
    if not np.issubdtype(codes.dtype, np.integer):
        return []
    if number_format.unit > 1:
        used = np.asarray(number_format.values(codes, encoded.parameters))[0, columns]
        found: list[float] = np.unique(np.concatenate([used, -used])).tolist()
        return found
    first, last = int(codes.min()), int(codes.max())
    if not 0 < last - first < MOST_LEVELS:
        return []
    levels = set()
    for code in range(first, last + 1):
        constant = np.full_like(codes, code)
        values = np.asarray(number_format.values(constant, encoded.parameters))[0, columns]
        # A few of the columns may hold outliers, which no code reaches.
        levels.add(float(np.median(values)))
    return sorted(levels)
