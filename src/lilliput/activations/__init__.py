# SPDX-License-Identifier: Apache-2.0
"""Activations: what values the inputs of a linear layer may take. The table of contents, and their names.

f32                         as they are
int<2-8>_token              integers around zero, a scale a token, found when the token is there
int<2-8>_<g16 … g256>       the same, a scale for each token and group of columns
int<2-8>_static             integers around zero, one scale for all tokens, from calibration
…_asym                      any of these with a zero point: one end of the range may lie nearer to zero
fp8_e4m3_token, …_static    8-bit floats (also e5m2), a scale a token or one for all; simulated: computed in float32
<integers>+outliers<t>      columns with a magnitude above t stay floats (LLM.int8())
"""

from __future__ import annotations

import re
from functools import cache

from lilliput.activations.float_inputs import FloatInputs, PlainInputs
from lilliput.activations.integer_inputs import FixedScale, InputCodes, IntegerInputs
from lilliput.activations.outlier_columns import WithOutlierColumns
from lilliput.activations.ranges import RANGE_METHODS, RangeObserver
from lilliput.activations.stored_range import StaticFormat, StaticInputs, parse_static_inputs
from lilliput.errors import FormatError

__all__ = [
    "RANGE_METHODS",
    "FixedScale",
    "FloatInputs",
    "InputCodes",
    "InputFormat",
    "IntegerInputs",
    "PlainInputs",
    "RangeObserver",
    "StaticFormat",
    "StaticInputs",
    "WithOutlierColumns",
    "get_input_format",
    "parse_static_inputs",
]

InputFormat = PlainInputs | IntegerInputs | FloatInputs | WithOutlierColumns

_INTEGER = re.compile(r"int([2-8])_(token|static|g16|g32|g64|g128|g256)(_asym)?")
_FLOAT = re.compile(r"fp8_(e4m3|e5m2)_(token|static)")
_OUTLIERS = re.compile(r"outliers(\d+(?:\.\d+)?)")
_SPELLING = (
    "f32, int<2-8>_token, int<2-8>_static or int<2-8>_g<16|32|64|128|256>, each also with _asym and, but for static "
    "ones, +outliers<threshold>; fp8_e4m3_token, fp8_e4m3_static, fp8_e5m2_token, fp8_e5m2_static"
)


@cache
def get_input_format(name: str) -> InputFormat:
    """The input format of that name, in any case. Raises FormatError with how names are spelled."""
    base, plus, suffix = name.lower().partition("+")
    outliers = _OUTLIERS.fullmatch(suffix) if plus else None
    if base == "f32" and not plus:
        return PlainInputs()
    if found := _INTEGER.fullmatch(base):
        group = int(found[2][1:]) if found[2].startswith("g") else None
        made = IntegerInputs(int(found[1]), group, is_symmetric=not found[3], is_static=found[2] == "static")
        if not plus:
            return made
        if outliers and not made.is_static:
            return WithOutlierColumns(made, float(outliers[1]))
    elif (found := _FLOAT.fullmatch(base)) and not plus:
        return FloatInputs("e4m3" if found[1] == "e4m3" else "e5m2", is_static=found[2] == "static")
    raise FormatError(f"unknown input format '{name}'; known: {_SPELLING}")
