# SPDX-License-Identifier: Apache-2.0
"""Transforms around a model: outlined from headers for the plan, then decided with statistics when the work begins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lilliput.checkpoints.model_source import ModelSource
from lilliput.errors import CalibrationError, UnsupportedModelError
from lilliput.recipes.plan import Plan
from lilliput.records import AppliedEdge, Statistics, TransformPlan
from lilliput.transforms import Transform
from lilliput.transforms.transform import Guide
from lilliput.transforms.transformed_source import TransformedSource


@dataclass(frozen=True, slots=True)
class Decided:
    """A rewritten model. edges: what was done where.  statistics: of this model, None where not known."""

    source: ModelSource
    edges: tuple[AppliedEdge, ...]
    statistics: Statistics | None


def outlined(source: ModelSource, transforms: Sequence[Transform]) -> ModelSource:
    """`source` as it will be after all transforms; only headers can be read until `decided`.

    Raises UnsupportedModelError naming transform, edge and reason.
    """
    if transforms and source.config.decoder is not None:
        raise UnsupportedModelError(
            f"{transforms[0].name}: {source.config.family} has two programs that share an embedding, and transforms "
            "look at one; leave it out"
        )
    for transform in transforms:
        source = TransformedSource(source, transform, transform.outline(source))
    return source


def transform_plans(source: ModelSource) -> tuple[TransformPlan, ...]:
    """What an outlined model says of its transforms, in their order."""
    return tuple(
        TransformPlan(layer.transform.name, layer.outline.edges, layer.outline.skipped, layer.transform.strength)
        for layer in _layers(source)
    )


def check_guidance(transforms: Sequence[Transform], *, has_text: bool, has_statistics: bool) -> None:
    """Raise CalibrationError for a transform that will not find what it needs.

    has_statistics: ready ones, from a file.
    """
    for transform in transforms:
        if transform.needs == "statistics" and not (has_text or has_statistics):
            raise CalibrationError(
                f"transform '{transform.name}' looks at the inputs of layers; give --text, --statistics or --imatrix"
            )
        if transform.mixes_inputs and has_statistics:
            raise CalibrationError(
                f"transform '{transform.name}' mixes the inputs of layers, of which ready statistics say nothing; "
                "give --text instead"
            )


def decided(
    source: ModelSource,
    plan: Plan,
    statistics: Statistics | None,
    collect: Callable[[ModelSource], Statistics | None],
    *,
    threads: int,
) -> Decided:
    """Decide every transform of an outlined model, the first one first.

    statistics: of the original, or None.  collect: runs the model on the text, where statistics are needed and absent.
    Raises CalibrationError.
    """
    rows = {row.name: row for row in plan.rows}
    edges: list[AppliedEdge] = []
    layers = _layers(source)
    present = layers[0].inner if layers else source
    for layer in layers:
        if layer.transform.needs == "statistics" and statistics is None:
            statistics = collect(present)
        rewrite = layer.transform.rewrite(present, Guide(rows, statistics, threads))
        edges.extend(rewrite.edges)
        present = result = TransformedSource(present, layer.transform, layer.outline, rewrite)
        if statistics is not None:
            statistics = None if layer.transform.mixes_inputs else result.carried(statistics)
    return Decided(present, tuple(edges), statistics)


def _layers(source: ModelSource) -> list[TransformedSource]:
    """The transforms around a model, innermost first."""
    layers: list[TransformedSource] = []
    while isinstance(source, TransformedSource):
        layers.insert(0, source)
        source = source.inner
    return layers
