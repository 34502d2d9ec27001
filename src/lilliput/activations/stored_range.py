# SPDX-License-Identifier: Apache-2.0
"""Static inputs of a weight as a file holds them: arrays that travel beside its planes.

input_scale        float32 [1], above 0
input_zero_point   int32 [1], the code of 0, 0 … 255; absent where codes are symmetric

Beside weights that are integers under scales the inputs are int8; beside FP8 weights E4M3, which is kept and carried
on, and computed in floats.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from lilliput.activations.float_inputs import FloatInputs
from lilliput.activations.integer_inputs import FixedScale, IntegerInputs
from lilliput.activations.ranges import RANGE_METHODS
from lilliput.arrays import Array
from lilliput.errors import FormatError
from lilliput.formats import NumberFormat, PlaneSpec
from lilliput.formats.eight_bit_float import EightBitFloat

INPUT_SCALE, INPUT_ZERO_POINT = "input_scale", "input_zero_point"
# One symmetric, one with a zero point.
STORED_INPUTS = {
    inputs.name: inputs
    for inputs in (IntegerInputs(8, None, is_symmetric, is_static=True) for is_symmetric in (True, False))
}

StaticFormat = IntegerInputs | FloatInputs


@dataclass(frozen=True, slots=True)
class StaticInputs:
    """Static inputs to be made. ranges: how they are chosen, one of RANGE_METHODS."""

    inputs: IntegerInputs
    ranges: str

    @property
    def name(self) -> str:
        """As recipes spell it."""
        return f"{self.inputs.name}:{self.ranges}"


def parse_static_inputs(words: str) -> StaticInputs:
    """`int8_static_asym` or `int8_static:mse`, in any case; ranges are min_max where none is named.

    Raises FormatError.
    """
    name, _, ranges = words.lower().partition(":")
    inputs, ranges = STORED_INPUTS.get(name), ranges or "min_max"
    if inputs is None:
        raise FormatError(
            f"unknown static inputs '{name}'; a file can hold the ranges of {' and '.join(STORED_INPUTS)}; those whose "
            "scale is found as they come, such as int8_token, are chosen where the file is run"
        )
    if ranges not in RANGE_METHODS:
        raise FormatError(f"unknown ranges '{ranges}' of {name}; known: {', '.join(RANGE_METHODS)}")
    return StaticInputs(inputs, ranges)


def range_specs(inputs: StaticFormat) -> dict[str, PlaneSpec]:
    """Type and shape of the arrays beside a weight."""
    found = {INPUT_SCALE: PlaneSpec(np.dtype("<f4"), (1,))}
    if isinstance(inputs, IntegerInputs) and not inputs.is_symmetric:
        found[INPUT_ZERO_POINT] = PlaneSpec(np.dtype("<i4"), (1,))
    return found


def range_arrays(inputs: StaticFormat, fixed: FixedScale) -> dict[str, Array]:
    """The arrays beside a weight."""
    values = {INPUT_SCALE: fixed.scale, INPUT_ZERO_POINT: fixed.zero_point}
    return {name: np.array([values[name]], spec.dtype) for name, spec in range_specs(inputs).items()}


def inputs_beside(number_format: NumberFormat, sidecars: Collection[str]) -> StaticFormat | None:
    """What the arrays beside a weight, by name, say its inputs are."""
    if INPUT_SCALE not in sidecars:
        return None
    if isinstance(number_format, EightBitFloat):
        return FloatInputs("e4m3" if number_format.name.startswith("fp8_e4m3") else "e5m2", is_static=True)
    return IntegerInputs(8, None, is_symmetric=INPUT_ZERO_POINT not in sidecars, is_static=True)


def fixed_scale_of(sidecars: Mapping[str, Array], middle: int) -> FixedScale:
    """Scale and zero point that lie beside a weight. middle: the zero point of symmetric codes."""
    scale = float(np.asarray(sidecars[INPUT_SCALE], np.float32).reshape(-1)[0])
    if INPUT_ZERO_POINT not in sidecars:
        return FixedScale(scale, middle)
    return FixedScale(scale, int(np.asarray(sidecars[INPUT_ZERO_POINT]).reshape(-1)[0]))
