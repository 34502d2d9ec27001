# SPDX-License-Identifier: Apache-2.0
"""Q4_K: 4-bit integers in groups of 32 with 6-bit scales and minimums, in blocks of 256.

layout   block of 256 weights, 144 bytes: [0:2] scale fp16, [2:4] minimum fp16,
         [4:16] eight 6-bit scale codes and eight 6-bit minimum codes (see `unpack_six_bit_pairs`),
         [16:144] codes, four runs of 64 columns: byte i of a run = column i | column i + 32 << 4
value    (scale * scale_code) * code - (minimum * minimum_code)
range    16 levels from at most 0 upward (with the non-negative minimum that encoders write)
bits     4.5 per weight
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


class Q4_K(ScaledScalesAndMinimums):
    """4-bit integers in groups of 32 with 6-bit scales and minimums."""

    name = "q4_k"
    scopes = (Scope(1, 256, ("scale", "minimum")), Scope(1, 32, ("scale_code", "minimum_code")))
    block_bytes = 144
    half_places = (0, 2)
    group_size = 32
    last_code = 15
    # Dense where the range just fits, as llama.cpp's search is; sparse beyond, where clipping pays.
    candidates = finest_first(
        [LineCandidate(stretch) for stretch in (*steps(0.7, 0.9, 6), *steps(0.92, 1.08, 25), *steps(1.1, 1.3, 6))]
    )
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
        return Encoded(unpack_fields(blocks[:, 16:], 4, 32), parameters)

    def pack_blocks(self, encoded: Encoded) -> ByteArray:
        """See the layout above."""
        p = encoded.parameters
        group_codes = pack_six_bit_pairs(p["scale_code"], p["minimum_code"])
        codes = pack_fields(encoded.codes, 4, 32)
        return np.concatenate([half_bytes(p["scale"]), half_bytes(p["minimum"]), group_codes, codes], axis=1)
