# SPDX-License-Identifier: Apache-2.0
"""The report as one HTML page: no network, no script needed to read it, light and dark, screen, phone and paper."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files as package_files

from lilliput.reports.divergence_plot import divergence_plot
from lilliput.reports.frontier_plot import frontier_plot
from lilliput.reports.heat_map import heat_map, scales_for
from lilliput.reports.markup import Markup, Node, element, join, json_island
from lilliput.reports.numbers import human_count, significant, with_error
from lilliput.reports.records import QuantizedFile, Report
from lilliput.reports.summary import figures, verdict_scale
from lilliput.reports.tables import (
    definitions,
    files_table,
    formats_table,
    making_list,
    pairs_table,
    percentiles_table,
    tensors_table,
)
from lilliput.reports.text_blocks import continuation_block, legend, passage_block, places_block, token_data
from lilliput.reports.weight_plot import MOST_LINES, weight_plot

# The page may load nothing at all; style and script are its own.
_ARITHMETIC = {"f32": "float32 inputs", "engine": "the engine's int8 inputs"}
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def page(report: Report) -> str:
    """The whole document."""
    name = report.original.name
    head = element(
        "head", element("meta", charset="utf-8"), element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"), element("title", f"{name}: what quantization cost"),
        element("style", _asset("page.css"), Markup(_file_rules(len(report.files)))),
    )  # fmt: skip
    choices = [
        element(
            "input", type="radio", name="file", id=f"file-{index}", class_="choice",
            checked=index == report.headline, aria_label=f"Show {file.label}",
        )
        for index, file in enumerate(report.files)
    ]  # fmt: skip
    sections = (_size_and_divergence(report), _text(report), _tensors(report), _weights(report), _made(report))
    main = element("main", *choices, _head(report), *sections, _how_to_read(report))
    card = element("div", id="card", hidden=True, role="status")
    script = element("script", _asset("page.js"))
    body = element("body", main, card, json_island("token-data", token_data(report)), script)
    return "<!doctype html>\n" + element("html", head, body, lang="en") + "\n"


def _asset(name: str) -> Markup:
    return Markup(package_files("lilliput.reports").joinpath(name).read_text(encoding="utf-8"))


def _file_rules(count: int) -> str:
    """CSS that shows the panels of the chosen file, so that no script is needed for it."""
    shown = ",".join(f"#file-{at}:checked~* .panel-{at}" for at in range(count))
    named = ",".join(f'#file-{at}:checked~* label[for="file-{at}"]' for at in range(count))
    focused = ",".join(f'#file-{at}:focus-visible~* label[for="file-{at}"]' for at in range(count))
    return (
        f"@media screen{{{shown}{{display:block}}}}"
        f"{named}{{color:var(--ink);border-color:var(--ink)}}"
        f"{focused}{{outline:2px solid var(--accent)}}"
    )


def _head(report: Report) -> Markup:
    shown = figures(report, report.files[report.headline])
    original = report.original
    name, size, part = element("b", shown.label, class_="name"), element("b", shown.size), element("b", shown.share)
    word, kld, same = element("b", shown.word, class_="word"), element("b", shown.kld), element("b", shown.same_top)
    sentence = element(
        "p", name, " is ", size, ", ", part, " of the original, and ", word, ": its predictions differ by ", kld,
        " nats of KL divergence and name the same next token ", same, f" of the time; {shown.advice}.",
        class_="headline",
    )  # fmt: skip
    facts = (
        f"{original.family}, {human_count(original.weights)} weights, {original.layers} layers. "
        f"Measured on {report.text.scored:,} tokens of {report.text.name}; ± are 95 % intervals."
    )
    notes = element("ul", *(element("li", note) for note in report.notes), class_="notes") if report.notes else ""
    return element(
        "header", element("p", "lilliput report", class_="eyebrow"), element("h1", original.name), sentence,
        files_table(report), element("p", facts, class_="small"), notes,
    )  # fmt: skip


def _section(title: str, name: str, *content: Node, tabs: Markup | None = None) -> Markup:
    return element(
        "section", element("div", element("h2", title), tabs or "", class_="section-head"), *content, id=name
    )


def _tabs(report: Report) -> Markup:
    """One choice for all sections; nothing to choose with one file."""
    if len(report.files) < 2:
        return Markup()
    names = [
        element("label", element("i", class_=f"dot file-colour-{index % 6}"), file.label, for_=f"file-{index}")
        for index, file in enumerate(report.files)
    ]
    return element("div", *names, class_="tabs")


def _panels(report: Report, content: Callable[[int, QuantizedFile], Node]) -> Markup:
    """One panel a file; on paper all of them, with names."""
    name = "" if len(report.files) > 1 else " only"
    return join(
        *(
            element("div", element("h3", file.label, class_="panel-name"), content(index, file),
                    class_=f"panel panel-{index}{name}")
            for index, file in enumerate(report.files)
        )
    )  # fmt: skip


def _figure(chart: Markup, caption: Node, title: str = "") -> Markup:
    named = element("h3", title) if title else ""
    return element("figure", named, chart, element("figcaption", caption))


def _size_and_divergence(report: Report) -> Markup:
    ridges = (
        "Share of tokens by KL, equal bins of its logarithm; each ridge at its own height. Dotted: the mean, which few "
        "tokens dominate. Ticks below: median, 99 %, maximum."
    )
    cells = [_figure(divergence_plot(report.files), ridges, "KL over the tokens")]
    if len(report.files) > 1 or report.frontier:
        searched = " Small dots: mixes that a search measured, on its own text." if report.frontier else ""
        caption = f"Lower and further left is better. Bars: 95 % intervals, where longer than the marks.{searched}"
        cells.insert(0, _figure(frontier_plot(report), caption, "Size against divergence"))
    cells.append(element("div", element("h3", "KL at single tokens, nats"), percentiles_table(report.files)))
    if report.paired:
        cells.append(element("div", element("h3", "Pairs, on the same tokens"), pairs_table(report)))
    return _section("Size and divergence", "divergence", element("div", *cells, class_="two"))


def _text(report: Report) -> Markup:
    def panel(index: int, file: QuantizedFile) -> Node:
        written = (
            join(element("h3", "Left to themselves: the most probable token, again and again"),
                 continuation_block(file.continuation, file.label))
            if file.continuation is not None
            else ""
        )  # fmt: skip
        return join(
            passage_block(report, index),
            element("h3", "Farthest from the original"),
            places_block(file.places),
            written,
        )

    intro = element(
        "p", f"Window {report.passage.window} of {report.text.windows}, one of middling divergence. Point at a "
        "token, or tap it, for what both models expected there.", class_="small",
    )  # fmt: skip
    return _section("Where it thinks differently", "text", legend(), intro, _panels(report, panel), tabs=_tabs(report))


def _tensors(report: Report) -> Markup:
    def panel(_: int, file: QuantizedFile) -> Node:
        scales = scales_for(file.tensors)
        maps = [_figure(heat_map(file.tensors, scale), "", scale.name) for scale in scales]
        consists = element("div", element("h3", "What the file consists of"), formats_table(file.tensors))
        every = element("details", element("summary", f"All {len(file.tensors)} tensors"), tensors_table(file.tensors))
        return join(element("div", *maps, consists, class_="two maps"), every)

    return _section("Tensor by tensor", "tensors", _panels(report, panel), tabs=_tabs(report))


def _weights(report: Report) -> Markup:
    def panel(_: int, file: QuantizedFile) -> Node:
        shown = []
        for item in file.pictures:
            levels = (
                f"{len(item.levels)} levels of {item.group_name}"
                if item.levels and len(item.levels) <= MOST_LINES
                else f"{len(item.levels)} levels in {item.group_name}, too many to draw"
                if item.levels
                else "no grid to draw"
            )
            caption = f"{item.format}, relative error {significant(item.relative_error, 2)}; {levels}."
            shown.append(_figure(weight_plot(item), caption, f"{item.tensor}, {item.why}"))
        return element("div", *shown, class_="three")

    caption = (
        "Grey: all weights of a tensor. Lines: the values that one group of it can take. Marks below: "
        "that group's weights before rounding."
    )
    return _section("Weights and their grid", "weights", element("p", caption, class_="small"),
                    _panels(report, panel), tabs=_tabs(report))  # fmt: skip


def _made(report: Report) -> Markup:
    text, original = report.text, report.original
    measured: list[tuple[str, Node]] = [
        ("text", f"{text.name}, {text.windows} windows of {text.context} tokens, the second half of each scored: "
                 f"{text.scored:,} tokens"),
        ("arithmetic", _ARITHMETIC.get(text.activations, text.activations)),
        ("perplexity of the original", with_error(original.perplexity)),
    ]  # fmt: skip
    if text.sha256:
        measured.append(("sha256 of the text", element("code", text.sha256)))
    if report.floor is not None:
        measured.append(("what int8 inputs add", f"KL {with_error(report.floor, unit='nats')}"))
    measured.append(("fingerprint of the original", element("code", original.fingerprint)))
    if report.command:
        measured.append(("command", element("code", report.command)))
    measured.append(("versions", ", ".join(f"{name} {version}" for name, version in report.versions.items())))
    return _section(
        "How it was made and measured", "made", element("h3", "This report"), definitions(measured),
        _panels(report, lambda _, file: join(element("h3", f"{file.label}"), making_list(file))), tabs=_tabs(report),
    )  # fmt: skip


def _how_to_read(report: Report) -> Markup:
    terms: tuple[tuple[str, Node], ...] = (
        ("KL", "how far the file's next-token probabilities are from the original's, in nats, over the whole "
               "vocabulary; 0 is the same. A mean KL of k moves at most √(k/2) of the probability on average."),
        ("same top token", "how often both models have the same most probable next token."),
        ("perplexity", "change of exp(mean negative log-likelihood) of the text; it can fall by chance."),
        ("verdict", f"by the upper end of the KL interval in nats: {verdict_scale(report)}. A rule of thumb, not a "
                    "test of your task."),
        ("95 % intervals", "whole windows are drawn again and again, because tokens of one window are alike; pairs are "
                           "drawn together."),
        ("relative error", "sum of squared differences of the weights over their sum of squares."),
    )  # fmt: skip
    return element(
        "footer", element("h2", "How to read this"), definitions(terms),
        element("p", f"Made by lilliput {report.versions.get('lilliput', '')}.", class_="small"),
    )  # fmt: skip
