# SPDX-License-Identifier: Apache-2.0
"""Integer inputs as the native kernel is told of them."""

from __future__ import annotations

from lilliput import _native
from lilliput.activations.integer_inputs import FixedScale, IntegerInputs


def native_input(inputs: IntegerInputs, columns: int, fixed: FixedScale | None = None) -> _native.IntegerInput:
    """fixed: of static inputs. Raises FormatError where the columns do not divide into groups."""
    return _native.IntegerInput(
        is_symmetric=inputs.is_symmetric,
        bits=inputs.bits,
        groups=inputs.groups(columns),
        scale=fixed.scale if fixed else None,
        zero_point=fixed.zero_point if fixed else 0,
    )
