# SPDX-License-Identifier: Apache-2.0
"""Number formats: the table of contents. To add one, write its file and add one line here."""

from __future__ import annotations

from difflib import get_close_matches

from lilliput.errors import FormatError
from lilliput.formats.number_format import BlockFormat, Encoded, NumberFormat, Parameters, Planes, PlaneSpec, Scope
from lilliput.formats.q8_0 import Q8_0

__all__ = [
    "FORMATS",
    "BlockFormat",
    "Encoded",
    "NumberFormat",
    "Parameters",
    "PlaneSpec",
    "Planes",
    "Scope",
    "get_format",
]

_ALL: tuple[NumberFormat, ...] = (
    Q8_0(),
)
FORMATS: dict[str, NumberFormat] = {number_format.name: number_format for number_format in _ALL}


def get_format(name: str) -> NumberFormat:
    """Look a format up by name, in any case.

    Raises FormatError with the nearest known names.
    """
    found = FORMATS.get(name.lower())
    if found is None:
        near = get_close_matches(name.lower(), FORMATS, n=3)
        hint = f"did you mean {', '.join(n.upper() for n in near)}?" if near else f"known: {', '.join(FORMATS)}"
        raise FormatError(f"unknown number format '{name}'; {hint}")
    return found
