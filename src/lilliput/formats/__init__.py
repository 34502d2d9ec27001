# SPDX-License-Identifier: Apache-2.0
"""Number formats: the table of contents. To add one, write its file and add one line here."""

from __future__ import annotations

from difflib import get_close_matches
from functools import cache

from lilliput.errors import FormatError
from lilliput.formats.bf16 import BF16
from lilliput.formats.f16 import F16
from lilliput.formats.f32 import F32
from lilliput.formats.f64 import F64
from lilliput.formats.families import STANDARD, construct
from lilliput.formats.i8 import I8
from lilliput.formats.i16 import I16
from lilliput.formats.i32 import I32
from lilliput.formats.i64 import I64
from lilliput.formats.iq1_m import IQ1_M
from lilliput.formats.iq1_s import IQ1_S
from lilliput.formats.iq2_s import IQ2_S
from lilliput.formats.iq2_xs import IQ2_XS
from lilliput.formats.iq2_xxs import IQ2_XXS
from lilliput.formats.iq3_s import IQ3_S
from lilliput.formats.iq3_xxs import IQ3_XXS
from lilliput.formats.iq4_nl import IQ4_NL
from lilliput.formats.iq4_xs import IQ4_XS
from lilliput.formats.mxfp4 import MXFP4
from lilliput.formats.number_format import BlockFormat, Encoded, NumberFormat, Parameters, Planes, PlaneSpec, Scope
from lilliput.formats.nvfp4 import NVFP4
from lilliput.formats.outliers import with_outliers
from lilliput.formats.q1_0 import Q1_0
from lilliput.formats.q2_k import Q2_K
from lilliput.formats.q3_k import Q3_K
from lilliput.formats.q4_0 import Q4_0
from lilliput.formats.q4_1 import Q4_1
from lilliput.formats.q4_k import Q4_K
from lilliput.formats.q5_0 import Q5_0
from lilliput.formats.q5_1 import Q5_1
from lilliput.formats.q5_k import Q5_K
from lilliput.formats.q6_k import Q6_K
from lilliput.formats.q8_0 import Q8_0
from lilliput.formats.tq1_0 import TQ1_0
from lilliput.formats.tq2_0 import TQ2_0

__all__ = [
    "FORMATS",
    "BlockFormat",
    "Encoded",
    "NumberFormat",
    "Parameters",
    "PlaneSpec",
    "Planes",
    "Scope",
    "find_format",
    "get_format",
]

_ALL: tuple[NumberFormat, ...] = (
    F32(),
    F16(),
    BF16(),
    F64(),
    I8(),
    I16(),
    I32(),
    I64(),
    Q8_0(),
    Q6_K(),
    Q5_K(),
    Q5_1(),
    Q5_0(),
    Q4_K(),
    Q4_1(),
    Q4_0(),
    Q3_K(),
    Q2_K(),
    Q1_0(),
    IQ4_NL(),
    IQ4_XS(),
    IQ3_S(),
    IQ3_XXS(),
    IQ2_S(),
    IQ2_XS(),
    IQ2_XXS(),
    IQ1_M(),
    IQ1_S(),
    TQ2_0(),
    TQ1_0(),
    MXFP4(),
    NVFP4(),
    *(named for named in map(construct, STANDARD) if named is not None),
)
FORMATS: dict[str, NumberFormat] = {number_format.name: number_format for number_format in _ALL}
for _base, _suffix in (("int4_channel", "columns1"), ("int4_g128", "columns1"), ("int3_g128", "sparse1")):
    FORMATS[f"{_base}+{_suffix}"] = with_outliers(FORMATS[_base], _suffix)

# Names that llama.cpp knows and no file holds.
_ACTIVATION_FORMATS = ("q8_1", "q8_k")


def get_format(name: str) -> NumberFormat:
    """Look a format up by name, in any case, or construct it (`families`).

    Raises FormatError with the nearest known names, or with how a family's names are spelled.
    """
    found = find_format(name)
    if found is not None:
        return found
    if name.lower() in _ACTIVATION_FORMATS:
        raise FormatError(
            f"{name}: an activation format inside llama.cpp; no file holds it. For 8-bit weights use Q8_0"
        )
    near = get_close_matches(name.lower(), FORMATS, n=3, cutoff=0.0)
    raise FormatError(
        f"unknown number format '{name}'; nearest: {', '.join(n.upper() for n in near)}; `lilliput formats` lists all"
    )


@cache
def find_format(name: str) -> NumberFormat | None:
    """The format of that name, in any case, known or constructed; None for a name of no family.

    Raises FormatError for a name that begins like one of a family and is not spelled right.
    """
    base, plus, suffix = name.lower().partition("+")
    known = FORMATS.get(name.lower())
    if known is not None or not plus:
        return known or construct(base)
    found = find_format(base)
    return with_outliers(found, suffix) if found is not None else None
