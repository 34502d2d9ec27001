# SPDX-License-Identifier: Apache-2.0
"""Q3_K: 3-bit integers in groups of 16 with 6-bit signed scales, in blocks of 256.

layout   block of 256 weights, 110 bytes:
         [0:32] third bits: bit k of byte i = column 32 k + i
         [32:96] low 2 bits, two halves of 128 columns: byte i of a half = columns i, i + 32, i + 64, i + 96
         [96:108] scale codes + 32: low 4 bits of groups g and g + 8 in byte 96 + g (low nibble first); high 2 bits of
         groups g, g + 4, g + 8, g + 12 in byte 104 + g, lowest bits first
         [108:110] scale fp16
value    (scale * scale_code) * (code - 4); scale_code -32..31
range    -4 .. 3 group scales; a negative scale code gives the larger side the -4
bits     3.4375 per weight
readers  llama.cpp, gguf-py, ik_llama.cpp, transformers (GGUF loader)
"""

from __future__ import annotations

import numpy as np

from lilliput.arrays import ByteArray
from lilliput.formats.bit_packing import half_bytes, pack_fields, read_half, unpack_fields
from lilliput.formats.levels import Levels
from lilliput.formats.number_format import Encoded, Scope
from lilliput.formats.scale_search import steps, two_sided_anchors
from lilliput.formats.scaled_scales import ScaledScales


class Q3_K(ScaledScales):
    """3-bit integers in groups of 16 with 6-bit signed scales."""

    name = "q3_k"
    scopes = (Scope(1, 256, ("scale",)), Scope(1, 16, ("scale_code",)))
    block_bytes = 110
    half_places = (108,)
    group_size = 16
    levels = Levels.integers(-4, 3)
    anchors = two_sided_anchors(-4, 3, steps(0.55, 1.2, 14))
    scale_codes = (-32, 31)
    tries_every_scale_code = True

    def unpack_blocks(self, blocks: ByteArray) -> Encoded:
        """See the layout above."""
        codes = unpack_fields(blocks[:, 32:96], 2, 32) | (unpack_fields(blocks[:, :32], 1, 32) << 2)
        six_bits = unpack_fields(blocks[:, 96:104], 4, 8) | (unpack_fields(blocks[:, 104:108], 2, 4) << 4)
        return Encoded(
            codes, {"scale": read_half(blocks[:, 108:]), "scale_code": six_bits.astype(np.int8) - np.int8(32)}
        )

    def pack_blocks(self, encoded: Encoded) -> ByteArray:
        """See the layout above."""
        codes = encoded.codes.astype(np.uint8)
        six_bits = (encoded.parameters["scale_code"].astype(np.int8) + np.int8(32)).astype(np.uint8)
        parts = [
            pack_fields(codes >> 2, 1, 32),
            pack_fields(codes & 3, 2, 32),
            pack_fields(six_bits & 15, 4, 8),
            pack_fields(six_bits >> 4, 2, 4),
            half_bytes(encoded.parameters["scale"]),
        ]
        return np.concatenate(parts, axis=1)
