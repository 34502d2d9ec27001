# SPDX-License-Identifier: Apache-2.0
"""IQ2_S: 1024-entry codebook of 8 columns with 8 signs, groups of 16.

layout   block of 256 weights, 82 bytes: [0:2] scale fp16, [2:34] low 8 bits of 32 codebook indices,
         [34:66] 32 sign masks, [66:74] high 2 bits of the indices, lowest bits first,
         [74:82] sixteen 4-bit scale codes, low nibble first
value    scale * (scale_code + 1/2) / 4 * ±entry
range    8, 25, 43 steps, both signs
bits     2.5625 per weight
readers  llama.cpp, gguf-py, ik_llama.cpp
"""

from __future__ import annotations

import numpy as np

from lilliput.arrays import ByteArray
from lilliput.formats.bit_packing import half_bytes, pack_fields, read_half, unpack_fields
from lilliput.formats.codebook_vectors import SignedVectors
from lilliput.formats.number_format import Encoded, Parameters, Scope
from lilliput.formats.scale_search import steps


class IQ2_S(SignedVectors):
    """1024-entry codebook of 8 columns; codes are index | sign mask << 10."""

    name = "iq2_s"
    scopes = (Scope(1, 256, ("scale",)), Scope(1, 16, ("scale_code",)))
    unit = 8
    block_bytes = 82
    half_places = (0,)
    group_size = 16
    grid = "iq2_s"
    index_bits = 10
    sign_bits = 8
    factor = 0.25
    anchors = steps(60, 26, 9)

    def unpack_blocks(self, blocks: ByteArray) -> Encoded:
        """See the layout above."""
        low, mask = blocks[:, 2:34].astype(np.int32), blocks[:, 34:66].astype(np.int32)
        high = unpack_fields(blocks[:, 66:74], 2, 1).astype(np.int32)
        parameters: Parameters = {"scale": read_half(blocks[:, :2]), "scale_code": unpack_fields(blocks[:, 74:], 4, 1)}
        return Encoded(low | (high << 8) | (mask << 10), parameters)

    def pack_blocks(self, encoded: Encoded) -> ByteArray:
        """See the layout above."""
        codes = encoded.codes
        parts = [
            half_bytes(encoded.parameters["scale"]),
            (codes & 255).astype(np.uint8),
            (codes >> 10).astype(np.uint8),
            pack_fields((codes >> 8) & 3, 2, 1),
            pack_fields(encoded.parameters["scale_code"], 4, 1),
        ]
        return np.concatenate(parts, axis=1)
