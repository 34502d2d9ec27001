# SPDX-License-Identifier: Apache-2.0
"""Ranges of static inputs in a compressed-tensors folder, as arrays beside our weights.

layout   `<module>.input_scale`, a float [1] or []; `<module>.input_zero_point`, a whole number of the same shape
value    scale * (code - zero_point), codes -128 … 127 of symmetric inputs too: ours are 128 more, and so is the zero
         point, which is why symmetric inputs come with one, 128
config   config_groups.<group>.input_activations: num_bits 8, type int or float, dynamic false, strategy tensor
source   vllm-project/compressed-tensors 0.20
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from lilliput.activations import FixedScale, FloatInputs, IntegerInputs, StaticFormat
from lilliput.activations.stored_range import STORED_INPUTS, range_arrays
from lilliput.arrays import Array
from lilliput.checkpoints.packed_weight import Files, check_array
from lilliput.errors import CheckpointError

# Codes of 0 here less those of the checkpoint.
SHIFT = 128
_ZERO_POINTS = {"I8": "<i1", "U8": "<u1", "I32": "<i4", "I64": "<i8"}


@dataclass(frozen=True, slots=True)
class StoredRange:
    """The static inputs of one weight. scale, zero_point: names of arrays."""

    inputs: StaticFormat
    scale: str
    zero_point: str | None

    def sidecars(self, files: Files) -> dict[str, Array]:
        """As they lie beside our weights. Raises CheckpointError for a scale that no codes could have."""
        scale = float(files[self.scale].float32(self.scale).reshape(-1)[0])
        if not (np.isfinite(scale) and scale > 0.0):
            raise CheckpointError(f"tensor '{self.scale}' is {scale}; a scale of inputs is above 0")
        return range_arrays(self.inputs, FixedScale(scale, self._zero_point(files)))

    def _zero_point(self, files: Files) -> int:
        if self.zero_point is None:
            return SHIFT
        file = files[self.zero_point]
        kind = _ZERO_POINTS[file.tensors[self.zero_point].dtype]
        code = int(file.data(self.zero_point).copy().view(kind)[0]) + SHIFT
        if not 0 <= code <= 255:
            raise CheckpointError(f"tensor '{self.zero_point}' is {code - SHIFT}; codes of inputs are -128 to 127")
        return code


def stored_ranges(described: Callable[[str], Mapping[str, object] | None], files: Files) -> dict[str, StoredRange]:
    """Weight name of the float checkpoint -> its static inputs.

    described: the `input_activations` of a module.  Raises CheckpointError for arrays of another shape.
    """
    found: dict[str, StoredRange] = {}
    for name in files:
        module, _, part = name.rpartition(".")
        fields = described(module) if part == "input_scale" else None
        inputs = None if fields is None else _inputs(fields)
        if inputs is None:
            continue
        zero_point = f"{module}.input_zero_point"
        has_zero_point = isinstance(inputs, IntegerInputs) and zero_point in files
        check_array(name, files, ("F32", "F16", "BF16"), (1,), ())
        if has_zero_point:
            check_array(zero_point, files, tuple(_ZERO_POINTS), (1,), ())
        found[f"{module}.weight"] = StoredRange(inputs, name, zero_point if has_zero_point else None)
    return found


def _inputs(fields: Mapping[str, object]) -> StaticFormat | None:
    """What one group's inputs are; None where they are not static, or of a kind that is not carried."""
    if fields.get("dynamic") is not False or fields.get("num_bits") != 8:
        return None
    if fields.get("strategy", "tensor") not in ("tensor", None):
        return None
    if fields.get("type", "int") == "int":
        return STORED_INPUTS["int8_static_asym"]
    return FloatInputs("e4m3", is_static=True)
