# SPDX-License-Identifier: Apache-2.0
"""Size against divergence: every file of the report with its interval, and the points that a search measured."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lilliput.reports.axes import Axis, label, svg
from lilliput.reports.markup import Markup, element, join, number
from lilliput.reports.numbers import human_bytes, significant, with_error
from lilliput.reports.records import FrontierPoint, Interval, QuantizedFile, Report

WIDTH, HEIGHT = 480.0, 320.0
LEFT, RIGHT, TOP, BOTTOM = 64.0, 16.0, 14.0, 44.0
# Nothing is drawn below this KL: it is rounding.
SMALLEST_KLD = 1e-7
# Shorter intervals hide behind their mark.
SHORTEST_WHISKER = 11.0
# Labels stand at least this many pixels apart.
LABEL_GAP = 15.0


def frontier_plot(report: Report) -> Markup:
    """The chart; files keep the colour that they have everywhere on the page."""
    sizes = [float(file.bytes) for file in report.files] + [float(point.bytes) for point in report.frontier]
    klds = [bound for file in report.files for bound in _bounds(file.measured.mean_kld)]
    klds += [bound for point in report.frontier for bound in _bounds(point.kld)]
    x = _size_axis(sizes)
    # A fifth of a power of ten of air above and below.
    y = Axis(min(klds) / 10.0**0.2, max(klds) * 10.0**0.2, HEIGHT - BOTTOM, TOP, is_log=True)
    return svg(
        WIDTH, HEIGHT, _grid(x, y), _searched(report.frontier, x, y), _best_line(report, x, y),
        _files(report.files, x, y),
        title="File size against mean KL divergence, with 95 % intervals",
    )  # fmt: skip


def _size_axis(sizes: Sequence[float]) -> Axis:
    low, high = min(sizes), max(sizes)
    margin = max((high - low) * 0.14, high * 0.03)
    return Axis(max(low - margin, 0.0), high + margin, LEFT, WIDTH - RIGHT)


def _grid(x: Axis, y: Axis) -> Markup:
    parts = []
    for value in y.ticks():
        at = y.at(value)
        parts += [
            element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=at, y2=at, class_="grid"),
            label(LEFT - 7, at + 4, significant(value, 1), anchor="end"),
        ]
    for value in x.ticks(4):
        at = x.at(value)
        parts += [
            element("line", x1=at, x2=at, y1=HEIGHT - BOTTOM, y2=HEIGHT - BOTTOM + 4, class_="axis"),
            label(at, HEIGHT - BOTTOM + 18, human_bytes(value).replace(".00", "").replace(".0 ", " ")),
        ]
    parts += [
        element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=HEIGHT - BOTTOM, y2=HEIGHT - BOTTOM, class_="axis"),
        label((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, "file size", class_="axis-name"),
        element(
            "text", "mean KL, nats", class_="axis-name", text_anchor="middle",
            transform=f"translate(11 {number((TOP + HEIGHT - BOTTOM) / 2)}) rotate(-90)",
        ),
    ]  # fmt: skip
    return join(*parts)


def _searched(points: Sequence[FrontierPoint], x: Axis, y: Axis) -> Markup:
    if not points:
        return Markup()
    path = " ".join(f"{number(x.at(point.bytes))},{number(y.at(point.kld.value))}" for point in points)
    parts = [element("polyline", points=path, class_="frontier-line")]
    for point in points:
        speed = f", {significant(point.speed, 3)} tokens/s" if point.speed is not None else ""
        shown = f"{human_bytes(point.bytes)}, KL {with_error(point.kld, unit='nats')}{speed}"
        dot = element("circle", element("title", shown), cx=x.at(point.bytes), cy=y.at(point.kld.value), r=2.6)
        parts += [_whisker(point.kld, x.at(point.bytes), y), dot]
    return element("g", join(*parts), class_="searched")


def _best_line(report: Report, x: Axis, y: Axis) -> Markup:
    """A line through the files that no other beats in both; the search's own line takes its place."""
    if report.frontier:
        return Markup()
    points: list[str] = []
    lowest = math.inf
    for file in sorted(report.files, key=lambda file: (file.bytes, file.measured.mean_kld.value)):
        kld = file.measured.mean_kld.value
        if kld < lowest:
            lowest = kld
            points.append(f"{number(x.at(file.bytes))},{number(y.at(kld))}")
    return element("polyline", points=" ".join(points), class_="frontier-line") if len(points) > 1 else Markup()


def _files(files: Sequence[QuantizedFile], x: Axis, y: Axis) -> Markup:
    parts = []
    taken: list[tuple[float, float]] = []
    for index, file in enumerate(files):
        kld = file.measured.mean_kld
        at, height = x.at(file.bytes), y.at(kld.value)
        is_right = at > WIDTH * 0.66
        beside = height + 4
        while any(abs(beside - other) < LABEL_GAP and abs(at - place) < WIDTH * 0.4 for place, other in taken):
            beside += LABEL_GAP
        taken.append((at, beside))
        shown = f"{file.label}: {human_bytes(file.bytes)}, KL {with_error(kld, unit='nats')}"
        name = label(
            at - 11 if is_right else at + 11, beside, shortened(file.label), anchor="end" if is_right else "start",
            class_="point-name",
        )  # fmt: skip
        parts.append(
            element("g", element("title", shown), _whisker(kld, at, y), marker(index, at, height), name,
                    class_=f"file-colour-{index % 6}")
        )  # fmt: skip
    return join(*parts)


def shortened(name: str, longest: int = 26) -> str:
    """A file's name that fits into a chart: its end says the format."""
    return name if len(name) <= longest else "…" + name[-(longest - 1) :]


def marker(index: int, x: float, y: float) -> Markup:
    """A shape for each file, so that colour is not needed to tell them apart."""
    size = 4.2
    corners: dict[int, tuple[tuple[float, float], ...]] = {
        1: ((-size, -size), (size, -size), (size, size), (-size, size)),
        2: ((0, -size * 1.3), (size * 1.25, size), (-size * 1.25, size)),
        3: ((0, -size * 1.4), (size * 1.4, 0), (0, size * 1.4), (-size * 1.4, 0)),
        4: ((0, size * 1.3), (size * 1.25, -size), (-size * 1.25, -size)),
    }
    shape = corners.get(index % 6)
    if shape is None:
        return element("circle", cx=x, cy=y, r=size, class_="mark")
    return element("polygon", points=" ".join(f"{number(x + a)},{number(y + b)}" for a, b in shape), class_="mark")


def _whisker(interval: Interval, at: float, y: Axis) -> Markup:
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return Markup()
    if y.at(interval.low) - y.at(interval.high) < SHORTEST_WHISKER:
        return Markup()
    low, high = number(y.at(interval.low)), number(y.at(interval.high))
    left, right, middle = number(at - 4), number(at + 4), number(at)
    return element("path", d=f"M{left} {low}H{right}M{middle} {low}V{high}M{left} {high}H{right}", class_="whisker")


def _bounds(interval: Interval) -> list[float]:
    values = (interval.value, interval.low, interval.high)
    return [max(value, SMALLEST_KLD) for value in values if math.isfinite(value)] or [SMALLEST_KLD]
