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
from lilliput.formats.bit_packing import pack_fields, unpack_fields
from lilliput.formats.codebook_vectors import ShiftedVectors, read_words, word_bytes
from lilliput.formats.codebooks import codebook
from lilliput.formats.levels import take
from lilliput.formats.number_format import Encoded, Parameters, Scope
from lilliput.formats.scale_search import steps


class IQ1_M(ShiftedVectors):
    """2048-entry ternary codebook of 8 columns; codes are index | shift << 11 (shift 1 = minus)."""

    name = "iq1_m"
    scopes = (Scope(1, 256, ("scale",)), Scope(1, 16, ("scale_code",)))
    block_bytes = 56
    group_size = 16
    anchors = steps(2.4, 0.9, 7)

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

    def pack_blocks(self, encoded: Encoded) -> ByteArray:
        """See the layout above."""
        codes, n = encoded.codes, len(encoded.codes)
        shifts = np.array([0, 3, 6, 9], dtype=np.int32)
        scale_codes = (encoded.parameters["scale_code"].astype(np.int32).reshape(n, 4, 4) << shifts).sum(axis=2)
        bits = np.ascontiguousarray(encoded.parameters["scale"], dtype=np.float16).view(np.uint16).astype(np.int32)
        nibbles = (bits >> np.array([0, 4, 8, 12], dtype=np.int32)) & 15
        parts = [
            (codes & 255).astype(np.uint8),
            pack_fields(codes >> 8, 4, 1),
            word_bytes(scale_codes | (nibbles << 12), "<u2"),
        ]
        return np.concatenate(parts, axis=1)

    def level(self, codes: Array, parameters: Parameters, columns: slice | None) -> Array:
        """Codebook entries plus each vector's shift."""
        xp = array_namespace(codes)
        entries = take(codebook(self.grid), codes & 2047)
        shift = 0.125 - 0.25 * xp.astype(codes >> 11, xp.float32)
        return xp.reshape(entries + shift[..., None], (codes.shape[0], -1))
