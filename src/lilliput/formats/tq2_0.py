# SPDX-License-Identifier: Apache-2.0
"""TQ2_0: ternary weights, four to a byte, one scale per 256.

layout   block of 256 weights, 66 bytes: [0:64] codes, two halves of 128 columns: byte i of a half = columns i, i + 32,
         i + 64, i + 96, lowest bits first; [64:66] scale fp16
value    scale * (code - 1)
range    -1, 0, 1 scales; code 3, which no encoder writes, decodes to 2 scales
bits     2.0625 per weight
readers  llama.cpp, gguf-py
"""

from __future__ import annotations

from lilliput.arrays import ByteArray
from lilliput.formats.bit_packing import read_half, unpack_fields
from lilliput.formats.levels import Levels
from lilliput.formats.number_format import Encoded, Scope
from lilliput.formats.single_scale import SingleScale


class TQ2_0(SingleScale):
    """Ternary weights, four to a byte."""

    name = "tq2_0"
    scopes = (Scope(1, 256, ("scale",)),)
    block_size = 256
    block_bytes = 66
    levels = Levels.integers(-1, 2)
    can_encode = False

    def unpack_blocks(self, blocks: ByteArray) -> Encoded:
        """See the layout above."""
        return Encoded(unpack_fields(blocks[:, :64], 2, 32), {"scale": read_half(blocks[:, 64:])})
