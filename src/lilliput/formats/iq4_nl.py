# SPDX-License-Identifier: Apache-2.0
"""IQ4_NL: 4-bit indices into a fixed non-linear table, groups of 32 with one scale.

layout   block of 32 weights, 18 bytes: [0:2] scale fp16, [2:18] codes: byte i = column i | column i + 16 << 4
value    scale * table[code]; table = -127 -104 -83 -65 -49 -35 -22 -10 1 13 25 38 53 69 89 113
range    -127 .. 113 scales; dense near zero, as weights are; the scale may be negative
bits     4.5 per weight
readers  llama.cpp, gguf-py, ik_llama.cpp
"""

from __future__ import annotations

import numpy as np

from lilliput.arrays import ByteArray
from lilliput.formats.bit_packing import half_bytes, pack_fields, read_half, unpack_fields
from lilliput.formats.codebooks import codebook
from lilliput.formats.levels import Levels
from lilliput.formats.number_format import Encoded, Scope
from lilliput.formats.scale_search import steps, two_sided_anchors
from lilliput.formats.single_scale import SingleScale


class IQ4_NL(SingleScale):
    """4-bit indices into a non-linear table, groups of 32 with one scale."""

    name = "iq4_nl"
    scopes = (Scope(1, 32, ("scale",)),)
    block_size = 32
    block_bytes = 18
    half_places = (0,)
    levels = Levels(codebook("iq4_nl"))
    anchors = two_sided_anchors(-127, 113, steps(0.55, 1.2, 14))

    def unpack_blocks(self, blocks: ByteArray) -> Encoded:
        """See the layout above."""
        return Encoded(unpack_fields(blocks[:, 2:], 4, 16), {"scale": read_half(blocks[:, :2])})

    def pack_blocks(self, encoded: Encoded) -> ByteArray:
        """See the layout above."""
        return np.concatenate([half_bytes(encoded.parameters["scale"]), pack_fields(encoded.codes, 4, 16)], axis=1)
