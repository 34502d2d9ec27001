# SPDX-License-Identifier: Apache-2.0
"""Which step of a colour scale a value takes. Colours themselves are in page.css, one set for light, one for dark.

Both scales go from light to dark (in the dark, from dark to light) without turning back, so that they are read the
same with any kind of colour vision and in grey.
"""

from __future__ import annotations

from bisect import bisect_right

# KL in nats at one token.
KLD_LIMITS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
# Relative squared error of a tensor.
ERROR_LIMITS = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
# KL in nats that one tensor adds.
SENSITIVITY_LIMITS = (1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
# Bits per weight.
BIT_LIMITS = (2.0, 2.75, 3.25, 4.0, 4.75, 6.0, 8.0)
STEPS = len(KLD_LIMITS) + 1


def step(value: float, limits: tuple[float, ...]) -> int:
    """0 below the first limit, then 1, 2 … up to STEPS - 1."""
    return bisect_right(limits, value)
