# SPDX-License-Identifier: Apache-2.0
"""Searched clipping: how far to cut each group, judged by the layer's outputs.

Problem   the range of a group that keeps its weights best is not the one that keeps the layer's outputs best: inputs
          differ in size and come together.
Idea      AWQ's clipping search: shrink the absmax (or min-max) range of each group step by step, round, and keep the
          step whose error costs the outputs least, d H d^T over the columns of the group.
Changes   AWQ measures on sampled inputs; here the group's part of the Hessian stands for all of them, or the mean
          squares where there is no Hessian. AWQ's scaling of channels is a transform of the model and not part of this.
Cost      24 roundings per weight, and as many products with the group's part of the Hessian.
Not when  the Hessian is there and time is not short: feedback also moves the codes.
"""

from __future__ import annotations

import numpy as np

from lilliput.arrays import FloatArray
from lilliput.errors import CalibrationError
from lilliput.formats import Encoded, NumberFormat, Parameters, Planes
from lilliput.formats.scale_search import bounded
from lilliput.methods.method import Needs
from lilliput.records import LayerInputs

# Parts of a group's largest magnitude at which it is clipped, widest first: a tie keeps the range.
SHARES = (*(1.0 - 0.025 * step for step in range(20)), 0.45, 0.4, 0.35, 0.3)
# Weights of one piece.
PIECE_WEIGHTS = 1 << 18


class SearchedClipping:
    """Absmax or min-max ranges, clipped where the outputs gain."""

    name: str = "searched_clipping"
    paper: str = "https://arxiv.org/abs/2306.00978 (AWQ), the clipping of its implementation"
    needs: Needs = "mean_square"
    baseline: str | None = "round_to_nearest"

    def supports(self, number_format: NumberFormat) -> bool:
        """One level of parameters, each set for a group of a row or for the row."""
        return number_format.can_encode and len(number_format.scopes) == 1 and number_format.row_step == 1

    def quantize(self, number_format: NumberFormat, weight: FloatArray, inputs: LayerInputs, *, threads: int) -> Planes:
        """Weight [rows, columns] -> stored planes. Raises CalibrationError without any statistics of the inputs."""
        number_format.check_columns("weight", weight.shape[1])
        metric = _group_metric(inputs, number_format.scopes[0].columns or weight.shape[1])
        weight = np.asarray(bounded(np.asarray(weight, dtype=np.float32)))
        step = max(1, PIECE_WEIGHTS // max(weight.shape[1], 1))
        pieces = []
        for start in range(0, max(len(weight), 1), step):
            piece = weight[start : start + step]
            parameters = clipped_parameters(number_format, piece, metric)
            pieces.append(number_format.pack(Encoded(number_format.nearest_codes(piece, parameters), parameters)))
        return number_format.joined_rows(pieces)


def clipped_parameters(number_format: NumberFormat, weight: FloatArray, metric: FloatArray) -> Parameters:
    """Parameters of each group of float32 weight [rows, columns], as stored; metric: see `_group_metric`."""
    rows, columns = weight.shape
    width = metric.shape[1]
    peak = np.abs(weight).reshape(rows, -1, width).max(axis=2, keepdims=True)
    best: dict[str, FloatArray] = {}
    lowest: FloatArray | None = None
    for share in SHARES:
        limit = np.broadcast_to(peak * np.float32(share), (rows, columns // width, width)).reshape(rows, columns)
        parameters = number_format.widest_parameters(np.clip(weight, -limit, limit))
        values = number_format.values(number_format.nearest_codes(weight, parameters), parameters)
        loss = _loss(values - weight, metric)
        if lowest is None:
            best, lowest = dict(parameters), loss
            continue
        is_better = loss < lowest
        for name, found in parameters.items():
            chosen = is_better.reshape(*is_better.shape, *(1 for _ in found.shape[2:]))
            best[name] = np.where(chosen, found, best[name])
        lowest = np.where(is_better, loss, lowest)
    return best


def _group_metric(inputs: LayerInputs, width: int) -> FloatArray:
    """What errors of a group cost: [groups, width, width] from the Hessian, or [groups, width] from mean squares."""
    if inputs.hessian is not None:
        hessian = np.asarray(inputs.hessian, dtype=np.float32)
        groups = np.arange(len(hessian)).reshape(-1, width)
        blocks: FloatArray = hessian[groups[:, :, None], groups[:, None, :]]
        return blocks
    if inputs.mean_square is None:
        raise CalibrationError("clipping is judged by the layer's inputs; give --text, --statistics or --imatrix")
    return np.asarray(inputs.mean_square, dtype=np.float32).reshape(-1, width)


def _loss(error: FloatArray, metric: FloatArray) -> FloatArray:
    """[rows, groups] cost of error [rows, columns]."""
    rows = error.shape[0]
    grouped = error.reshape(rows, -1, metric.shape[1])
    if metric.ndim == 2:
        plain: FloatArray = (grouped * grouped * metric).sum(axis=2)
        return plain
    # One product per group, rows in one matrix: [groups, rows, width] @ [groups, width, width].
    stacked = np.ascontiguousarray(grouped.transpose(1, 0, 2))
    cost: FloatArray = ((stacked @ metric) * stacked).sum(axis=2).T
    return cost
