# SPDX-License-Identifier: Apache-2.0
"""I64: 64-bit signed integers.

layout   8 bytes, little endian
value    the number, converted to float32
range    64-bit integers; beyond 2^24 float32 rounds
bits     64 per weight
readers  llama.cpp (as a container type), gguf-py
"""

from __future__ import annotations

import numpy as np

from lilliput.formats.plain_number import PlainNumber


class I64(PlainNumber):
    """64-bit signed integers."""

    name = "i64"
    block_bytes = 8
    dtype = np.dtype("<i8")
    can_encode = False
