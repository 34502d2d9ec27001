# SPDX-License-Identifier: Apache-2.0
"""What becomes of one layer: the format of its weight and of its inputs, and how ranges are found.

W8A8-dynamic   int8 per output channel, inputs int8 per token            (torch's quantize_dynamic, finer)
W8A8-static    the same weights, inputs int8 with one calibrated scale and zero point
W4A8-dynamic   int4 in groups of 128, inputs int8 per token
W8A16, W4A16   weights alone
LLM.int8       W8A8-dynamic, but columns with inputs above 6 stay floats
FP8-dynamic, FP8-static   8-bit floats on both sides; inputs simulated
<format>               any number format with float inputs: Q4_K, int4_g128, nf4 …
<format>/<inputs>      with any input format: int6_g128/int8_token_asym, Q8_0/int8_g32
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches

from lilliput.activations import (
    RANGE_METHODS,
    FloatInputs,
    InputFormat,
    IntegerInputs,
    PlainInputs,
    WithOutlierColumns,
    get_input_format,
)
from lilliput.errors import FormatError, RecipeError
from lilliput.formats import NumberFormat, get_format
from lilliput.torch_backend.integer_form import has_integer_form

# As people write them.
SPELLED = (
    "W8A8-dynamic", "W8A8-static", "W4A8-dynamic", "W8A16", "W4A16", "LLM.int8", "FP8-dynamic", "FP8-static"
)  # fmt: skip
SCHEMES = {
    "w8a8-dynamic": "int8_channel/int8_token",
    "w8a8-static": "int8_channel/int8_static_asym",
    "w4a8-dynamic": "int4_g128/int8_token",
    "w8a16": "int8_channel/f32",
    "w4a16": "int4_g128/f32",
    "llm.int8": "int8_channel/int8_token+outliers6",
    "fp8-dynamic": "fp8_e4m3_channel/fp8_e4m3_token",
    "fp8-static": "fp8_e4m3_channel/fp8_e4m3_static",
}


@dataclass(frozen=True, slots=True)
class LayerScheme:
    """weight: stored format.  inputs: of linear layers.  ranges: method for static inputs, one of RANGE_METHODS.

    smoothing: SmoothQuant's strength, 0 for none: inputs are divided by factors that the weights are multiplied by.
    """

    weight: NumberFormat
    inputs: InputFormat
    ranges: str = "min_max"
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        if self.ranges not in RANGE_METHODS:
            raise RecipeError(f"unknown range method '{self.ranges}'; known: {', '.join(RANGE_METHODS)}")
        if not 0.0 <= self.smoothing <= 1.0:
            raise RecipeError(f"smoothing {self.smoothing} is not between 0 (none) and 1 (all of it into the weights)")
        if self.is_integer and not has_integer_form(self.weight):
            raise RecipeError(
                f"{self.name}: {self.weight.name.upper()} weights have no integer arithmetic; use inputs f32, or "
                "weights of an integer format such as int8_channel, int4_g128 or Q8_0"
            )

    @property
    def is_integer(self) -> bool:
        """Whether layers compute in integers."""
        return isinstance(self.inputs, IntegerInputs | WithOutlierColumns)

    @property
    def needs_calibration(self) -> bool:
        """Whether inputs must be seen beforehand."""
        return self.inputs.is_static or self.smoothing > 0.0

    @property
    def name(self) -> str:
        """<format>/<inputs>."""
        return f"{self.weight.name}/{self.inputs.name}"


def get_scheme(name: str, *, ranges: str = "min_max", smoothing: float = 0.0) -> LayerScheme:
    """The scheme of a name as above, in any case. Raises RecipeError."""
    spelled = SCHEMES.get(name.lower(), name)
    weight, _, inputs = spelled.partition("/")
    try:
        return LayerScheme(get_format(weight), get_input_format(inputs or "f32"), ranges, smoothing)
    except FormatError as error:
        near = " or ".join(repr(each) for each in _near(name))
        # A list of all formats would bury what was meant.
        why = f"did you mean {near}?" if near else f"{error};"
        raise RecipeError(
            f"unknown scheme '{name}': {why} schemes: {', '.join(SPELLED)}, or <format>/<inputs>"
        ) from error


def _near(name: str) -> list[str]:
    """Schemes that a wrong name may have meant, as they are written: those that it begins, else the likest."""
    begun = [scheme for scheme in SPELLED if scheme.lower().startswith(name.lower())] if name else []
    spelled = {scheme.lower(): scheme for scheme in SPELLED}
    return begun or [spelled[each] for each in get_close_matches(name.lower(), spelled, n=2, cutoff=0.6)]


__all__ = ["SCHEMES", "FloatInputs", "LayerScheme", "PlainInputs", "get_scheme"]
