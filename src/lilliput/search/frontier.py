# SPDX-License-Identifier: Apache-2.0
"""What was found, as plain records: points of size, KL and speed, kept in the work folder as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Never, cast

from lilliput.architectures.architecture import Json
from lilliput.checkpoints.model_source import ModelSource
from lilliput.containers.publish import write_text
from lilliput.errors import RecipeError
from lilliput.formats import NumberFormat, get_format
from lilliput.search.choices import Choice, Picks, formats_by_tensor
from lilliput.search.measure import MeasuredKl
from lilliput.search.problem import Problem

SCHEMA = 1
FRONTIER = "frontier.json"
# Where the sensitivities of tensors are compared.
COMPARED_BITS = 4.5
VECTOR_FORMAT = get_format("f32")


@dataclass(frozen=True, slots=True)
class Point:
    """One configuration. KL in nats a token, on the selection text, candidates put together as they are.

    bytes: of the whole file, exactly.  bits_per_weight: of its tensors.  kl_low, kl_high: 95 % interval; NaN for too
    little text.  speed: predicted tokens a second, None where speed was not asked for.
    formats: tensor name -> format name.  found_by: exact (allocation), random, or chosen (by the last search).
    """

    bytes: int
    bits_per_weight: float
    predicted_kl: float
    kl: float
    kl_low: float
    kl_high: float
    speed: float | None
    found_by: str
    formats: Mapping[str, str]

    def to_json(self) -> dict[str, Json]:
        """Plain JSON; what is not finite becomes null."""
        content = asdict(self)
        return {name: _finite(value) for name, value in content.items()}


def point(problem: Problem, picks: Picks, measured: MeasuredKl, found_by: str, source: ModelSource) -> Point:
    """A record of a measured configuration. source: the original."""
    low, high = measured.interval()
    seconds = problem.seconds(picks)
    formats = formats_by_tensor(problem.choices, picks)
    return Point(
        bytes=problem.file_bytes(picks),
        bits_per_weight=bits_per_weight(source, formats),
        predicted_kl=problem.predicted(picks),
        kl=measured.mean,
        kl_low=low,
        kl_high=high,
        speed=1 / seconds if seconds else None,
        found_by=found_by,
        formats={name: item.name for name, item in formats.items()},
    )


def bits_per_weight(source: ModelSource, formats: Mapping[str, NumberFormat]) -> float:
    """Of all tensors of the file, vectors in F32, without metadata."""
    stored = weights = 0
    for name, header in source.headers.items():
        number_format = formats.get(name, VECTOR_FORMAT)
        stored += number_format.stored_bytes(header.rows, header.columns)
        weights += header.rows * header.columns
    return 8 * stored / weights


def sensitivities(problem: Problem) -> dict[str, Json]:
    """Tensor name -> predicted KL in nats that it adds alone, in the candidate nearest to 4.5 bits.

    Of tensors that share a format, each gets the sum of all.
    """
    found: dict[str, Json] = {}
    for choice, costs in zip(problem.choices, problem.costs.by_choice, strict=True):
        widths = [abs(item.bits_per_weight - COMPARED_BITS) for item in choice.formats]
        found |= dict.fromkeys(choice.names, costs[widths.index(min(widths))])
    return found


def pareto(points: Iterable[Point]) -> list[Point]:
    """Points that no other beats in both size and KL, smallest file first."""
    kept: list[Point] = []
    for candidate in sorted(points, key=lambda item: (item.bytes, item.kl)):
        if not kept or candidate.kl < kept[-1].kl:
            kept.append(candidate)
    return kept


def distinct(points: Iterable[Point]) -> list[Point]:
    """The first of the points of each configuration."""
    found: dict[str, Point] = {}
    for item in points:
        found.setdefault(json.dumps(sorted(item.formats.items())), item)
    return list(found.values())


def read_points(path: Path, choices: tuple[Choice, ...]) -> list[Point]:
    """What earlier runs measured and wrote, as far as it is made of these choices."""
    recorded = read_records(path, FRONTIER).get("measured")
    found = []
    for content in recorded if isinstance(recorded, list) else ():
        try:
            item = Point(**cast("dict[str, Never]", content))
            picks_from(choices, item.formats)
        except (TypeError, RecipeError):
            continue  # of another version, or of other candidates
        low, high = (math.nan if bound is None else bound for bound in (item.kl_low, item.kl_high))
        found.append(replace(item, kl_low=low, kl_high=high))
    return found


def frontier_sizes(problem: Problem, count: int) -> list[int]:
    """File sizes from the smallest to the largest sensible one, in equal ratios."""
    low, high = problem.file_bytes(problem.smallest), problem.file_bytes(problem.largest)
    if count < 2 or low == high:
        return [high]
    return [round(low * (high / low) ** (place / (count - 1))) for place in range(count)]


def picks_from(choices: tuple[Choice, ...], formats: Mapping[str, str]) -> Picks:
    """The picks of a recorded point. Raises RecipeError where the candidates are others now."""
    try:
        return tuple(choice.index(formats[choice.names[0]]) for choice in choices)
    except KeyError as missing:
        raise RecipeError(
            f"the recorded configuration names {missing}, which is no candidate; search anew"
        ) from missing


def write_records(path: Path, name: str, records: Mapping[str, Json]) -> None:
    """Write a JSON file whole or not at all. Raises PublishError."""
    write_text(path / name, json.dumps({"schema": SCHEMA, **records}, indent=1, ensure_ascii=False) + "\n")


def read_records(path: Path, name: str) -> dict[str, Json]:
    """Read a JSON file of ours; empty where there is none or it is damaged."""
    try:
        content = json.loads((path / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) and content.get("schema") == SCHEMA else {}


def _finite(value: Json) -> Json:
    return None if isinstance(value, float) and not math.isfinite(value) else value
