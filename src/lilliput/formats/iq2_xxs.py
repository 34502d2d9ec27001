# SPDX-License-Identifier: Apache-2.0
"""IQ2_XXS: 256-entry codebook of 8 columns with 7 + 1 signs, groups of 32.

layout   block of 256 weights, 66 bytes: [0:2] scale fp16, then per group of 32 columns 8 bytes:
         four 8-bit codebook indices; a 32-bit word with four 7-bit sign masks, and the scale code in bits 28..31
value    scale * (scale_code + 1/2) / 4 * ±entry; the eighth sign makes the number of minus signs even
range    8, 25, 43 steps, both signs
bits     2.0625 per weight
readers  llama.cpp, gguf-py, ik_llama.cpp
"""

from __future__ import annotations

import numpy as np

from lilliput.arrays import ByteArray
from lilliput.formats.bit_packing import half_bytes, read_half
from lilliput.formats.codebook_vectors import SignedVectors, mask_words
from lilliput.formats.number_format import Encoded, Scope
from lilliput.formats.scale_search import steps


class IQ2_XXS(SignedVectors):
    """256-entry codebook of 8 columns; codes are index | sign mask << 8."""

    name = "iq2_xxs"
    scopes = (Scope(1, 256, ("scale",)), Scope(1, 32, ("scale_code",)))
    unit = 8
    block_bytes = 66
    half_places = (0,)
    group_size = 32
    grid = "iq2_xxs"
    index_bits = 8
    sign_bits = 7
    factor = 0.25
    anchors = steps(60, 26, 9)

    def unpack_blocks(self, blocks: ByteArray) -> Encoded:
        """See the layout above."""
        groups = np.ascontiguousarray(blocks[:, 2:]).reshape(len(blocks), 8, 8)
        word = np.ascontiguousarray(groups[..., 4:]).view("<u4")
        masks = (word >> np.array([0, 7, 14, 21], dtype=np.uint32)) & np.uint32(127)
        codes = groups[..., :4].astype(np.int32) | (masks.astype(np.int32) << 8)
        scale_code = (word[..., 0] >> 28).astype(np.uint8)
        return Encoded(codes.reshape(len(blocks), -1), {"scale": read_half(blocks[:, :2]), "scale_code": scale_code})

    def pack_blocks(self, encoded: Encoded) -> ByteArray:
        """See the layout above."""
        codes, n = encoded.codes, len(encoded.codes)
        indices = (codes & 255).astype(np.uint8).reshape(n, 8, 4)
        groups = np.concatenate([indices, mask_words(codes >> 8, encoded.parameters["scale_code"])], axis=2)
        return np.concatenate([half_bytes(encoded.parameters["scale"]), groups.reshape(n, -1)], axis=1)
