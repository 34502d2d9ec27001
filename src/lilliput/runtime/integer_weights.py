# SPDX-License-Identifier: Apache-2.0
"""Which weights the engine multiplies in integers, and what their inputs become.

A number format without a kernel of its own whose values are integers under scales (formats.integer_lines) runs on the
integer kernel, and so does any other whose values are, where the range of static inputs travels with the weight: then
those are part of what the file means. Otherwise inputs are what was asked for, else int8 with
a zero point found when the token is there: per token where a row has one scale, else per token and group of the weight.
Zero points cost nothing and halve the loss: mean cosine of MiniLM in INT8_CHANNEL 0.9989 with them, 0.9974
without, 0.9993 with int8_g32, 0.9995 with float inputs (2026-11-22, 60 sentences).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from lilliput import _native
from lilliput.activations import FixedScale, IntegerInputs, get_input_format
from lilliput.activations.stored_range import INPUT_SCALE, INPUT_ZERO_POINT, fixed_scale_of, inputs_beside
from lilliput.arrays import ByteArray
from lilliput.errors import FormatError, RuntimeModelError
from lilliput.formats import NumberFormat, Parameters, get_format
from lilliput.formats.integer_grid import Fit, fit, moved
from lilliput.formats.integer_lines import MOST_COLUMNS, IntegerLines, has_integer_form, integer_lines
from lilliput.formats.scoped_number import ScopedNumber
from lilliput.records import QuantizedTensor

# What experts of integers may run as, the smallest first.
BLOCK_FORMS = ("q4_0", "q5_0", "q8_0")


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


@cache
def block_form(number_format: NumberFormat, columns: int) -> NumberFormat | None:
    """The smallest format of the engine's own that holds just the values of integers in groups; None for others.

    Experts run in it: they are multiplied in blocks, which have kernels of integers too.
    """
    if number_format.name in _native.formats() or not has_integer_form(number_format):
        return None
    held = (get_format(name) for name in BLOCK_FORMS)
    return next((target for target in held if fit(number_format, target, columns) is Fit.EXACT), None)


def in_blocks(tensor: QuantizedTensor) -> QuantizedTensor | None:
    """The same values in `block_form`."""
    target = block_form(tensor.format, tensor.columns)
    if target is None or set(tensor.sidecars) - {INPUT_SCALE, INPUT_ZERO_POINT}:
        return None
    return replace(tensor, format=target, planes=moved(tensor.planes, tensor.format, target, tensor.columns))


def input_choice(tensor: QuantizedTensor, activations: str) -> InputChoice | None:
    """What the inputs of a linear of this weight become; None for floats and for kernels of the format's own.

    activations: "engine", "file", "f32" or the name of integer inputs. Raises RuntimeModelError for inputs that the
    weight cannot have.
    """
    # First, for most files: `has_integer_form` would import all of numpy, for which a start would wait.
    if tensor.format.name in _native.formats() and not tensor.sidecars and activations in ("engine", "file", "f32"):
        return None
    if not has_integer_form(tensor.format) or tensor.columns > MOST_COLUMNS:
        return None
    if activations in ("engine", "file") and (stored := stored_inputs(tensor)) is not None:
        return stored
    if activations in ("f32", "file") or (activations == "engine" and not has_integers(tensor)):
        return None
    if activations == "engine":
        return InputChoice(_own_inputs(tensor), None)
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


def expert_inputs(
    stacks: tuple[QuantizedTensor, QuantizedTensor, QuantizedTensor], activations: str
) -> tuple[InputChoice, InputChoice] | None:
    """What the inputs of a mixture's gate and up become, and those of down; None where these run otherwise.

    Stacks that blocks hold as they are run in those (`block_form`). Raises as `input_choice` does.
    """
    if not all(has_integers(stack) and block_form(stack.format, stack.columns) is None for stack in stacks):
        return None
    gate, up, down = (input_choice(stack, activations) for stack in stacks)
    if gate is None or down is None or up != gate or scales_of_a_row(stacks[0]) != scales_of_a_row(stacks[1]):
        return None
    return gate, down


def named_inputs(activations: str) -> IntegerInputs:
    """Integer inputs by name. Raises RuntimeModelError."""
    try:
        inputs = get_input_format(activations)
    except FormatError:
        inputs = None
    if not isinstance(inputs, IntegerInputs):
        raise RuntimeModelError(
            f"unknown activations '{activations}'; known: engine, file, f32, or integers: int8_token, int8_token_asym, "
            "int8_static, int8_g32 and their like"
        )
    return inputs


def stored_inputs(tensor: QuantizedTensor) -> InputChoice | None:
    """The static inputs that a weight brings along."""
    inputs = inputs_beside(tensor.format, tensor.sidecars)
    if not isinstance(inputs, IntegerInputs):
        return None
    fixed = fixed_scale_of(tensor.sidecars, inputs.middle)
    if not (np.isfinite(fixed.scale) and fixed.scale > 0.0 and 0 <= fixed.zero_point <= inputs.highest):
        raise RuntimeModelError(
            f"{tensor.name}: its inputs have scale {fixed.scale} and zero point {fixed.zero_point} in the file; a "
            f"scale is above 0 and a zero point 0 to {inputs.highest}; the file is damaged, make it again"
        )
    return InputChoice(inputs, fixed)


def integer_weight(tensor: QuantizedTensor) -> IntegerWeight:
    """A matrix of `has_integers` as codes and lines."""
    if isinstance(tensor.format, ScopedNumber) and tensor.format.code_bits == 8:
        codes = np.asarray(tensor.planes["codes"])  # where it lies
    else:
        codes = np.asarray(tensor.format.unpack(tensor.planes, tensor.columns).codes)
    codes = np.ascontiguousarray(codes, dtype=np.uint8).reshape(tensor.rows, tensor.columns)
    return IntegerWeight(codes, _lines(tensor))


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
