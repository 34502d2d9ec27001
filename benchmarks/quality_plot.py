# SPDX-License-Identifier: Apache-2.0
"""The picture of benchmarks/results/quality.jsonl: KL divergence against bits per weight, and its ratio to the peer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MultipleLocator, NullFormatter, NullLocator

Line = Mapping[str, object]
INK, MUTED, GRID, PEER = "#1f2328", "#6e7781", "#e6e8eb", "#8c959f"
# Weakest first, so that the strongest is drawn last and lies on top; an unlisted method takes the next free colour.
METHODS = {
    "searched_scales": ("searched scales (effort fast)", "#54aeff"),
    "feedback": ("feedback (effort balanced)", "#1a7f64"),
    "best": ("effort best", "#cf5b1e"),
}
# Efforts that are one method under another name.
ALIASES = {"fast": "searched_scales", "balanced": "feedback"}
SPARE_COLOURS = ("#8250df", "#bf3989", "#9a6700")
# Of no use in a picture of what to choose.
LEFT_OUT = ("round_to_nearest",)
PANELS = {
    "in-domain": "technical text, in domain",
    "off-domain": "WikiText-2, off domain",
    "words": "phonemes of unseen words",
}


@dataclass(frozen=True, slots=True)
class Panel:
    """One model on one text."""

    model: str
    domain: str
    lines: Sequence[Line]

    @property
    def title(self) -> str:
        """Model, then what it was measured on."""
        return f"{self.model}\n{PANELS.get(self.domain, self.domain)}"


def draw(lines: Iterable[Line], output: Path) -> None:
    """Write a PNG: a column for each model and text. Uniform types only: a mixture is no point of their curve."""
    panels = _panels({**line, "method": ALIASES.get(str(line["method"]), line["method"])} for line in lines)
    if not panels:
        raise SystemExit("no lines of uniform types: run `quality.py model` or `bart` with --out first")
    mpl.rcParams |= {
        "font.family": "DejaVu Sans", "font.size": 9.5, "axes.edgecolor": GRID, "text.color": INK,
        "axes.labelcolor": INK, "xtick.color": MUTED, "ytick.color": MUTED, "figure.facecolor": "white",
    }  # fmt: skip
    width = 3.7 * len(panels) + 0.9
    figure, grid = plt.subplots(
        2, len(panels), figsize=(width, 7.0), squeeze=False, height_ratios=(1.5, 1.0),
        gridspec_kw={"hspace": 0.27, "wspace": 0.2},
    )  # fmt: skip
    colours = _colours(panels)
    for column, panel in enumerate(panels):
        _divergence(grid[0][column], panel, colours)
        _ratio(grid[1][column], panel, colours)
        _dress(grid[0][column], grid[1][column], panel, is_first=column == 0)
    _legend(figure, colours)
    figure.savefig(output, dpi=160, bbox_inches="tight", pad_inches=0.2)
    plt.close(figure)


def _panels(lines: Iterable[Line]) -> list[Panel]:
    found: dict[tuple[str, str], list[Line]] = defaultdict(list)
    for line in lines:
        if line.get("is_pure") and line["method"] not in LEFT_OUT and "llama-quantize" in str(line["peer"]):
            found[str(line["model"]), str(line["domain"])].append(line)
    order = list(PANELS)
    keys = sorted(found, key=lambda key: (order.index(key[1]) if key[1] in order else len(order), key[0]))
    return [Panel(*key, found[key]) for key in keys]


def _colours(panels: Sequence[Panel]) -> dict[str, tuple[str, str]]:
    """Label and colour of each method, weakest first."""
    present = {str(line["method"]) for panel in panels for line in panel.lines}
    known = {name: METHODS[name] for name in METHODS if name in present}
    others = sorted(present - METHODS.keys())
    return {**{name: (name.replace("_", " "), SPARE_COLOURS[i % 3]) for i, name in enumerate(others)}, **known}


def _divergence(axes: Axes, panel: Panel, colours: Mapping[str, tuple[str, str]]) -> None:
    """Upper row: KL of the peer and of each method. K-quants make a curve, every other type is a small diamond."""
    peers = {
        str(line["type"]): (_number(line, "bits_per_weight"), _number(line, "peer_mean_kld")) for line in panel.lines
    }
    _curve(axes, peers, PEER, is_hollow=True)
    for method, (_, colour) in colours.items():
        points = {
            str(line["type"]): (_number(line, "bits_per_weight"), _number(line, "mean_kld"))
            for line in panel.lines
            if line["method"] == method
        }
        _curve(axes, points, colour, is_hollow=False)
    for name, place in peers.items():
        if _is_k_quant(name):
            axes.annotate(name, place, xytext=(5, 5), textcoords="offset points", fontsize=8, color=MUTED)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.12)


def _curve(axes: Axes, points: Mapping[str, tuple[float, float]], colour: str, *, is_hollow: bool) -> None:
    """K-quants joined by a line, other types as diamonds."""
    curve = sorted(place for name, place in points.items() if _is_k_quant(name))
    others = sorted(place for name, place in points.items() if not _is_k_quant(name))
    x, y = [bits for bits, _ in curve], [kld for _, kld in curve]
    fill, order = ("white", 3) if is_hollow else (colour, 4)
    axes.plot(
        x, y, color=colour, linewidth=1.3, marker="o", markersize=5.5, markerfacecolor=fill, markeredgewidth=1.4,
        zorder=order,
    )  # fmt: skip
    axes.plot(
        [bits for bits, _ in others], [kld for _, kld in others], color=colour, linestyle="", marker="D",
        markersize=3.4, markerfacecolor=fill, markeredgewidth=1.0, zorder=order,
    )  # fmt: skip


def _is_k_quant(name: str) -> bool:
    return name.endswith("_K")


def _ratio(axes: Axes, panel: Panel, colours: Mapping[str, tuple[str, str]]) -> None:
    """Lower row: ours over the peer's with the paired interval, type by type."""
    widths = {str(line["type"]): _number(line, "bits_per_weight") for line in panel.lines}
    order = sorted(widths, key=lambda name: (widths[name], not _is_k_quant(name), name))
    axes.axhline(1.0, color=PEER, linewidth=1.3, zorder=2)
    for method, (_, colour) in colours.items():
        for line in (line for line in panel.lines if line["method"] == method):
            x, y = order.index(str(line["type"])), _number(line, "ratio")
            axes.plot([x, x], [_number(line, "low"), _number(line, "high")], color=colour, linewidth=2.4, alpha=0.4)
            axes.plot([x], [y], color=colour, marker="o" if _is_k_quant(str(line["type"])) else "D",
                      markersize=5.5 if _is_k_quant(str(line["type"])) else 4.4, zorder=4)  # fmt: skip
    axes.set_xticks(range(len(order)), order, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_xlim(-0.6, len(order) - 0.4)


def _dress(upper: Axes, lower: Axes, panel: Panel, *, is_first: bool) -> None:
    """Titles, scales and a quiet grid."""
    upper.set_title(panel.title, fontsize=10.5, loc="left", color=INK, linespacing=1.4, pad=10)
    upper.set_xlabel("bits per weight, whole file" if panel.domain != "words" else "bits per weight, quantized layers")
    upper.xaxis.set_major_locator(MultipleLocator(1))
    top = max(_number(line, "high") for line in panel.lines)
    lower.set_ylim(0, max(1.12, top * 1.06))
    if is_first:
        upper.set_ylabel("mean KL divergence (nats)")
        lower.set_ylabel("ratio to llama-quantize")
    for axes in (upper, lower):
        axes.grid(True, color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(length=0)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)


def _legend(figure: Figure, colours: Mapping[str, tuple[str, str]]) -> None:
    """One for the whole picture, on top."""
    handles = [_circle("white", PEER)]
    labels = ["llama-quantize, same imatrix, same bytes"]
    for label, colour in colours.values():
        handles.append(_circle(colour, colour))
        labels.append(f"lilliput, {label}")
    figure.legend(
        handles, labels, loc="lower left", bbox_to_anchor=(0.105, 0.985), ncols=len(labels), frameon=False,
        fontsize=9.5, handletextpad=0.3, columnspacing=1.8,
    )  # fmt: skip


def _circle(face: str, edge: str) -> Line2D:
    return Line2D(
        [],
        [],
        marker="o",
        linestyle="",
        markersize=6.5,
        markerfacecolor=face,
        markeredgecolor=edge,
        markeredgewidth=1.5,
    )


def _number(line: Line, key: str) -> float:
    value = line[key]
    return float(value) if isinstance(value, int | float) else float("nan")
