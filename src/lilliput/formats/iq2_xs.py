# SPDX-License-Identifier: Apache-2.0
"""IQ2_XS: 512-entry codebook of 8 columns with 7 + 1 signs, groups of 16.

layout   block of 256 weights, 74 bytes: [0:2] scale fp16, [2:66] 32 words of 16 bits: codebook index | sign mask << 9,
         [66:74] sixteen 4-bit scale codes, low nibble first
value    scale * (scale_code + 1/2) / 4 * ±entry; the eighth sign makes the number of minus signs even
range    8, 25, 43 steps, both signs
bits     2.3125 per weight
readers  llama.cpp, gguf-py, ik_llama.cpp
"""

from __future__ import annotations

import numpy as np

from lilliput.arrays import ByteArray
from lilliput.formats.bit_packing import half_bytes, pack_fields, read_half, unpack_fields
from lilliput.formats.codebook_vectors import SignedVectors, read_words, word_bytes
from lilliput.formats.number_format import Encoded, Parameters, Scope
from lilliput.formats.scale_search import steps


class IQ2_XS(SignedVectors):
    """512-entry codebook of 8 columns; codes are index | sign mask << 9."""

    name = "iq2_xs"
    scopes = (Scope(1, 256, ("scale",)), Scope(1, 16, ("scale_code",)))
    unit = 8
    block_bytes = 74
    half_places = (0,)
    group_size = 16
    grid = "iq2_xs"
    index_bits = 9
    sign_bits = 7
    factor = 0.25
    anchors = steps(60, 26, 9)

    def unpack_blocks(self, blocks: ByteArray) -> Encoded:
        """See the layout above."""
        parameters: Parameters = {"scale": read_half(blocks[:, :2]), "scale_code": unpack_fields(blocks[:, 66:], 4, 1)}
        return Encoded(read_words(blocks[:, 2:66], "<u2"), parameters)

    def pack_blocks(self, encoded: Encoded) -> ByteArray:
        """See the layout above."""
        parts = [
            half_bytes(encoded.parameters["scale"]),
            word_bytes(encoded.codes, "<u2"),
            pack_fields(encoded.parameters["scale_code"], 4, 1),
        ]
        return np.concatenate(parts, axis=1)
