# SPDX-License-Identifier: Apache-2.0
"""IQ1_M: 2048-entry ternary codebook of 8 columns, each shifted by ±1/8, groups of 16.

layout   block of 256 weights, 56 bytes: [0:32] low 8 bits of 32 codebook indices,
         [32:48] per vector 4 bits, low nibble first: high 3 bits of its index, shift in bit 3 (set = minus),
         [48:56] four 16-bit words: four 3-bit scale codes in bits 0..11 each; the fp16 scale is spread over the top
         4 bits of the words, lowest nibble in the first
value    scale * (2 scale_code + 1) * (entry ± 1/8); entries hold -1, 0, 1
range    -1.125 .. 1.125 steps
bits     1.75 per weight
readers  llama.cpp, gguf-py, ik_llama.cpp
"""

from __future__ import annotations

import numpy as np
from array_api_compat import array_namespace

from lilliput.arrays import Array, ByteArray
from lilliput.formats.bit_packing import unpack_fields
from lilliput.formats.codebook_vectors import CodebookVectors, read_words
from lilliput.formats.codebooks import codebook
from lilliput.formats.levels import take
from lilliput.formats.number_format import Encoded, Parameters, Scope


class IQ1_M(CodebookVectors):
    """2048-entry ternary codebook of 8 columns; codes are index | shift << 11 (shift 1 = minus)."""

    name = "iq1_m"
    scopes = (Scope(1, 256, ("scale",)), Scope(1, 16, ("scale_code",)))
    unit = 8
    block_bytes = 56
    group_size = 16
    grid = "iq1"
    index_bits = 11
    factor = 2.0

    def unpack_blocks(self, blocks: ByteArray) -> Encoded:
        """See the layout above."""
        codes = blocks[:, :32].astype(np.int32) | (unpack_fields(blocks[:, 32:48], 4, 1).astype(np.int32) << 8)
        word = read_words(blocks[:, 48:], "<u2")
        bits = ((word >> 12) << np.array([0, 4, 8, 12], dtype=np.int32)).sum(axis=1, keepdims=True)
        scale_code = (word[..., None] >> np.array([0, 3, 6, 9], dtype=np.int32)) & 7
        parameters: Parameters = {
            "scale": bits.astype(np.uint16).view(np.float16),
            "scale_code": scale_code.reshape(len(blocks), 16).astype(np.uint8),
        }
        return Encoded(codes, parameters)

    def level(self, codes: Array, parameters: Parameters, columns: slice | None) -> Array:
        """Codebook entries plus each vector's shift."""
        xp = array_namespace(codes)
        entries = take(codebook(self.grid), codes & 2047)
        shift = 0.125 - 0.25 * xp.astype(codes >> 11, xp.float32)
        return xp.reshape(entries + shift[..., None], (codes.shape[0], -1))
