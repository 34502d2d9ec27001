# SPDX-License-Identifier: Apache-2.0
"""IQ1_S: 2048-entry ternary codebook of 8 columns, shifted by ±1/8, groups of 32.

layout   block of 256 weights, 50 bytes: [0:2] scale fp16, [2:34] low 8 bits of 32 codebook indices,
         [34:50] per group a 16-bit word: high 3 bits of its four indices in bits 0..11, scale code in bits 12..14,
         shift in bit 15 (set = minus)
value    scale * (2 scale_code + 1) * (entry ± 1/8); entries hold -1, 0, 1
range    -1.125 .. 1.125 steps
bits     1.5625 per weight
readers  llama.cpp, gguf-py, ik_llama.cpp
"""

from __future__ import annotations

import numpy as np
from array_api_compat import array_namespace

from lilliput.arrays import Array, ByteArray
from lilliput.formats.bit_packing import half_bytes, read_half
from lilliput.formats.codebook_vectors import ShiftedVectors, read_words, word_bytes
from lilliput.formats.codebooks import codebook
from lilliput.formats.levels import take
from lilliput.formats.number_format import Encoded, Parameters, Scope, expand
from lilliput.formats.scale_search import steps


class IQ1_S(ShiftedVectors):
    """2048-entry ternary codebook of 8 columns; codes are the index, "shift" is 0 (plus) or 1 per group."""

    name = "iq1_s"
    scopes = (Scope(1, 256, ("scale",)), Scope(1, 32, ("scale_code", "shift")))
    block_bytes = 50
    group_size = 32
    group_choice = "shift"
    anchors = steps(2.4, 0.9, 7)

    def unpack_blocks(self, blocks: ByteArray) -> Encoded:
        """See the layout above."""
        word = read_words(blocks[:, 34:], "<u2")
        high = (word[..., None] >> np.array([0, 3, 6, 9], dtype=np.int32)) & 7
        codes = blocks[:, 2:34].astype(np.int32) | (high.reshape(len(blocks), 32) << 8)
        parameters: Parameters = {
            "scale": read_half(blocks[:, :2]),
            "scale_code": ((word >> 12) & 7).astype(np.uint8),
            "shift": (word >> 15).astype(np.uint8),
        }
        return Encoded(codes, parameters)

    def pack_blocks(self, encoded: Encoded) -> ByteArray:
        """See the layout above."""
        codes, n = encoded.codes, len(encoded.codes)
        p = encoded.parameters
        high = ((codes >> 8).reshape(n, 8, 4) << np.array([0, 3, 6, 9], dtype=np.int32)).sum(axis=2)
        word = high | (p["scale_code"].astype(np.int32) << 12) | (p["shift"].astype(np.int32) << 15)
        parts = [half_bytes(p["scale"]), (codes & 255).astype(np.uint8), word_bytes(word, "<u2")]
        return np.concatenate(parts, axis=1)

    def level(self, codes: Array, parameters: Parameters, columns: slice | None) -> Array:
        """Codebook entries plus the group's shift."""
        xp = array_namespace(codes)
        entries = xp.reshape(take(codebook(self.grid), codes), (codes.shape[0], -1))
        shift = 0.125 - 0.25 * xp.astype(parameters["shift"], xp.float32)
        return entries + expand(shift, self.group_size, columns)
