# SPDX-License-Identifier: Apache-2.0
"""Size against divergence: every file of the report with its interval, and the points that a search measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lilliput.reports.axes import Axis, label, svg
from lilliput.reports.markup import Markup, element, join, number
from lilliput.reports.numbers import human_bytes, power_of_ten, significant, with_error
from lilliput.reports.records import FrontierPoint, Interval, QuantizedFile, Report

WIDTH, HEIGHT = 480.0, 320.0
LEFT, RIGHT, TOP, BOTTOM = 64.0, 16.0, 14.0, 44.0
# Nothing is drawn below this KL: it is rounding.
SMALLEST_KLD = 1e-7
# Width of a letter of a name, for keeping names apart.
LETTER = 7.4
# Points of a search are drawn up to so many times as large or small as the files.
NEAR, FEWEST_POINTS = 1.35, 3
# Shorter intervals hide behind their mark.
SHORTEST_WHISKER = 11.0
# Labels stand at least this many pixels apart.
LABEL_GAP = 15.0


def frontier_plot(report: Report) -> Markup:
    """The chart; files keep the colour that they have everywhere on the page."""
    searched = _near(report)
    sizes = [float(file.bytes) for file in report.files] + [float(point.bytes) for point in searched]
    klds = [bound for file in report.files for bound in _bounds(file.measured.mean_kld)]
    klds += [bound for point in searched for bound in _bounds(point.kld)]
    x = _size_axis(sizes)
    # A fifth of a power of ten of air above and below.
    y = Axis(min(klds) / 10.0**0.2, max(klds) * 10.0**0.2, HEIGHT - BOTTOM, TOP, is_log=True)
    return svg(
        WIDTH, HEIGHT, _grid(x, y), _searched(searched, x, y), _best_line(report, x, y),
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
            label(LEFT - 7, at + 4, _tick(value), anchor="end"),
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


def _tick(value: float) -> str:
    """Powers of ten as such."""
    power = math.log10(value)
    return power_of_ten(round(power)) if abs(power - round(power)) < 1e-6 else significant(value, 1)


def _near(report: Report) -> tuple[FrontierPoint, ...]:
    """The points of the search about as large as the files; all of them where that leaves too few for a line."""
    sizes = [file.bytes for file in report.files]
    low, high = min(sizes) / NEAR, max(sizes) * NEAR
    found = tuple(point for point in report.frontier if low <= point.bytes <= high)
    return found if len(found) >= FEWEST_POINTS else report.frontier


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
    taken = [_around(x.at(file.bytes), y.at(file.measured.mean_kld.value)) for file in files]
    for index, file in enumerate(files):
        kld = file.measured.mean_kld
        at, height = x.at(file.bytes), y.at(kld.value)
        words = shortened(file.label)
        place, box = _free_place(at, height, LETTER * len(words), taken)
        taken.append(box)
        anchor = "end" if place < at else "start"
        shown = f"{file.label}: {human_bytes(file.bytes)}, KL {with_error(kld, unit='nats')}"
        name = label(place, box.bottom - 4.0, words, anchor=anchor, class_="point-name")
        mark = join(element("title", shown), _whisker(kld, at, y), marker(index, at, height), name)
        parts.append(element("g", mark, class_=f"file-colour-{index % 6}"))
    return join(*parts)


@dataclass(frozen=True, slots=True)
class _Box:
    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: _Box) -> bool:
        """Whether two boxes share a point."""
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )


def _around(x: float, y: float) -> _Box:
    return _Box(x - 6.0, y - 6.0, x + 6.0, y + 6.0)


def _free_place(x: float, y: float, width: float, taken: Sequence[_Box]) -> tuple[float, _Box]:
    """Where a name starts (or, left of its mark, ends) and its box: right, left, then further down and up."""
    first: tuple[float, _Box] | None = None
    for shift in (0.0, LABEL_GAP, -LABEL_GAP, 2 * LABEL_GAP):
        for is_right in (True, False):
            start = x + 11.0 if is_right else x - 11.0 - width
            box = _Box(start, y + shift - 7.0, start + width, y + shift + 8.0)
            is_inside = box.left > LEFT and box.right < WIDTH
            found = (start if is_right else x - 11.0, box)
            if is_inside and not any(box.meets(other) for other in taken):
                return found
            first = first or (found if is_inside else None)
    return first or (x + 11.0, _Box(x + 11.0, y - 7.0, x + 11.0 + width, y + 8.0))


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
