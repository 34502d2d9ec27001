# SPDX-License-Identifier: Apache-2.0
"""IQ3_S: 512-entry codebook of 4 columns with 4 signs, groups of 32.

layout   block of 256 weights, 110 bytes: [0:2] scale fp16, [2:66] low 8 bits of 64 codebook indices,
         [66:74] their ninth bits, lowest first, [74:106] one sign bit per column, lowest first,
         [106:110] eight 4-bit scale codes, low nibble first
value    scale * (2 scale_code + 1) * ±entry
range    1, 3, 5 … 15 steps, both signs
bits     3.4375 per weight
readers  llama.cpp, gguf-py, ik_llama.cpp
"""

from __future__ import annotations

import numpy as np

from lilliput.arrays import ByteArray
from lilliput.formats.bit_packing import half_bytes, pack_fields, read_half, unpack_fields
from lilliput.formats.codebook_vectors import SignedVectors
from lilliput.formats.number_format import Encoded, Parameters, Scope
from lilliput.formats.scale_search import steps


class IQ3_S(SignedVectors):
    """512-entry codebook of 4 columns; codes are index | sign mask << 9."""

    name = "iq3_s"
    scopes = (Scope(1, 256, ("scale",)), Scope(1, 32, ("scale_code",)))
    unit = 4
    block_bytes = 110
    half_places = (0,)
    group_size = 32
    grid = "iq3_s"
    index_bits = 9
    sign_bits = 4
    factor = 2.0
    anchors = steps(21, 9, 9)

    def unpack_blocks(self, blocks: ByteArray) -> Encoded:
        """See the layout above."""
        low = blocks[:, 2:66].astype(np.int32)
        high = unpack_fields(blocks[:, 66:74], 1, 1).astype(np.int32)
        mask = unpack_fields(blocks[:, 74:106], 4, 1).astype(np.int32)
        parameters: Parameters = {"scale": read_half(blocks[:, :2]), "scale_code": unpack_fields(blocks[:, 106:], 4, 1)}
        return Encoded(low | (high << 8) | (mask << 9), parameters)

    def pack_blocks(self, encoded: Encoded) -> ByteArray:
        """See the layout above."""
        codes = encoded.codes
        parts = [
            half_bytes(encoded.parameters["scale"]),
            (codes & 255).astype(np.uint8),
            pack_fields((codes >> 8) & 1, 1, 1),
            pack_fields(codes >> 9, 4, 1),
            pack_fields(encoded.parameters["scale_code"], 4, 1),
        ]
        return np.concatenate(parts, axis=1)
