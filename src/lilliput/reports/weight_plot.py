# SPDX-License-Identifier: Apache-2.0
"""The weights of a tensor, and the grid on which one group of them was put."""

from __future__ import annotations

from lilliput.reports.axes import Axis, label, svg
from lilliput.reports.markup import Markup, element, join, number
from lilliput.reports.numbers import MINUS
from lilliput.reports.records import Histogram, WeightPicture

WIDTH, HEIGHT = 360.0, 208.0
LEFT, RIGHT, TOP, BASE = 8.0, 8.0, 10.0, 140.0
RUG = 152.0
# More levels than this would be a grey band.
MOST_LINES = 72


def weight_plot(picture: WeightPicture) -> Markup:
    """Histogram of all weights; levels of one group as lines; that group's weights as marks under the axis."""
    edges = picture.original.edges
    x = Axis(edges[0], edges[-1], LEFT, WIDTH - RIGHT)
    peak = max(*picture.original.counts, 1)
    parts = [
        element("polygon", points=_outline(picture.original, x, peak), class_="weights"),
        _levels(picture, x),
        element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=BASE, y2=BASE, class_="axis"),
        _rug(picture, x),
        *(label(x.at(tick), HEIGHT - 24, f"{tick:.6g}".replace("-", MINUS)) for tick in x.ticks(4)),
        label(WIDTH / 2, HEIGHT - 6, "weight", class_="axis-name"),
    ]
    return svg(WIDTH, HEIGHT, *parts, title=f"Weights of {picture.tensor} and the levels of {picture.format}")


def _outline(histogram: Histogram, x: Axis, peak: int) -> str:
    """Steps of the histogram as corners of a polygon."""
    corners = [(x.at(histogram.edges[0]), BASE)]
    for left, right, count in zip(histogram.edges, histogram.edges[1:], histogram.counts, strict=False):
        height = BASE - (BASE - TOP) * min(count / peak, 1.0)
        corners += [(x.at(left), height), (x.at(right), height)]
    corners.append((x.at(histogram.edges[-1]), BASE))
    return " ".join(f"{number(a)},{number(b)}" for a, b in corners)


def _levels(picture: WeightPicture, x: Axis) -> Markup:
    levels = [level for level in picture.levels if picture.original.edges[0] <= level <= picture.original.edges[-1]]
    if not levels or len(levels) > MOST_LINES:
        return Markup()
    steps = " ".join(f"M{number(x.at(level))} {number(TOP)}V{number(RUG - 2)}" for level in levels)
    return element("path", d=steps, class_="levels")


def _rug(picture: WeightPicture, x: Axis) -> Markup:
    marks = " ".join(f"M{number(x.at(weight))} {number(RUG)}v9" for weight in picture.group)
    return join(element("path", d=marks, class_="rug"))
