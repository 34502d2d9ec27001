# SPDX-License-Identifier: Apache-2.0
"""Copy: plain floats to plain floats, rounded to the nearest even.

Problem: norms, biases and float presets (F16, BF16, F32) carry no codes to choose.
Idea: the format's own rounding is the whole method.
Cost: one pass. When not to use it: for any format with scales, which `searched_scales` serves.
"""

from __future__ import annotations

from lilliput.arrays import FloatArray
from lilliput.formats import NumberFormat, Planes
from lilliput.methods.method import Needs
from lilliput.records import LayerInputs


class Copy:
    """Plain float formats, and tensors that keep the format they have."""

    name = "copy"
    paper = "IEEE 754-2019, section 4.3.1 (roundTiesToEven)"
    needs: Needs = "nothing"
    baseline: str | None = None

    def supports(self, number_format: NumberFormat) -> bool:
        """Formats without parameters."""
        return number_format.can_encode and not number_format.scopes

    def quantize(self, number_format: NumberFormat, weight: FloatArray, inputs: LayerInputs, *, threads: int) -> Planes:
        """Cast. inputs and threads change nothing."""
        return number_format.pack(number_format.encode(weight))
