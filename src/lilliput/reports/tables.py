# SPDX-License-Identifier: Apache-2.0
"""The tables of the page: files, pairs, percentiles, formats, tensors, and how each file was made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from math import prod

from lilliput.reports.markup import Markup, Node, element, join
from lilliput.reports.numbers import TIMES, human_bytes, significant
from lilliput.reports.records import Interval, Making, QuantizedFile, Report, TensorRow
from lilliput.reports.summary import figures

# Verdicts have five levels; so many squares are filled for the best.
LEVELS = 5
# More files than this have too many pairs to read.
MOST_FOR_ALL_PAIRS = 3
SHOWN_PERCENTS = (50.0, 99.0, 99.9, 100.0)


def table(heads: Sequence[Node], rows: Sequence[Sequence[Node]], *, class_: str = "", texts: int = 1) -> Markup:
    """A table that becomes cards on a phone. texts: leading columns that are words; the rest are numbers."""
    names = [str(cell) if not isinstance(cell, Markup) else "" for cell in heads]
    head = element("tr", *(element("th", cell, scope="col", class_=None if at < texts else "n")
                           for at, cell in enumerate(heads)))  # fmt: skip
    body = [
        element("tr", *(_cell(cell, at, names[at] if at < len(names) else "", texts) for at, cell in enumerate(row)))
        for row in rows
    ]
    content = element("table", element("thead", head), element("tbody", *body), class_=class_ or None)
    return element("div", content, class_="scroll")


def _cell(cell: Node, at: int, name: str, texts: int) -> Markup:
    if at == 0:
        return element("th", cell, scope="row")
    return element("td", cell, class_=None if at < texts else "n", data_label=name or None)


def files_table(report: Report) -> Markup:
    """Every file, and the original in the last row."""
    largest = max([report.original.bytes, *(file.bytes for file in report.files)])
    rows: list[list[Node]] = []
    for index, file in enumerate(report.files):
        shown = figures(report, file)
        name = element("span", element("i", class_=f"dot file-colour-{index % 6}"), file.label, class_="file-name")
        rows.append([
            name, _size(shown.size, file.bytes / largest), shown.share, shown.bits_per_weight, shown.kld,
            shown.same_top, f"{shown.perplexity_change}", verdict_mark(file),
        ])  # fmt: skip
    original = report.original
    rows.append([
        element("span", element("i", class_="dot"), f"{original.file} (original)", class_="file-name"),
        _size(human_bytes(original.bytes), original.bytes / largest), "100 %", f"{original.bits_per_weight:.2f}",
        "0", "100 %", "0", "",
    ])  # fmt: skip
    heads = (
        "file", "size", "of original", "bits per weight", "mean KL, nats", "same top token", "perplexity change",
        "verdict",
    )  # fmt: skip
    return table(heads, rows, class_="files")


def _size(shown: str, part: float) -> Markup:
    bar = element("span", element("i", style=f"width:{100 * part:.1f}%"), class_="size-bar")
    return join(shown, bar)


def verdict_mark(file: QuantizedFile) -> Markup:
    """The word, with as many squares filled as levels are left to the worst."""
    verdict = file.measured.verdict
    squares = [element("i", class_="on" if at < LEVELS - verdict.level else None) for at in range(LEVELS)]
    return element(
        "span", element("span", *squares, class_="meter", aria_hidden="true"), verdict.word, class_="verdict",
        title=verdict.advice,
    )  # fmt: skip


def pairs_table(report: Report) -> Markup:
    """KL of one file over another's, paired; of many files only those next to each other in size."""
    pairs = report.paired
    if len(report.files) > MOST_FOR_ALL_PAIRS:
        ranked = [file.label for file in sorted(report.files, key=lambda file: file.bytes)]
        neighbours = {frozenset(pair) for pair in pairwise(ranked)}
        pairs = tuple(pair for pair in pairs if frozenset((pair.a, pair.b)) in neighbours)
    rows = [[f"{pair.a} / {pair.b}", _bracketed(pair.ratio), _closer(pair.ratio)] for pair in pairs]
    return table(("files", "KL ratio, 95 % interval", "nearer to the original"), rows, class_="pairs")


def _closer(ratio: Interval) -> str:
    if not (math.isfinite(ratio.low) or math.isfinite(ratio.high)):
        return "too few windows to tell"
    if ratio.low <= 1.0 <= ratio.high:
        return "no difference"
    return "the first" if ratio.high < 1.0 else "the second"


def _bracketed(ratio: Interval) -> str:
    """Value and bounds, where there are any."""
    if not (math.isfinite(ratio.low) or math.isfinite(ratio.high)):
        return significant(ratio.value, 3)
    value, low, high = (significant(number, 3) for number in (ratio.value, ratio.low, ratio.high))
    return f"{value} [{low}, {high}]"


def percentiles_table(files: Sequence[QuantizedFile]) -> Markup:
    """KL at single tokens: median to worst."""
    heads = ["file", *(_percent_name(percent) for percent in SHOWN_PERCENTS)]
    rows = [
        [file.label, *(significant(dict(file.measured.kld_percentiles).get(percent, float("nan")), 2)
                       for percent in SHOWN_PERCENTS)]
        for file in files
    ]  # fmt: skip
    return table(heads, rows, class_="percentiles")


def _percent_name(percent: float) -> str:
    return {50.0: "median", 100.0: "maximum"}.get(percent, f"{percent:g} %")


def formats_table(rows: Sequence[TensorRow]) -> Markup:
    """What the file consists of."""
    total = max(sum(row.bytes for row in rows), 1)
    found: dict[str, list[TensorRow]] = {}
    for row in rows:
        found.setdefault(row.format, []).append(row)
    shown = []
    for name, group in sorted(found.items(), key=lambda item: -sum(row.bytes for row in item[1])):
        size = sum(row.bytes for row in group)
        weights = sum(prod(row.shape) for row in group)
        shown.append([
            name, str(len(group)), human_bytes(size), f"{100 * size / total:.1f} %",
            f"{8 * size / max(weights, 1):.4g}",
        ])  # fmt: skip
    return table(("format", "tensors", "size", "of file", "bits per weight"), shown, class_="formats")


def tensors_table(rows: Sequence[TensorRow]) -> Markup:
    """All tensors."""
    shown = [
        [row.name, row.format, TIMES.join(map(str, row.shape)), human_bytes(row.bytes), f"{row.bits_per_weight:.4g}",
         _known(row.relative_error), _known(row.weighted_error), row.method]
        for row in rows
    ]  # fmt: skip
    heads = ("tensor", "format", "shape", "size", "bits per weight", "relative error", "weighted error", "method")
    return table(heads, shown, class_="tensors", texts=2)


def _known(value: float | None) -> str:
    return "" if value is None else significant(value, 2)


def making_list(file: QuantizedFile) -> Markup:
    """Recipe, command, calibration, versions and hashes of a file."""
    made: Making = file.making
    rows: list[tuple[str, Node]] = [("file", f"{file.file}, {file.bytes:,} bytes, {file.container}")]
    if made.recipe:
        rows.append(("recipe", made.recipe))
    if made.command:
        rows.append(("command", element("code", made.command)))
    if made.methods:
        rows.append(("codes chosen by", ", ".join(f"{name} ({count} tensors)" for name, count in made.methods)))
    if made.transforms:
        shown = ", ".join(f"{name} (at {count} edges)" for name, count in made.transforms)
        rows.append(("rewritten before by", f"{shown}; errors are those of the rewritten weights"))
    rows.append(("calibration text", ", ".join(made.datasets) or "none, or not known"))
    if made.versions:
        rows.append(("versions", ", ".join(f"{name} {version}" for name, version in made.versions.items())))
    rows += [(f"sha256 of {name}", element("code", digest)) for name, digest in made.sha256.items()]
    rows += [(f"fingerprint: {name}", element("code", digest)) for name, digest in made.fingerprints.items()]
    rows += [("note", note) for note in made.notes]
    return definitions(rows)


def definitions(rows: Sequence[tuple[str, Node]]) -> Markup:
    """Names and values."""
    return element("dl", *(join(element("dt", name), element("dd", value)) for name, value in rows))
