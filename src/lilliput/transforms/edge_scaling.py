# SPDX-License-Identifier: Apache-2.0
"""What AWQ and SmoothQuant share: factors at edges, folded into the layers on both sides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from lilliput.architectures.foldable_edges import FoldableEdge, HeadLayout, foldable_edges
from lilliput.arrays import FloatArray
from lilliput.checkpoints.model_source import ModelSource
from lilliput.errors import CalibrationError, UnsupportedModelError
from lilliput.records import InputStatistics, Statistics
from lilliput.transforms.changes import Change, ScaledColumns, ScaledRows
from lilliput.transforms.transform import Outline

# An input that the text hardly reached still gets a factor: that of this part of the mean square.
LEAST_MEAN_SQUARE = 1e-4


def scaling_edges(source: ModelSource) -> tuple[FoldableEdge, ...]:
    """The edges of a model, in the order of its program."""
    return foldable_edges(source.architecture.program(source.config)).edges


def outline_of_scaling(source: ModelSource, name: str) -> Outline:
    """All edges of a model. Raises UnsupportedModelError where there is none, naming the first that is not one."""
    found = foldable_edges(source.architecture.program(source.config))
    if not found.edges:
        reasons = "; ".join(f"{edge}: {reason}" for edge, reason in list(found.refused.items())[:2])
        raise UnsupportedModelError(
            f"{name}: no edge of this {source.architecture.family} model can be scaled "
            f"({reasons or 'none was found'}); leave this transform out"
        )
    changed = frozenset(tensor for edge in found.edges for tensor in (*edge.makers, *edge.readers))
    return Outline(source.config, tuple(edge.name for edge in found.edges), changed, found.refused)


def changes_of_scaling(
    factors: Mapping[str, FloatArray], edges: tuple[FoldableEdge, ...]
) -> dict[str, tuple[Change, ...]]:
    """What factors at edges, by edge name, do to each tensor. Edges without factors stay as they are."""
    changes: dict[str, tuple[Change, ...]] = {}
    for edge in edges:
        if edge.name not in factors:
            continue
        scale = factors[edge.name].astype(np.float32)
        for maker in edge.makers:
            changes[maker] = (*changes.get(maker, ()), ScaledRows((1.0 / scale).astype(np.float32)))
        for reader in edge.readers:
            changes[reader] = (*changes.get(reader, ()), ScaledColumns(as_read(scale, edge.heads)))
    return changes


def as_read(channels: FloatArray, heads: HeadLayout | None) -> FloatArray:
    """[made channels] -> [read columns]: values are read once by each head that shares them."""
    if heads is None:
        return channels
    shape = (heads.kv_heads, heads.sharing, heads.head_dim)
    return np.broadcast_to(channels.reshape(heads.kv_heads, 1, heads.head_dim), shape).reshape(-1)


def by_channel(columns: FloatArray, heads: HeadLayout | None) -> FloatArray:
    """[read columns] -> [sharing, made channels]: what each head that shares a channel has there."""
    if heads is None:
        return columns[None]
    return columns.reshape(heads.kv_heads, heads.sharing, heads.head_dim).swapaxes(0, 1).reshape(heads.sharing, -1)


def known_inputs(
    edges: Iterable[FoldableEdge], statistics: Statistics | None, transform: str
) -> dict[str, InputStatistics]:
    """Edge name -> statistics of what its readers read, of those that have any (an imatrix may lack the head's).

    Raises CalibrationError where none has.
    """
    found: dict[str, InputStatistics] = {}
    for edge in edges:
        entry = statistics.inputs.get(edge.readers[0]) if statistics is not None else None
        if entry is not None and entry.tokens:
            found[edge.name] = entry
    if not found:
        raise CalibrationError(
            f"{transform}: the statistics hold nothing of this model's layers; give --text, or statistics of this model"
        )
    return found


def normalized(factors: FloatArray) -> FloatArray:
    """Factors over their geometric mean: what is scaled up and what is scaled down keep the tensors' size."""
    logarithms = np.log(factors.astype(np.float64))
    centred: FloatArray = np.exp(logarithms - logarithms.mean()).astype(np.float32)
    return centred


def channel_mean_square(entry: InputStatistics, edge: FoldableEdge) -> FloatArray:
    """[made channels]: mean square, over the heads that share a channel, with a floor."""
    square = by_channel(entry.input_mean_square, edge.heads).mean(axis=0)
    mean = float(square.mean(dtype=np.float64)) or 1.0
    floored: FloatArray = np.maximum(square, np.float32(LEAST_MEAN_SQUARE * mean))
    return floored
