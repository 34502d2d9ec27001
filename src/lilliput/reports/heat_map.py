# SPDX-License-Identifier: Apache-2.0
"""Every matrix of a file as one cell: layers from left to right, parts of a layer from top to bottom.

What stands outside the layers is a tall cell at the side: the token embedding left, the output head right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lilliput.reports.axes import label, svg
from lilliput.reports.colour_steps import BIT_LIMITS, ERROR_LIMITS, SENSITIVITY_LIMITS, step
from lilliput.reports.markup import Markup, element, join
from lilliput.reports.numbers import significant
from lilliput.reports.records import TensorRow

WIDTH = 480.0
LEFT, TOP, ROW, GAP = 92.0, 22.0, 22.0, 2.0
SIDE = 22.0
LEGEND = 46.0
# Cells narrower than this show no number.
WIDE_ENOUGH = 34.0
# Every so many layers one is named, at least this many pixels apart.
LAYER_NAMES_APART = 26.0


@dataclass(frozen=True, slots=True)
class Scale:
    """What a map shows. family: CSS class of its colours.  shown: a value as it stands in a cell."""

    name: str
    family: str
    limits: tuple[float, ...]
    value: Callable[[TensorRow], float | None]
    shown: Callable[[float], str]


def _compact(value: float) -> str:
    """4.9e-3 as 0.0049 and 3e-5 as 3e-5: what fits into a cell."""
    return significant(value, 2) if value >= 1e-4 else f"{value:.0e}".replace("e-0", "e-")


BITS = Scale("Bits per weight", "bits", BIT_LIMITS, lambda row: row.bits_per_weight, lambda value: f"{value:.3g}")
ERROR = Scale("Relative squared error of the weights", "heat", ERROR_LIMITS, lambda row: row.relative_error, _compact)
WEIGHTED = Scale(
    "The same, weighted by what enters the layer", "heat", ERROR_LIMITS, lambda row: row.weighted_error, _compact
)
SENSITIVITY = Scale(
    "Sensitivity: KL that each adds alone, nats", "heat", SENSITIVITY_LIMITS, lambda row: row.sensitivity, _compact
)


def scales_for(rows: Sequence[TensorRow]) -> tuple[Scale, ...]:
    """Bits, error, and the best that is known of what a tensor costs."""
    third = next(
        (scale for scale in (SENSITIVITY, WEIGHTED) if any(scale.value(row) is not None for row in rows)), None
    )
    return (BITS, ERROR, third) if third is not None else (BITS, ERROR)


def heat_map(rows: Sequence[TensorRow], scale: Scale) -> Markup:
    """The map of the matrices among `rows`."""
    matrices = [row for row in rows if row.is_matrix]
    inside = [row for row in matrices if row.layer is not None]
    before = [row for row in matrices if row.layer is None and row.part != "output"]
    after = [row for row in matrices if row.layer is None and row.part == "output"]
    parts = list(dict.fromkeys(row.part for row in inside))
    layers = sorted({row.layer for row in inside if row.layer is not None})
    height = TOP + max(len(parts), 3) * ROW
    start = LEFT + len(before) * (SIDE + 6)
    end = WIDTH - 4 - len(after) * (SIDE + 6)
    width = (end - start) / max(len(layers), 1)
    cells = [_layer_names(layers, start, width)]
    cells += [label(LEFT - 8, TOP + index * ROW + 15, part, anchor="end") for index, part in enumerate(parts)]
    column = {layer: start + index * width for index, layer in enumerate(layers)}
    for row in inside:
        assert row.layer is not None
        gap = GAP if width > 8 else 0.6
        box = (column[row.layer], TOP + parts.index(row.part) * ROW, width - gap, ROW - GAP)
        cells.append(_cell(row, scale, box))
    for index, row in enumerate(before):
        cells.append(_side_cell(row, scale, LEFT + index * (SIDE + 6), height))
    for index, row in enumerate(after):
        cells.append(_side_cell(row, scale, end + 6 + index * (SIDE + 6), height))
    cells.append(_legend(scale, height + 14))
    return svg(WIDTH, height + LEGEND, *cells, title=f"Heat map of the tensors: {scale.name}")


def _cell(row: TensorRow, scale: Scale, box: tuple[float, float, float, float]) -> Markup:
    x, y, width, height = box
    value = scale.value(row)
    if value is None:
        return element("g", _title(row, value), element("rect", x=x, y=y, width=width, height=height, class_="unknown"))
    at = step(value, scale.limits)
    square = element(
        "rect", x=x, y=y, width=width, height=height, rx=2 if width > 8 else 0, class_=f"{scale.family}-{at}"
    )
    shown: list[Markup] = []
    if width >= WIDE_ENOUGH:
        shown.append(
            label(x + width / 2, y + height / 2 + 4, scale.shown(value), class_=f"cell on-{scale.family}-{at}")
        )
    return element("g", _title(row, value), square, *shown)


def _side_cell(row: TensorRow, scale: Scale, x: float, bottom: float) -> Markup:
    """A tall cell with its name written upwards."""
    height = bottom - TOP - GAP
    cell = _cell(row, scale, (x, TOP, SIDE, height))
    value = scale.value(row)
    at = step(value, scale.limits) if value is not None else 0
    middle = TOP + height / 2
    name = element(
        "text", row.part, class_=f"cell on-{scale.family}-{at}", text_anchor="middle",
        transform=f"translate({x + SIDE / 2 + 4:.1f} {middle:.1f}) rotate(-90)",
    )  # fmt: skip
    return join(cell, name)


def _title(row: TensorRow, value: float | None) -> Markup:
    """What a pointer over a cell tells; the table of all tensors has the rest."""
    known = "" if value is None else f", {significant(value, 3)}"
    return element("title", f"{row.name}, {row.format}{known}")


def _layer_names(layers: Sequence[int], start: float, width: float) -> Markup:
    stride = max(1, int(-(-LAYER_NAMES_APART // max(width, 0.1))))
    names = [label(start - 5, TOP - 7, "layer", anchor="end", class_="tick faint")] if layers else []
    names += [
        label(start + (index + 0.5) * width, TOP - 7, str(layer), class_="tick faint")
        for index, layer in enumerate(layers)
        if index % stride == 0
    ]
    return join(*names)


def _legend(scale: Scale, top: float) -> Markup:
    """The colours in a row, with the limits between them."""
    count = len(scale.limits) + 1
    width = (WIDTH - 4 - LEFT) / count
    parts = [label(LEFT - 8, top + 9, "scale", anchor="end", class_="tick faint")]
    for index in range(count):
        x = LEFT + index * width
        parts.append(element("rect", x=x, y=top, width=width - 1, height=10, class_=f"{scale.family}-{index}"))
        if index:
            parts.append(label(x - 0.5, top + 24, _limit(scale.limits[index - 1]), class_="tick faint"))
    return join(*parts)


def _limit(value: float) -> str:
    return f"{value:g}" if value >= 1e-3 else f"{value:.0e}".replace("e-0", "e-")
