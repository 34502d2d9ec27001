# SPDX-License-Identifier: Apache-2.0
"""IQ3_XXS: 256-entry codebook of 4 columns, two entries under 7 + 1 signs, groups of 32.

layout   block of 256 weights, 98 bytes: [0:2] scale fp16, [2:66] 64 codebook indices,
         [66:98] per group of 32 columns a 32-bit word: four 7-bit sign masks, and the scale code in bits 28..31
value    scale * (scale_code + 1/2) / 2 * ±entry; the eighth sign makes the number of minus signs even
range    4, 12, 20 … 52, 62 steps, both signs
bits     3.0625 per weight
readers  llama.cpp, gguf-py, ik_llama.cpp
"""

from __future__ import annotations

import numpy as np

from lilliput.arrays import ByteArray
from lilliput.formats.bit_packing import half_bytes, read_half
from lilliput.formats.codebook_vectors import SignedVectors, mask_words
from lilliput.formats.number_format import Encoded, Parameters, Scope
from lilliput.formats.scale_search import steps


class IQ3_XXS(SignedVectors):
    """256-entry codebook of 4 columns; codes are first index | second index << 8 | sign mask << 16."""

    name = "iq3_xxs"
    scopes = (Scope(1, 256, ("scale",)), Scope(1, 32, ("scale_code",)))
    unit = 8
    block_bytes = 98
    half_places = (0,)
    group_size = 32
    grid = "iq3_xxs"
    index_bits = 8
    sign_bits = 7
    factor = 0.5
    anchors = steps(86, 38, 9)

    def unpack_blocks(self, blocks: ByteArray) -> Encoded:
        """See the layout above."""
        word = np.ascontiguousarray(blocks[:, 66:]).view("<u4")
        masks = (word[..., None] >> np.array([0, 7, 14, 21], dtype=np.uint32)) & np.uint32(127)
        pairs = blocks[:, 2:66].astype(np.int32).reshape(len(blocks), 32, 2)
        codes = pairs[..., 0] | (pairs[..., 1] << 8) | (masks.astype(np.int32).reshape(len(blocks), 32) << 16)
        parameters: Parameters = {"scale": read_half(blocks[:, :2]), "scale_code": (word >> 28).astype(np.uint8)}
        return Encoded(codes, parameters)

    def pack_blocks(self, encoded: Encoded) -> ByteArray:
        """See the layout above."""
        codes = encoded.codes
        indices = np.stack([codes & 255, (codes >> 8) & 255], axis=2).astype(np.uint8)
        parts = [
            half_bytes(encoded.parameters["scale"]),
            indices.reshape(len(codes), -1),
            mask_words(codes >> 16, encoded.parameters["scale_code"]).reshape(len(codes), -1),
        ]
        return np.concatenate(parts, axis=1)
