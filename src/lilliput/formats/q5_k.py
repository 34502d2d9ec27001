# SPDX-License-Identifier: Apache-2.0
"""Q5_K: 5-bit integers in groups of 32 with 6-bit scales and minimums, in blocks of 256.

layout   block of 256 weights, 176 bytes: [0:2] scale fp16, [2:4] minimum fp16,
         [4:16] eight 6-bit scale codes and eight 6-bit minimum codes (see `unpack_six_bit_pairs`),
         [16:48] fifth bits: bit g of byte i = column 32 g + i,
         [48:176] low 4 bits, four runs of 64 columns: byte i of a run = column i | column i + 32 << 4
value    (scale * scale_code) * code - (minimum * minimum_code)
range    32 levels from at most 0 upward (with the non-negative minimum that encoders write)
bits     5.5 per weight
readers  llama.cpp, gguf-py, ik_llama.cpp, transformers (GGUF loader)
"""

from __future__ import annotations

import numpy as np

from lilliput.arrays import ByteArray
from lilliput.formats.bit_packing import half_bytes, pack_fields, read_half, unpack_fields
from lilliput.formats.number_format import Encoded, Parameters, Scope
from lilliput.formats.scale_search import LineCandidate, finest_first, steps
from lilliput.formats.scaled_scales_and_minimums import (
    ScaledScalesAndMinimums,
    pack_six_bit_pairs,
    unpack_six_bit_pairs,
)


class Q5_K(ScaledScalesAndMinimums):
    """5-bit integers in groups of 32 with 6-bit scales and minimums."""

    name = "q5_k"
    scopes = (Scope(1, 256, ("scale", "minimum")), Scope(1, 32, ("scale_code", "minimum_code")))
    block_bytes = 176
    half_places = (0, 2)
    group_size = 32
    last_code = 31
    candidates = finest_first([LineCandidate(stretch) for stretch in steps(0.88, 1.12, 17)])
    last_parameter_code = 63

    def unpack_blocks(self, blocks: ByteArray) -> Encoded:
        """See the layout above."""
        scale_code, minimum_code = unpack_six_bit_pairs(blocks[:, 4:16])
        parameters: Parameters = {
            "scale": read_half(blocks[:, 0:2]),
            "minimum": read_half(blocks[:, 2:4]),
            "scale_code": scale_code,
            "minimum_code": minimum_code,
        }
        codes = unpack_fields(blocks[:, 48:], 4, 32) | (unpack_fields(blocks[:, 16:48], 1, 32) << 4)
        return Encoded(codes, parameters)

    def pack_blocks(self, encoded: Encoded) -> ByteArray:
        """See the layout above."""
        p = encoded.parameters
        codes = encoded.codes.astype(np.uint8)
        group_codes = pack_six_bit_pairs(p["scale_code"], p["minimum_code"])
        bits = [pack_fields(codes >> 4, 1, 32), pack_fields(codes & 15, 4, 32)]
        return np.concatenate([half_bytes(p["scale"]), half_bytes(p["minimum"]), group_codes, *bits], axis=1)
