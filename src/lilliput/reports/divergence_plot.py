# SPDX-License-Identifier: Apache-2.0
"""How KL is spread over the tokens: one ridge a file on a common logarithmic axis, with median, mean and worst ends."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lilliput.reports.axes import Axis, label, svg
from lilliput.reports.frontier_plot import shortened
from lilliput.reports.markup import Markup, element, join, number
from lilliput.reports.numbers import power_of_ten, significant
from lilliput.reports.records import Histogram, QuantizedFile

WIDTH = 480.0
LEFT, RIGHT, TOP, BOTTOM = 12.0, 12.0, 8.0, 44.0
# Rows share the height of the plot beside this one, between these bounds.
HEIGHT, LOWEST_ROW, HIGHEST_ROW = 320.0, 46.0, 84.0
# Of a row's height, what is not ridge.
AIR = 24.0
# Ends of the axis: a share of the tokens that may lie beyond.
BEYOND = 0.006


def divergence_plot(files: Sequence[QuantizedFile]) -> Markup:
    """Ridges from top to bottom in the order of the files."""
    low, high = _range([file.measured.kld_histogram for file in files])
    row = min(max((HEIGHT - TOP - BOTTOM) / len(files), LOWEST_ROW), HIGHEST_ROW)
    height = TOP + row * len(files) + BOTTOM
    x = Axis(low, high, LEFT, WIDTH - RIGHT)
    parts = [_axis(x, height)]
    for index, file in enumerate(files):
        parts.append(_ridge(index, file, x, TOP + row * (index + 1) - 6.0, row - AIR))
    return svg(WIDTH, height, *parts, title="Distribution of KL divergence over the tokens, logarithmic")


def _range(histograms: Sequence[Histogram]) -> tuple[float, float]:
    """Edges, in powers of ten, between which all but a few tokens of every file lie."""
    firsts, lasts = [], []
    for histogram in histograms:
        total, seen, shown = max(sum(histogram.counts), 1), 0, []
        for index, count in enumerate(histogram.counts):
            seen += count
            if seen > BEYOND * total:
                shown.append(index)
            if seen >= (1.0 - BEYOND / 4) * total:
                break
        firsts.append(histogram.edges[shown[0]] if shown else histogram.edges[0])
        lasts.append(histogram.edges[shown[-1] + 1] if shown else histogram.edges[-1])
    return min(firsts) - 0.1, max(lasts) + 0.1


def _axis(x: Axis, height: float) -> Markup:
    parts = []
    base = height - BOTTOM
    for power in range(math.ceil(x.low), math.floor(x.high) + 1):
        at = x.at(power)
        parts += [
            element("line", x1=at, x2=at, y1=TOP, y2=base, class_="grid"),
            label(at, base + 18, power_of_ten(power)),
        ]
    parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=base, y2=base, class_="axis"))
    parts.append(label(WIDTH / 2, height - 6, "KL at one token, nats (logarithmic)", class_="axis-name"))
    return join(*parts)


def _ridge(index: int, file: QuantizedFile, x: Axis, base: float, high: float) -> Markup:
    histogram = file.measured.kld_histogram
    peak = max(*histogram.counts, 1)
    points = [(x.at(histogram.edges[0]), base)]
    for left, right, count in zip(histogram.edges, histogram.edges[1:], histogram.counts, strict=False):
        if right <= x.low or left >= x.high:
            continue
        points.append((x.at((left + right) / 2), base - high * count / peak))
    points.append((points[-1][0], base))
    points[0] = (points[1][0], base)
    path = " ".join(f"{number(a)},{number(b)}" for a, b in points)
    marks = [element("polygon", points=path, class_="ridge"), element("polyline", points=path, class_="ridge-line")]
    percentiles = dict(file.measured.kld_percentiles)
    named = [("median", percentiles.get(50.0)), ("99 %", percentiles.get(99.0)), ("max", percentiles.get(100.0))]
    for name, value in named:
        if value is not None and value > 0:
            marks.append(_mark(name, value, x, base))
    mean = file.measured.mean_kld.value
    if mean > 0:
        at = x.at(math.log10(mean))
        marks.append(element("line", x1=at, x2=at, y1=base, y2=base - high - 4, class_="mean-line"))
        marks.append(element("g", element("title", f"mean {significant(mean, 3)} nats"),
                             label(at + 4, base - high + 4, "mean", anchor="start", class_="mark-name")))  # fmt: skip
    marks.append(label(LEFT, base - high + 4, shortened(file.label), anchor="start", class_="point-name"))
    return element("g", join(*marks), class_=f"file-colour-{index % 6}")


def _mark(name: str, value: float, x: Axis, base: float) -> Markup:
    at = x.at(math.log10(value))
    tick = element("line", x1=at, x2=at, y1=base, y2=base + 5, class_="mark-tick")
    title = element("title", f"{name} {significant(value, 3)} nats")
    return element("g", title, tick)
