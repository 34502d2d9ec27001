# SPDX-License-Identifier: Apache-2.0
"""AWQ scaling: columns that see large inputs are scaled up before rounding, and their inputs down.

Problem   in a group of weights with one scale, the error of each is alike, but errors at large inputs cost most.
Idea      multiply column j by s_j = (mean square of input j)^(alpha / 2) and divide what makes the input by it: in the
          norm's weight, the value rows or the up rows before. Relative errors of the columns that matter shrink.
          alpha is searched for each edge on a grid, by the loss after quantizing with the planned formats.
Changes   from AWQ: root mean square instead of mean magnitude (it is in the imatrix); the loss is that of every matrix
          at the edge, the one whose rows are divided included, each relative to its loss without scaling, on some of
          its rows. alpha = 0 is among the candidates, so that no edge gets worse by that measure.
Cost      a pass of the float model for the statistics, and 13 encodings of 256 rows of each matrix.
Not when  the codes are chosen with importance already (searched_scales) or feedback, and no input stands out by far:
          on the built-in model no difference was measured with either, at 2 to 4 bits (docs/log.md). It is for
          methods that weigh nothing, such as round_to_nearest, and for models with outlier channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lilliput.architectures.foldable_edges import FoldableEdge
from lilliput.arrays import FloatArray
from lilliput.checkpoints.model_source import ModelSource
from lilliput.formats import NumberFormat
from lilliput.formats.native_decode import decode
from lilliput.methods import METHODS
from lilliput.records import AppliedEdge, LayerInputs, TensorPlan
from lilliput.transforms.edge_scaling import (
    as_read,
    changes_of_scaling,
    channel_mean_square,
    known_inputs,
    normalized,
    outline_of_scaling,
    scaling_edges,
)
from lilliput.transforms.transform import Guide, Outline, Rewrite

# Exponents tried first, and how far around the best one the second look goes.
GRID = tuple(step / 10 for step in range(11))
REFINEMENT = 0.05
# Rows of each matrix that the search encodes, evenly spread.
ROWS = 256


class AwqScaling:
    """Scaling of every foldable edge, strength searched or given."""

    name: str = "awq_scaling"
    paper: str = "https://arxiv.org/abs/2306.00978 (AWQ)"
    needs: Literal["nothing", "statistics"] = "statistics"
    mixes_inputs: bool = False

    def __init__(self, strength: float | None = None) -> None:
        self.strength = strength

    def outline(self, source: ModelSource) -> Outline:
        """Every edge from a norm, from the values and from the up projection. Raises UnsupportedModelError."""
        return outline_of_scaling(source, self.name)

    def rewrite(self, source: ModelSource, guide: Guide) -> Rewrite:
        """Search each edge's exponent. Raises CalibrationError without statistics."""
        edges = scaling_edges(source)
        known = known_inputs(edges, guide.statistics, self.name)
        factors: dict[str, FloatArray] = {}
        applied = []
        for edge in edges:
            if edge.name not in known:
                applied.append(AppliedEdge(self.name, edge.name, 0.0))
                continue
            root: FloatArray = np.sqrt(channel_mean_square(known[edge.name], edge))
            strength, ratio = self._searched(edge, root, source, guide)
            applied.append(AppliedEdge(self.name, edge.name, strength, ratio))
            if strength:
                factors[edge.name] = normalized(root ** np.float32(strength))
        return Rewrite(changes_of_scaling(factors, edges), tuple(applied))

    def _searched(
        self, edge: FoldableEdge, root: FloatArray, source: ModelSource, guide: Guide
    ) -> tuple[float, float | None]:
        """Best exponent, and its loss over that without scaling."""
        if self.strength is not None:
            return self.strength, None
        parts = list(_parts(edge, source, guide))
        before = [part.loss(np.ones_like(root), guide.threads) for part in parts]
        known: dict[float, float] = {0.0: 1.0}

        def ratio(strength: float) -> float:
            if strength not in known:
                scale = normalized(root ** np.float32(strength))
                known[strength] = float(
                    np.mean([part.loss(scale, guide.threads) / loss for part, loss in zip(parts, before, strict=True)])
                )
            return known[strength]

        if not parts or not all(before):
            return 0.0, None  # floats: nothing is rounded here
        best = min(GRID, key=ratio)
        best = min((best, max(best - REFINEMENT, 0.0), min(best + REFINEMENT, 1.0)), key=ratio)
        return round(best, 2), ratio(best)


@dataclass(frozen=True, slots=True)
class _Part:
    """Some rows of one quantized matrix at an edge. mean_square: [columns] of its input, before scaling.

    made: channels that its rows make, where it is a maker; None for a reader.
    """

    weight: FloatArray
    mean_square: FloatArray
    row: TensorPlan
    method: str
    edge: FoldableEdge
    made: np.ndarray[tuple[int], np.dtype[np.int64]] | None

    def loss(self, scale: FloatArray, threads: int) -> float:
        """Mean square of the output error, in units of the unscaled model, for factors [channels] at the edge."""
        number_format: NumberFormat = self.row.format
        if self.made is not None:
            rows, mean_square = scale[self.made], self.mean_square
            weight = self.weight / rows[:, None]
        else:
            columns = as_read(scale, self.edge.heads)
            rows = np.ones(len(self.weight), dtype=np.float32)
            weight, mean_square = self.weight * columns, self.mean_square / columns**2
        inputs = LayerInputs(tokens=1, mean_square=mean_square)
        planes = METHODS[self.method].quantize(number_format, weight, inputs, threads=threads)
        error = (decode(number_format, planes, weight.shape[1], threads=threads) - weight) * rows[:, None]
        return float(np.square(error).sum(axis=0, dtype=np.float64) @ mean_square.astype(np.float64))


def _parts(edge: FoldableEdge, source: ModelSource, guide: Guide) -> Iterator[_Part]:
    """Every matrix at an edge that is going to be rounded."""
    for name in (*edge.makers, *edge.readers):
        row = guide.rows.get(name)
        entry = guide.statistics.inputs.get(name) if guide.statistics is not None else None
        if row is None or row.method == "copy" or not row.format.scopes or entry is None:
            continue
        method = METHODS[row.method]
        judge = row.method if method.needs != "hessian" else method.baseline or "searched_scales"
        weight = source.tensor(name).dequantize()
        sample = np.unique(np.linspace(0, len(weight) - 1, min(ROWS, len(weight))).astype(np.int64))
        made = sample if name in edge.makers else None
        yield _Part(np.ascontiguousarray(weight[sample]), entry.input_mean_square, row, judge, edge, made)
        source.release(name)
