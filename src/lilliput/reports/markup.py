# SPDX-License-Identifier: Apache-2.0
"""HTML and SVG as values: only `Markup` is trusted, every other string is escaped when it becomes part of an element.

So no text of a model can become markup, wherever it is used.
"""

from __future__ import annotations

import json
import unicodedata
from html import escape as _html_escape

# Elements that have no end tag.
_VOID = frozenset(("br", "hr", "input", "meta", "link", "path", "line", "rect", "circle", "polyline", "polygon", "use"))
_SELF_CLOSED = frozenset(("path", "line", "rect", "circle", "polyline", "polygon", "use"))


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Node = str | Markup
Attribute = str | int | float | bool | None


def text(value: str) -> Markup:
    """Escaped, and with every control or direction-changing character spelled out, so that nothing hides in it."""
    return Markup(_html_escape("".join(_visible(mark) for mark in value), quote=True))


def element(name: str, /, *children: Node, **attributes: Attribute) -> Markup:
    """An element.

    attributes: `class_` for class, `_` for `-`; None and False leave one out, True gives it no value; floats lose
    digits that no screen shows.
    """
    opened = f"<{name}{''.join(_attribute(key, value) for key, value in attributes.items())}"
    if name in _SELF_CLOSED and not children:
        return Markup(opened + "/>")
    if name in _VOID and not children:
        return Markup(opened + ">")
    return Markup(f"{opened}>{join(*children)}</{name}>")


def join(*nodes: Node) -> Markup:
    """Nodes one after another; plain strings are escaped."""
    return Markup("".join(node if isinstance(node, Markup) else text(node) for node in nodes))


def json_island(name: str, value: object) -> Markup:
    """Data for the page's script, which no content can leave: `<`, `>` and `&` are escapes inside JSON strings."""
    packed = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    for mark in "<>&":
        packed = packed.replace(mark, f"\\u{ord(mark):04x}")
    return Markup(f'<script type="application/json" id="{text(name)}">{packed}</script>')


def visible(value: str) -> str:
    r"""Control and direction-changing characters as \u escapes; line breaks and tabs stay."""
    return "".join(_visible(mark) for mark in value)


def _visible(mark: str) -> str:
    if mark in "\n\t" or mark.isprintable() or mark == "\u00a0":
        return mark
    kind = unicodedata.category(mark)
    # Cc: control, Cf: format and direction, Cs: half a surrogate pair, Co and Cn: no character.
    return f"\\u{ord(mark):04x}" if kind in ("Cc", "Cf", "Cs", "Co", "Cn") else mark


def _attribute(key: str, value: Attribute) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    if name in ("viewbox", "gradientunits"):
        name = {"viewbox": "viewBox", "gradientunits": "gradientUnits"}[name]
    if value is True:
        return f" {name}"
    shown = number(value) if isinstance(value, float) else str(value)
    return f' {name}="{text(shown)}"'


def number(value: float) -> str:
    """A coordinate: a tenth of a pixel is enough."""
    shown = f"{value:.1f}".removesuffix(".0")
    return "0" if shown == "-0" else shown
