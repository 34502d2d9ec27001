# SPDX-License-Identifier: Apache-2.0
"""IQ4_XS: IQ4_NL's table in groups of 32 with 6-bit signed scales, in blocks of 256.

layout   block of 256 weights, 136 bytes: [0:2] scale fp16,
         [2:4] high 2 bits of the eight scale codes + 32, group 0 lowest; [4:8] their low 4 bits, low nibble first,
         [8:136] codes, eight runs of 32 columns: byte i of a run = column i | column i + 16 << 4
value    (scale * scale_code) * table[code]; scale_code -32..31; table as in IQ4_NL
range    -127 .. 113 group scales; a negative scale code mirrors the table
bits     4.25 per weight
readers  llama.cpp, gguf-py, ik_llama.cpp
"""

from __future__ import annotations

import numpy as np

from lilliput.arrays import ByteArray
from lilliput.formats.bit_packing import half_bytes, pack_fields, read_half, unpack_fields
from lilliput.formats.codebooks import codebook
from lilliput.formats.levels import Levels
from lilliput.formats.number_format import Encoded, Parameters, Scope
from lilliput.formats.scale_search import steps, two_sided_anchors
from lilliput.formats.scaled_scales import ScaledScales


class IQ4_XS(ScaledScales):
    """IQ4_NL's table in groups of 32 with 6-bit signed scales."""

    name = "iq4_xs"
    scopes = (Scope(1, 256, ("scale",)), Scope(1, 32, ("scale_code",)))
    block_bytes = 136
    half_places = (0,)
    group_size = 32
    levels = Levels(codebook("iq4_nl"))
    anchors = two_sided_anchors(-127, 113, steps(0.55, 1.2, 14))
    scale_codes = (-32, 31)

    def unpack_blocks(self, blocks: ByteArray) -> Encoded:
        """See the layout above."""
        six_bits = unpack_fields(blocks[:, 4:8], 4, 1) | (unpack_fields(blocks[:, 2:4], 2, 1) << 4)
        parameters: Parameters = {
            "scale": read_half(blocks[:, :2]),
            "scale_code": six_bits.astype(np.int8) - np.int8(32),
        }
        return Encoded(unpack_fields(blocks[:, 8:], 4, 16), parameters)

    def pack_blocks(self, encoded: Encoded) -> ByteArray:
        """See the layout above."""
        six_bits = (encoded.parameters["scale_code"].astype(np.int8) + np.int8(32)).astype(np.uint8)
        parts = [
            half_bytes(encoded.parameters["scale"]),
            pack_fields(six_bits >> 4, 2, 1),
            pack_fields(six_bits & 15, 4, 1),
            pack_fields(encoded.codes, 4, 16),
        ]
        return np.concatenate(parts, axis=1)
