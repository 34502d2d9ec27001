# SPDX-License-Identifier: Apache-2.0
"""SmoothQuant: outliers of the inputs are moved into the weights, until both are equally hard to round.

Problem   a few input channels are a hundred times larger than the rest; inputs of 8 bits with one scale a token then
          have nothing left for the others.
Idea      divide input j by s_j = max|x_j|^a / max|w_j|^(1 - a), multiply column j by it; a = 0.5 meets half way.
          The division is folded into the norm, value rows or up rows before.
Changes   edges of grouped heads: the largest of the heads that share a channel counts.
Cost      a pass of the float model for the absolute maxima.
Not when  only weights are rounded: their columns get more unequal, not less.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from lilliput.architectures.foldable_edges import FoldableEdge
from lilliput.arrays import FloatArray
from lilliput.checkpoints.model_source import ModelSource
from lilliput.errors import CalibrationError
from lilliput.records import AppliedEdge
from lilliput.transforms.edge_scaling import (
    by_channel,
    changes_of_scaling,
    known_inputs,
    normalized,
    outline_of_scaling,
    scaling_edges,
)
from lilliput.transforms.transform import Guide, Outline, Rewrite

DEFAULT_STRENGTH = 0.5
# A channel that is zero on one side is scaled as if it had this part of the largest one's magnitude.
LEAST_MAGNITUDE = 1e-5


class SmoothQuant:
    """Smoothing of every foldable edge. strength: 0 leaves weights easy, 1 leaves inputs easy."""

    name: str = "smooth_quant"
    paper: str = "https://arxiv.org/abs/2211.10438 (SmoothQuant)"
    needs: Literal["nothing", "statistics"] = "statistics"
    mixes_inputs: bool = False

    def __init__(self, strength: float | None = None) -> None:
        self.strength: float | None = DEFAULT_STRENGTH if strength is None else strength

    def outline(self, source: ModelSource) -> Outline:
        """Every edge from a norm, from the values and from the up projection. Raises UnsupportedModelError."""
        return outline_of_scaling(source, self.name)

    def rewrite(self, source: ModelSource, guide: Guide) -> Rewrite:
        """Factors from the absolute maxima. Raises CalibrationError without them."""
        assert self.strength is not None
        edges = scaling_edges(source)
        known = known_inputs(edges, guide.statistics, self.name)
        factors = {}
        for edge in (edge for edge in edges if edge.name in known):
            absmax = known[edge.name].absmax
            if not np.isfinite(absmax).all():
                raise CalibrationError(
                    f"{self.name}: the statistics hold no absolute maxima of what enters {edge.readers[0]} (an imatrix "
                    "file has none); give --text, or --statistics from `lilliput calibrate`"
                )
            inputs = by_channel(absmax, edge.heads).max(axis=0)
            factors[edge.name] = smoothing_factors(inputs, _weight_maxima(edge, source), self.strength)
        applied = tuple(
            AppliedEdge(self.name, edge.name, self.strength if edge.name in factors else 0.0) for edge in edges
        )
        return Rewrite(changes_of_scaling(factors, edges), applied)


def smoothing_factors(inputs: FloatArray, weights: FloatArray, strength: float) -> FloatArray:
    """What each input is divided by, and its column of the weight multiplied by, [columns].

    inputs, weights: largest magnitudes of each column [columns].
    """
    return normalized(_floored(inputs) ** strength / _floored(weights) ** (1.0 - strength))


def _weight_maxima(edge: FoldableEdge, source: ModelSource) -> FloatArray:
    """[made channels]: largest magnitude in any reader's column."""
    largest: FloatArray | None = None
    for name in edge.readers:
        columns = np.abs(source.tensor(name).dequantize()).max(axis=0)
        source.release(name)
        largest = columns if largest is None else np.maximum(largest, columns)
    assert largest is not None
    channels: FloatArray = by_channel(largest, edge.heads).max(axis=0)
    return channels


def _floored(magnitudes: FloatArray) -> FloatArray:
    floor = np.float32(LEAST_MAGNITUDE) * (magnitudes.max() or np.float32(1.0))
    floored: FloatArray = np.maximum(magnitudes, floor)
    return floored
