# SPDX-License-Identifier: Apache-2.0
"""Ranges of static inputs on their way from one container into another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lilliput.activations import IntegerInputs, StaticFormat
from lilliput.activations.stored_range import STORED_INPUTS, fixed_scale_of, inputs_beside, range_specs
from lilliput.checkpoints.model_source import ModelSource
from lilliput.containers.checkpoint_folder import CheckpointFolder
from lilliput.containers.container import Container, Contents
from lilliput.formats import NumberFormat
from lilliput.formats.integer_lines import has_integer_form
from lilliput.records import QuantizedTensor, TensorHeader


def with_carried_ranges(contents: Contents, source: ModelSource, container: Container) -> tuple[Contents, list[str]]:
    """Contents with the ranges that `source` has and the container takes, and a note where some are left behind.

    Containers that are told the largest input of a layer get it from there where no statistics were given.
    """
    static = {name: header.inputs for name, header in source.headers.items() if header.inputs is not None}
    if not static:
        return contents, []
    if not getattr(container, "holds_ranges", False):
        if getattr(container, "uses_ranges", False) and not contents.input_ranges:
            return replace(contents, input_ranges=_largest_inputs(source, static)), []
        return contents, [
            f"{len(static)} layers have static inputs, whose ranges have no place in {container.name}: its readers "
            "choose scales as inputs come, or keep them floats"
        ]
    # There symmetric inputs use all codes, which ours do with a zero point in the middle.
    if isinstance(container, CheckpointFolder) and _are_symmetric(source, static):
        static = dict.fromkeys(static, STORED_INPUTS["int8_static"])
    headers = tuple(_with_inputs(header, static.get(header.name)) for header in contents.headers)
    sidecars = {header.name: range_specs(header.inputs) for header in headers if header.inputs is not None}
    lost = len(static) - len(sidecars)
    notes = [f"{lost} layers lose the range of their static inputs with the format of their weights"] if lost else []
    return replace(contents, headers=headers, sidecars=sidecars), notes


def planned_sidecars(tensor: QuantizedTensor, contents: Contents) -> QuantizedTensor:
    """The tensor with the arrays beside it that its file is to hold."""
    wanted = contents.sidecars.get(tensor.name, {})
    return replace(tensor, sidecars={name: array for name, array in tensor.sidecars.items() if name in wanted})


def _with_inputs(header: TensorHeader, inputs: StaticFormat | None) -> TensorHeader:
    return header if inputs is None or not _has_inputs(header.format, inputs) else replace(header, inputs=inputs)


def _are_symmetric(source: ModelSource, static: Mapping[str, StaticFormat]) -> bool:
    """Whether the zero point of every layer's integers lies in the middle."""
    for name, inputs in static.items():
        sidecars = source.tensor(name).sidecars
        if not isinstance(inputs, IntegerInputs) or not sidecars:
            return False
        if fixed_scale_of(sidecars, inputs.middle).zero_point != inputs.middle:
            return False
    return True


def _has_inputs(number_format: NumberFormat, inputs: StaticFormat) -> bool:
    """Whether a weight of that format can have such inputs."""
    if isinstance(inputs, IntegerInputs):
        return has_integer_form(number_format)
    return isinstance(inputs_beside(number_format, range_specs(inputs)), type(inputs))


def _largest_inputs(source: ModelSource, static: Mapping[str, StaticFormat]) -> dict[str, float]:
    """Largest magnitude that static codes hold, by tensor."""
    found = {}
    for name, inputs in static.items():
        sidecars = source.tensor(name).sidecars
        if sidecars and isinstance(inputs, IntegerInputs):
            fixed = fixed_scale_of(sidecars, inputs.middle)
            found[name] = fixed.scale * max(fixed.zero_point, inputs.highest - fixed.zero_point)
    return found
