# SPDX-License-Identifier: Apache-2.0
"""Q5_1: 5-bit integers in groups of 32 with a scale and a minimum.

layout   block of 32 weights, 24 bytes: [0:2] scale fp16, [2:4] minimum fp16,
         [4:8] fifth bits: bit j of the little-endian word = column j,
         [8:24] low 4 bits: byte i = column i | column i + 16 << 4
value    scale * code + minimum
range    minimum .. minimum + 31 scales
bits     6 per weight
readers  llama.cpp, gguf-py, ik_llama.cpp, transformers (GGUF loader)
"""

from __future__ import annotations

import numpy as np

from lilliput.arrays import ByteArray
from lilliput.formats.bit_packing import half_bytes, pack_fields, read_half, unpack_fields
from lilliput.formats.number_format import Encoded, Scope
from lilliput.formats.scale_and_minimum import ScaleAndMinimum
from lilliput.formats.scale_search import LineCandidate, finest_first, steps


class Q5_1(ScaleAndMinimum):
    """5-bit integers in groups of 32 with a scale and a minimum."""

    name = "q5_1"
    scopes = (Scope(1, 32, ("scale", "minimum")),)
    block_size = 32
    block_bytes = 24
    half_places = (0, 2)
    last_code = 31
    candidates = finest_first([LineCandidate(stretch) for stretch in steps(0.88, 1.12, 33)])

    def unpack_blocks(self, blocks: ByteArray) -> Encoded:
        """See the layout above."""
        codes = unpack_fields(blocks[:, 8:], 4, 16) | (unpack_fields(blocks[:, 4:8], 1, 1) << 4)
        return Encoded(codes, {"scale": read_half(blocks[:, :2]), "minimum": read_half(blocks[:, 2:4])})

    def pack_blocks(self, encoded: Encoded) -> ByteArray:
        """See the layout above."""
        codes = encoded.codes.astype(np.uint8)
        halves = [half_bytes(encoded.parameters[name]) for name in ("scale", "minimum")]
        return np.concatenate([*halves, pack_fields(codes >> 4, 1, 1), pack_fields(codes & 15, 4, 16)], axis=1)
