# SPDX-License-Identifier: Apache-2.0
"""TQ1_0: ternary weights, five to a byte, one scale per 256.

layout   block of 256 weights, 54 bytes:
         [0:32] five layers of 32 columns (columns 0..159), [32:48] five layers of 16 (160..239),
         [48:52] four layers of 4 (240..255), [52:54] scale fp16.
         A byte holds its digits as the fraction b / 256 in base 3: digit k = ((b * 3^k mod 256) * 3) >> 8
value    scale * (digit - 1)
range    -1, 0, 1 scales
bits     1.6875 per weight
readers  llama.cpp, gguf-py
"""

from __future__ import annotations

import numpy as np

from lilliput.arrays import ByteArray
from lilliput.formats.bit_packing import half_bytes, read_half
from lilliput.formats.levels import Levels
from lilliput.formats.number_format import Encoded, Scope
from lilliput.formats.single_scale import TERNARY_ANCHORS, SingleScale

# Byte ranges and digits per byte.
RUNS = ((0, 32, 5), (32, 48, 5), (48, 52, 4))


class TQ1_0(SingleScale):
    """Ternary weights, five to a byte."""

    name = "tq1_0"
    scopes = (Scope(1, 256, ("scale",)),)
    block_size = 256
    block_bytes = 54
    levels = Levels.integers(-1, 1)
    anchors = TERNARY_ANCHORS

    def unpack_blocks(self, blocks: ByteArray) -> Encoded:
        """See the layout above."""
        runs = []
        for start, end, digits in RUNS:
            powers = np.array([1, 3, 9, 27, 81][:digits], dtype=np.uint8).reshape(1, -1, 1)
            shifted = blocks[:, None, start:end] * powers  # wraps modulo 256, as the layout says
            runs.append(((shifted.astype(np.uint16) * 3) >> 8).astype(np.uint8).reshape(len(blocks), -1))
        return Encoded(np.concatenate(runs, axis=1), {"scale": read_half(blocks[:, 52:])})

    def pack_blocks(self, encoded: Encoded) -> ByteArray:
        """See the layout above: the fraction is rounded up, so that the multiplications give the digits back."""
        codes, column, parts = encoded.codes.astype(np.int32), 0, []
        for start, end, digits in RUNS:
            layers = codes[:, column : column + digits * (end - start)].reshape(len(codes), digits, -1)
            # Missing digits of a four-digit byte count as zero.
            number = (layers * np.array([81, 27, 9, 3, 1][:digits], dtype=np.int32).reshape(1, -1, 1)).sum(axis=1)
            parts.append(((number * 256 + 242) // 243).astype(np.uint8))
            column += digits * (end - start)
        return np.concatenate([*parts, half_bytes(encoded.parameters["scale"])], axis=1)
