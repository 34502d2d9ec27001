# SPDX-License-Identifier: Apache-2.0
"""I16: 16-bit signed integers.

layout   2 bytes, little endian
value    the number, converted to float32
range    -32768..32767
bits     16 per weight
readers  llama.cpp (as a container type), gguf-py
"""

from __future__ import annotations

import numpy as np

from lilliput.formats.plain_number import PlainNumber


class I16(PlainNumber):
    """16-bit signed integers."""

    name = "i16"
    block_bytes = 2
    dtype = np.dtype("<i2")
    can_encode = False
