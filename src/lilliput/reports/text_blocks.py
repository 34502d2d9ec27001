# SPDX-License-Identifier: Apache-2.0
"""Text coloured by how much a file changed each prediction; the places of largest change; what both models write."""

from __future__ import annotations

from collections.abc import Sequence

from lilliput.reports.colour_steps import KLD_LIMITS, step
from lilliput.reports.markup import Markup, element, join, visible
from lilliput.reports.numbers import significant
from lilliput.reports.records import Candidate, Continuation, Place, Report, WrittenToken, finite

SHOWN_CANDIDATES = 3


def passage_block(report: Report, index: int) -> Markup:
    """The passage as file `index` sees it; the page's script reads the island of `token_data` on hover or tap."""
    scores = report.files[index].passage
    before = element("span", tail(report.passage.before).lstrip("\n"), class_="before")
    originals = report.passage.candidates
    tokens = [
        _token(text, kld, index=at, is_changed=_best(originals[at]) != _best(scores.candidates[at]))
        for at, (text, kld) in enumerate(zip(report.passage.tokens, scores.klds, strict=True))
    ]
    return element(
        "div", before, *tokens, class_="passage", data_file=index, tabindex=0, role="group",
        aria_label="Text coloured by KL divergence; arrow keys move from token to token",
    )  # fmt: skip


def token_data(report: Report) -> dict[str, object]:
    """Candidates and KL of every token of the passage, with each text once.

    words: texts.  original: per token [word, per mille, …].  files: per file the same, and kld.  tokens: word of each.
    """
    words: dict[str, int] = {}

    def packed(rows: Sequence[Sequence[Candidate]]) -> list[list[float]]:
        return [
            [number for item in row for number in (_word(words, item.text), round(item.probability, 4))] for row in rows
        ]

    original = packed(report.passage.candidates)
    files = [
        {"name": visible(file.label), "kld": finite(file.passage.klds), "top": packed(file.passage.candidates)}
        for file in report.files
    ]
    tokens = [_word(words, token) for token in report.passage.tokens]
    return {"words": list(words), "original": original, "files": files, "tokens": tokens}


def _word(words: dict[str, int], text: str) -> int:
    return words.setdefault(spelled(text), len(words))


def places_block(places: Sequence[Place]) -> Markup:
    """The positions of largest KL as cards, readable without a script."""
    return element("div", *(_place(place) for place in places), class_="places")


def _place(place: Place) -> Markup:
    quote = element(
        "p", element("span", tail(place.before, 90), class_="before"),
        element("mark", spelled(place.token), class_=f"heat-{step(place.kld, KLD_LIMITS)}"),
        element("span", head(place.after, 30), class_="before"), class_="quote",
    )  # fmt: skip
    note = element("p", f"KL {significant(place.kld, 2)} nats", class_="place-kld")
    return element(
        "article", join(note, quote),
        element("div", _list("original", place.original, place.token), _list("quantized", place.quantized, place.token),
                class_="pair"),
        class_="place",
    )  # fmt: skip


def _list(name: str, candidates: Sequence[Candidate], actual: str) -> Markup:
    rows = [
        element(
            "li", element("span", spelled(item.text), class_="word" + (" actual" if item.text == actual else "")),
            element("span", f"{100 * item.probability:.0f} %", class_="share"),
            element("span", element("i", style=f"width:{100 * item.probability:.1f}%"), class_="bar"),
        )
        for item in candidates[:SHOWN_CANDIDATES]
    ]  # fmt: skip
    return element("div", element("h5", name), element("ol", *rows), class_="candidates")


def continuation_block(continuation: Continuation, name: str) -> Markup:
    """Both texts beside each other, with a mark where they part."""
    at = continuation.parts_at
    told = (
        f"Both write the same {len(continuation.original)} tokens." if at is None else f"They part at token {at + 1}."
    )
    return join(
        element("p", "After the prompt", class_="small before-prompt"),
        element("p", tail(continuation.prompt.strip(), 240), class_="prompt"),
        element(
            "div", _column("original", continuation.original, at), _column(name, continuation.quantized, at),
            class_="columns",
        ),
        element("p", told, class_="small"),
    )  # fmt: skip


def _column(name: str, tokens: Sequence[WrittenToken], parts_at: int | None) -> Markup:
    shown = []
    for at, token in enumerate(tokens):
        if at == parts_at:
            shown.append(element("b", "◆", class_="parting", title="here they part"))
        shown.append(_token(token.text, token.kld))
    if parts_at == len(tokens):
        shown.append(element("b", "◆ end", class_="parting"))
    return element("div", element("h4", name), element("div", *shown, class_="passage written"))


def _token(text: str, kld: float, *, index: int | None = None, is_changed: bool = False) -> Markup:
    """A coloured token. Line breaks get a mark that can be coloured."""
    level = step(kld, KLD_LIMITS)
    shown = text.replace("\n", "↵\n") if text.strip("\n") == "" and text else text
    return element(
        "span", shown, class_=f"heat-{level}" + (" changed" if is_changed else ""), data_i=index,
        title=None if index is not None else f"KL {significant(kld, 2)}",
    )  # fmt: skip


def legend() -> Markup:
    """The colours of tokens."""
    names = [f"< {KLD_LIMITS[0]:g}", *(f"≥ {limit:g}" for limit in KLD_LIMITS)]
    swatches = [element("span", name, class_=f"swatch heat-{at}") for at, name in enumerate(names)]
    changed = element("span", element("span", "underlined", class_="changed"), ": another most probable token")
    return element("p", "KL at a token, nats: ", *swatches, changed, class_="legend")


def spelled(text: str) -> str:
    """A token on its own, with its spaces and line breaks visible."""
    return visible(text).replace("\n", "↵").replace("\t", "→").replace(" ", "·") or "∅"


def tail(text: str, longest: int = 220) -> str:
    """The end of a text."""
    return text if len(text) <= longest else "…" + text[-(longest - 1) :]


def head(text: str, longest: int) -> str:
    """The beginning of a text."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _best(candidates: Sequence[Candidate]) -> str | None:
    return candidates[0].text if candidates else None
