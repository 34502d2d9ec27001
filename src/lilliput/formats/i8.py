# SPDX-License-Identifier: Apache-2.0
"""I8: 8-bit signed integers.

layout   1 bytes, little endian
value    the number, converted to float32
range    -128..127
bits     8 per weight
readers  llama.cpp (as a container type), gguf-py
"""

from __future__ import annotations

import numpy as np

from lilliput.formats.plain_number import PlainNumber


class I8(PlainNumber):
    """8-bit signed integers."""

    name = "i8"
    block_bytes = 1
    dtype = np.dtype("<i1")
    can_encode = False
