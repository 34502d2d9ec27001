# SPDX-License-Identifier: Apache-2.0
"""Q4_1: 4-bit integers in groups of 32 with a scale and a minimum.

layout   block of 32 weights, 20 bytes: [0:2] scale fp16, [2:4] minimum fp16,
         [4:20] codes: byte i = column i | column i + 16 << 4
value    scale * code + minimum
range    minimum .. minimum + 15 scales
bits     5 per weight
readers  llama.cpp, gguf-py, ik_llama.cpp, transformers (GGUF loader)
"""

from __future__ import annotations

import numpy as np

from lilliput.arrays import ByteArray
from lilliput.formats.bit_packing import half_bytes, pack_fields, read_half, unpack_fields
from lilliput.formats.number_format import Encoded, Parameters, Scope
from lilliput.formats.scale_and_minimum import ScaleAndMinimum
from lilliput.formats.scale_search import LineCandidate, finest_first, steps


class Q4_1(ScaleAndMinimum):
    """4-bit integers in groups of 32 with a scale and a minimum."""

    name = "q4_1"
    scopes = (Scope(1, 32, ("scale", "minimum")),)
    block_size = 32
    block_bytes = 20
    half_places = (0, 2)
    last_code = 15
    # Dense where the range just fits, as llama.cpp's search is; sparse beyond, where clipping pays.
    candidates = finest_first(
        [LineCandidate(stretch) for stretch in (*steps(0.7, 0.9, 6), *steps(0.92, 1.08, 49), *steps(1.1, 1.3, 6))]
    )

    def unpack_blocks(self, blocks: ByteArray) -> Encoded:
        """See the layout above."""
        parameters: Parameters = {"scale": read_half(blocks[:, :2]), "minimum": read_half(blocks[:, 2:4])}
        return Encoded(unpack_fields(blocks[:, 4:], 4, 16), parameters)

    def pack_blocks(self, encoded: Encoded) -> ByteArray:
        """See the layout above."""
        halves = [half_bytes(encoded.parameters[name]) for name in ("scale", "minimum")]
        return np.concatenate([*halves, pack_fields(encoded.codes, 4, 16)], axis=1)
