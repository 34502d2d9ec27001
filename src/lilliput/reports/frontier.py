# SPDX-License-Identifier: Apache-2.0
"""Reading the frontier that a search keeps: a JSON list of points, or an object whose `points` is one.

A point has `bytes` and `kl` (a number, or an object of `mean` (or `value`) with `low` and `high`, or with `stderr`);
`bits_per_weight`, `speed` and `formats` (tensor name -> format) may be missing or null. The object may hold
`sensitivity`: tensor name -> KL in nats that this tensor alone adds. Other keys are ignored.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lilliput.errors import RecipeError
from lilliput.reports.records import FrontierPoint, Interval

# A file of points is small; more than this is another file.
MOST_BYTES = 64 << 20
# Standard errors to each side of a 95 % interval.
WIDTH = 1.96


@dataclass(frozen=True, slots=True)
class Frontier:
    """Points by size, and the KL that single tensors add, where the file tells."""

    points: tuple[FrontierPoint, ...] = ()
    sensitivity: Mapping[str, float] = field(default_factory=dict)


def read_frontier(path: Path) -> Frontier:
    """Read a frontier file. Raises RecipeError, one line that names what was expected."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise RecipeError(f"{path.name}: {path.stat().st_size} bytes are no frontier file")
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{path.name}: not JSON ({error}); expected the frontier of a work folder") from error
    points = content.get("points", content.get("frontier")) if isinstance(content, dict) else content
    if not isinstance(points, list):
        raise RecipeError(f"{path.name}: expected a list of points, or an object whose 'points' is one")
    found = [_point(point, f"{path.name}: point {index}") for index, point in enumerate(points, start=1)]
    sensitivity = content.get("sensitivity") if isinstance(content, dict) else None
    numbers = {
        str(name): float(value)
        for name, value in (sensitivity.items() if isinstance(sensitivity, dict) else ())
        if _number(value) is not None
    }
    return Frontier(tuple(sorted(found, key=lambda point: point.bytes)), numbers)


def _point(point: object, where: str) -> FrontierPoint:
    if not isinstance(point, dict):
        raise RecipeError(f"{where}: expected an object with 'bytes' and 'kl', found {type(point).__name__}")
    size = _number(point.get("bytes"))
    if size is None or size <= 0:
        raise RecipeError(f"{where}: 'bytes' is {point.get('bytes')!r}, expected a positive number")
    formats = point.get("formats")
    return FrontierPoint(
        int(size),
        _number(point.get("bits_per_weight")),
        _kld(point, where),
        _number(point.get("speed")),
        {str(name): str(value) for name, value in formats.items()} if isinstance(formats, dict) else {},
    )


def _kld(point: Mapping[str, object], where: str) -> Interval:
    """The first of the spellings that is there."""
    found = next((point[name] for name in ("kl", "kld", "mean_kld") if point.get(name) is not None), None)
    parts = found if isinstance(found, dict) else {"mean": found, **{key: point.get(f"kl_{key}") for key in _BOUNDS}}
    mean = next((value for key in ("mean", "value") if (value := _number(parts.get(key))) is not None), None)
    if mean is None or mean < 0:
        raise RecipeError(f"{where}: 'kl' is {found!r}, expected a number of nats or an object with 'mean'")
    low, high, stderr = (_number(parts.get(key)) for key in _BOUNDS)
    if low is None or high is None:
        half = math.nan if stderr is None else WIDTH * stderr
        return Interval(mean, max(mean - half, 0.0) if math.isfinite(half) else math.nan, mean + half)
    return Interval(mean, low, high)


_BOUNDS = ("low", "high", "stderr")


def _number(value: object) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(float(value)) else None  # type: ignore[arg-type]
