# SPDX-License-Identifier: Apache-2.0
"""Q1_0: one sign bit per weight, one scale per 128.

layout   block of 128 weights, 18 bytes: [0:2] scale fp16, [2:18] one bit per column, lowest bit first
value    scale if the bit is set, else -scale
range    -1 and 1 scales; no zero
bits     1.125 per weight
readers  llama.cpp (gguf-py knows its size but cannot decode it)
"""

from __future__ import annotations

import numpy as np

from lilliput.arrays import ByteArray
from lilliput.formats.bit_packing import read_half, unpack_fields
from lilliput.formats.levels import Levels
from lilliput.formats.number_format import Encoded, Scope
from lilliput.formats.single_scale import SingleScale


class Q1_0(SingleScale):
    """One sign bit per weight."""

    name = "q1_0"
    scopes = (Scope(1, 128, ("scale",)),)
    block_size = 128
    block_bytes = 18
    levels = Levels(np.array([-1, 1], dtype=np.float32))
    can_encode = False

    def unpack_blocks(self, blocks: ByteArray) -> Encoded:
        """See the layout above."""
        return Encoded(unpack_fields(blocks[:, 2:], 1, 1), {"scale": read_half(blocks[:, :2])})
