# SPDX-License-Identifier: Apache-2.0
"""Which weights the engine multiplies in integers, and what their inputs become.

A number format without a kernel of its own whose values are integers under scales (formats.integer_lines) runs on the
integer kernel. Its inputs are what was asked for, else the static ones whose range travels with the weight, else int8
with a zero point found when the token is there: per token where a row has one scale, else per token and group of the
weight. Zero points cost nothing and halve the loss: mean cosine of MiniLM in INT8_CHANNEL 0.9989 with them, 0.9974
without, 0.9993 with int8_g32, 0.9995 with float inputs (2026-11-22, 60 sentences).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lilliput import _native
from lilliput.activations import FixedScale, IntegerInputs, get_input_format
from lilliput.arrays import ByteArray
from lilliput.errors import FormatError, RuntimeModelError
from lilliput.formats import Parameters
from lilliput.formats.integer_lines import IntegerLines, has_integer_form, integer_lines
from lilliput.formats.scoped_number import ScopedNumber
from lilliput.records import QuantizedTensor

# Sidecars of a weight whose inputs are static: float32 [1]; int32 [1], absent where codes are symmetric.
INPUT_SCALE, INPUT_ZERO_POINT = "input_scale", "input_zero_point"
# Rows whose largest sums fit int32, see native/engine/integer_matrix.cpp.
MOST_COLUMNS = 1 << 15


@dataclass(frozen=True, slots=True)
class InputChoice:
    """What the inputs of one linear become. fixed: of static ones."""

    inputs: IntegerInputs
    fixed: FixedScale | None


@dataclass(frozen=True, slots=True)
class IntegerWeight:
    """codes: uint8 [rows, columns], one a byte."""

    codes: ByteArray
    lines: IntegerLines


def has_integers(tensor: QuantizedTensor) -> bool:
    """Whether a tensor is a matrix of integers that the engine has no other kernel for."""
    return (
        tensor.format.name not in _native.formats()
        and has_integer_form(tensor.format)
        and not set(tensor.sidecars) - {INPUT_SCALE, INPUT_ZERO_POINT}
    )


def input_choice(tensor: QuantizedTensor, activations: str) -> InputChoice | None:
    """What the inputs of a linear of this weight become; None for floats and for kernels of the format's own.

    activations: "engine", "f32" or the name of integer inputs. Raises RuntimeModelError for inputs that the weight
    cannot have.
    """
    if activations == "f32" or not has_integer_form(tensor.format) or tensor.columns > MOST_COLUMNS:
        return None
    if activations == "engine":
        if not has_integers(tensor):
            return None
        return stored_inputs(tensor) or InputChoice(_own_inputs(tensor), None)
    inputs = named_inputs(activations)
    if not inputs.is_static:
        return InputChoice(inputs, None)
    stored = stored_inputs(tensor)
    if stored is None or stored.inputs != inputs:
        raise RuntimeModelError(
            f"{tensor.name}: activations '{activations}' need the range of its inputs, and the file has none of that "
            "kind; quantize with calibration data, or choose int8_token"
        )
    return stored


def named_inputs(activations: str) -> IntegerInputs:
    """Integer inputs by name. Raises RuntimeModelError."""
    try:
        inputs = get_input_format(activations)
    except FormatError:
        inputs = None
    if not isinstance(inputs, IntegerInputs):
        raise RuntimeModelError(
            f"unknown activations '{activations}'; known: engine, f32, or integers: int8_token, int8_token_asym, "
            "int8_static, int8_g32 and their like"
        )
    return inputs


def stored_inputs(tensor: QuantizedTensor) -> InputChoice | None:
    """The static inputs that a weight brings along."""
    if INPUT_SCALE not in tensor.sidecars:
        return None
    inputs = IntegerInputs(8, None, is_symmetric=INPUT_ZERO_POINT not in tensor.sidecars, is_static=True)
    scale = float(np.asarray(tensor.sidecars[INPUT_SCALE], np.float32).reshape(-1)[0])
    zero_point = inputs.middle
    if not inputs.is_symmetric:
        zero_point = int(np.asarray(tensor.sidecars[INPUT_ZERO_POINT]).reshape(-1)[0])
    return InputChoice(inputs, FixedScale(scale, zero_point))


def integer_weight(tensor: QuantizedTensor) -> IntegerWeight:
    """A matrix of `has_integers` as codes and lines."""
    if isinstance(tensor.format, ScopedNumber) and tensor.format.code_bits == 8:
        codes = np.asarray(tensor.planes["codes"])  # where it lies
    else:
        codes = np.asarray(tensor.format.unpack(tensor.planes, tensor.columns).codes)
    return IntegerWeight(np.ascontiguousarray(codes, dtype=np.uint8), _lines(tensor))


def scales_of_a_row(tensor: QuantizedTensor) -> int:
    """Groups that a row of integers is cut into."""
    return int(_lines(tensor).scale.shape[1])


def _lines(tensor: QuantizedTensor) -> IntegerLines:
    parameters: Parameters = tensor.planes
    if not isinstance(tensor.format, ScopedNumber):
        parameters = tensor.format.unpack(tensor.planes, tensor.columns).parameters
    lines = integer_lines(tensor.format, parameters, tensor.rows, tensor.columns)
    assert lines is not None
    return lines


def _own_inputs(tensor: QuantizedTensor) -> IntegerInputs:
    groups = tensor.columns // tensor.format.block_size
    group = tensor.format.block_size if tensor.format.block_size > 1 and groups > 1 else None
    return IntegerInputs(8, group, is_symmetric=False, is_static=False)
