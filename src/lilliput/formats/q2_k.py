# SPDX-License-Identifier: Apache-2.0
"""Q2_K: 2-bit integers in groups of 16 with 4-bit scales and minimums, in blocks of 256.

layout   block of 256 weights, 84 bytes:
         [0:16] group g: scale code | minimum code << 4
         [16:80] codes, two halves of 128 columns: byte i of a half = columns i, i + 32, i + 64, i + 96, lowest bits
         first
         [80:82] scale fp16, [82:84] minimum fp16
value    (scale * scale_code) * code - (minimum * minimum_code)
range    4 levels from at most 0 upward (with the non-negative minimum that encoders write)
bits     2.625 per weight
readers  llama.cpp, gguf-py, ik_llama.cpp, transformers (GGUF loader)
"""

from __future__ import annotations

import numpy as np

from lilliput.arrays import ByteArray
from lilliput.formats.bit_packing import half_bytes, pack_fields, read_half, unpack_fields
from lilliput.formats.number_format import Encoded, Parameters, Scope
from lilliput.formats.scale_search import LineCandidate, finest_first, steps
from lilliput.formats.scaled_scales_and_minimums import ScaledScalesAndMinimums


class Q2_K(ScaledScalesAndMinimums):
    """2-bit integers in groups of 16 with 4-bit scales and minimums."""

    name = "q2_k"
    scopes = (Scope(1, 256, ("scale", "minimum")), Scope(1, 16, ("scale_code", "minimum_code")))
    block_bytes = 84
    half_places = (80, 82)
    group_size = 16
    last_code = 3
    candidates = finest_first(
        [
            LineCandidate(stretch, low_cut, high_cut)
            for stretch in steps(0.75, 1.25, 7)
            for low_cut in (0.0, 0.12, 0.24)
            for high_cut in (0.0, 0.12, 0.24)
        ]
    )
    last_parameter_code = 15

    def unpack_blocks(self, blocks: ByteArray) -> Encoded:
        """See the layout above."""
        parameters: Parameters = {
            "scale": read_half(blocks[:, 80:82]),
            "minimum": read_half(blocks[:, 82:84]),
            "scale_code": blocks[:, :16] & np.uint8(15),
            "minimum_code": blocks[:, :16] >> 4,
        }
        return Encoded(unpack_fields(blocks[:, 16:80], 2, 32), parameters)

    def pack_blocks(self, encoded: Encoded) -> ByteArray:
        """See the layout above."""
        p = encoded.parameters
        group_codes = p["scale_code"].astype(np.uint8) | (p["minimum_code"].astype(np.uint8) << 4)
        codes = pack_fields(encoded.codes, 2, 32)
        return np.concatenate([group_codes, codes, half_bytes(p["scale"]), half_bytes(p["minimum"])], axis=1)
