# SPDX-License-Identifier: Apache-2.0
"""Q4_0: 4-bit integers in groups of 32 with one scale.

layout   block of 32 weights, 18 bytes: [0:2] scale fp16, [2:18] codes: byte i = column i | column i + 16 << 4
value    scale * (code - 8)
range    -8 .. 7 scales; the scale may be negative, so the larger side can take the -8
bits     4.5 per weight
readers  llama.cpp, gguf-py, ik_llama.cpp, transformers (GGUF loader)
"""

from __future__ import annotations

import numpy as np

from lilliput.arrays import ByteArray
from lilliput.formats.bit_packing import half_bytes, pack_fields, read_half, unpack_fields
from lilliput.formats.levels import Levels
from lilliput.formats.number_format import Encoded, Scope
from lilliput.formats.scale_search import steps, two_sided_anchors
from lilliput.formats.single_scale import SingleScale


class Q4_0(SingleScale):
    """4-bit integers in groups of 32 with one scale."""

    name = "q4_0"
    scopes = (Scope(1, 32, ("scale",)),)
    block_size = 32
    block_bytes = 18
    half_places = (0,)
    levels = Levels.integers(-8, 7)
    anchors = two_sided_anchors(-8, 7, (*steps(0.55, 0.85, 7), *steps(0.8875, 1.1125, 19), 1.15, 1.2))

    def unpack_blocks(self, blocks: ByteArray) -> Encoded:
        """See the layout above."""
        return Encoded(unpack_fields(blocks[:, 2:], 4, 16), {"scale": read_half(blocks[:, :2])})

    def pack_blocks(self, encoded: Encoded) -> ByteArray:
        """See the layout above."""
        return np.concatenate([half_bytes(encoded.parameters["scale"]), pack_fields(encoded.codes, 4, 16)], axis=1)
