# SPDX-License-Identifier: Apache-2.0
"""Q6_K: 6-bit integers in groups of 16 with 8-bit signed scales, in blocks of 256.

layout   block of 256 weights, 210 bytes:
         [0:128] low 4 bits, two halves of 128 columns: byte i of a half = column i | column i + 64 << 4
         [128:192] high 2 bits, two halves: byte i of a half = columns i, i + 32, i + 64, i + 96, lowest bits first
         [192:208] scale codes int8, [208:210] scale fp16
value    (scale * scale_code) * (code - 32); scale_code -128..127
range    -32 .. 31 group scales; a negative scale code gives the larger side the -32
bits     6.5625 per weight
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


class Q6_K(ScaledScales):
    """6-bit integers in groups of 16 with 8-bit signed scales."""

    name = "q6_k"
    scopes = (Scope(1, 256, ("scale",)), Scope(1, 16, ("scale_code",)))
    block_bytes = 210
    half_places = (208,)
    group_size = 16
    levels = Levels.integers(-32, 31)
    anchors = two_sided_anchors(-32, 31, steps(0.55, 1.2, 14))
    scale_codes = (-128, 127)

    def unpack_blocks(self, blocks: ByteArray) -> Encoded:
        """See the layout above."""
        codes = unpack_fields(blocks[:, :128], 4, 64) | (unpack_fields(blocks[:, 128:192], 2, 32) << 4)
        scale_code = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8)
        return Encoded(codes, {"scale": read_half(blocks[:, 208:]), "scale_code": scale_code})

    def pack_blocks(self, encoded: Encoded) -> ByteArray:
        """See the layout above."""
        codes = encoded.codes.astype(np.uint8)
        scale_code = np.ascontiguousarray(encoded.parameters["scale_code"], dtype=np.int8).view(np.uint8)
        bits = [pack_fields(codes & 15, 4, 64), pack_fields(codes >> 4, 2, 32)]
        return np.concatenate([*bits, scale_code, half_bytes(encoded.parameters["scale"])], axis=1)
