# SPDX-License-Identifier: Apache-2.0
"""F64: 64-bit IEEE floats.

layout   8 bytes, little endian
value    the number, converted to float32
range    double precision; out of float32's range becomes infinite
bits     64 per weight
readers  llama.cpp (as a container type), gguf-py
"""

from __future__ import annotations

import numpy as np

from lilliput.formats.plain_number import PlainNumber


class F64(PlainNumber):
    """64-bit IEEE floats."""

    name = "f64"
    block_bytes = 8
    dtype = np.dtype("<f8")
    can_encode = False
