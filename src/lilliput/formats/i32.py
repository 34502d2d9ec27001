# SPDX-License-Identifier: Apache-2.0
"""I32: 32-bit signed integers.

layout   4 bytes, little endian
value    the number, converted to float32
range    32-bit integers; beyond 2^24 float32 rounds
bits     32 per weight
readers  llama.cpp (as a container type), gguf-py
"""

from __future__ import annotations

import numpy as np

from lilliput.formats.plain_number import PlainNumber


class I32(PlainNumber):
    """32-bit signed integers."""

    name = "i32"
    block_bytes = 4
    dtype = np.dtype("<i4")
    can_encode = False
