# SPDX-License-Identifier: Apache-2.0
"""The largest inputs of each layer, for runtimes that quantize them to a scale chosen beforehand."""

from __future__ import annotations

import math

from lilliput.records import Statistics


def input_ranges(statistics: Statistics | None) -> dict[str, float]:
    """Tensor name -> largest magnitude of what is multiplied with it; empty where nobody measured any.

    Tensors are left out whose inputs were never seen, or come from a file that keeps no magnitudes (llama.cpp's).
    """
    if statistics is None:
        return {}
    found = {name: float(inputs.absmax.max(initial=0.0)) for name, inputs in statistics.inputs.items()}
    return {name: largest for name, largest in found.items() if math.isfinite(largest) and largest > 0.0}
