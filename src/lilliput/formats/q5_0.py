# SPDX-License-Identifier: Apache-2.0
"""Q5_0: 5-bit integers in groups of 32 with one scale.

layout   block of 32 weights, 22 bytes: [0:2] scale fp16, [2:6] fifth bits: bit j of the little-endian word = column j,
         [6:22] low 4 bits: byte i = column i | column i + 16 << 4
value    scale * (code - 16)
range    -16 .. 15 scales; the scale may be negative, so the larger side can take the -16
bits     5.5 per weight
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


class Q5_0(SingleScale):
    """5-bit integers in groups of 32 with one scale."""

    name = "q5_0"
    scopes = (Scope(1, 32, ("scale",)),)
    block_size = 32
    block_bytes = 22
    half_places = (0,)
    levels = Levels.integers(-16, 15)
    anchors = two_sided_anchors(-16, 15, (*steps(0.55, 0.85, 7), *steps(0.8875, 1.1125, 19), 1.15, 1.2))

    def unpack_blocks(self, blocks: ByteArray) -> Encoded:
        """See the layout above."""
        codes = unpack_fields(blocks[:, 6:], 4, 16) | (unpack_fields(blocks[:, 2:6], 1, 1) << 4)
        return Encoded(codes, {"scale": read_half(blocks[:, :2])})

    def pack_blocks(self, encoded: Encoded) -> ByteArray:
        """See the layout above."""
        codes = encoded.codes.astype(np.uint8)
        scale = half_bytes(encoded.parameters["scale"])
        return np.concatenate([scale, pack_fields(codes >> 4, 1, 1), pack_fields(codes & 15, 4, 16)], axis=1)
