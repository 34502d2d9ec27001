# SPDX-License-Identifier: Apache-2.0
"""Integers of 2 to 8 bits with an fp16 scale and an fp16 minimum a group: int4_g64_affine.

layout   one plane, "blocks": per group 4 + group * bits / 8 bytes: [0:2] scale fp16, [2:4] minimum fp16,
         [4:] codes, a little-endian bit string
value    scale * code + minimum
range    minimum … minimum + (2^bits - 1) scales
bits     bits + 32 / group: int4_g64_affine has 4.5
readers  the grid of mlx, of HQQ's float zeros, and of Q4_1 (int4_g32_affine); only the packing differs
"""

from __future__ import annotations

import numpy as np

from lilliput.arrays import ByteArray
from lilliput.formats.bit_packing import half_bytes, read_half
from lilliput.formats.number_format import Encoded, Parameters
from lilliput.formats.regions import Region
from lilliput.formats.scale_and_minimum import ScaleAndMinimum
from lilliput.formats.scale_search import LineCandidate, finest_first, steps
from lilliput.formats.scoped_number import pack_bits, unpack_bits

# By how much the range of a group may be cut on one side; few codes gain by cutting more.
CUTS = {2: 0.3, 3: 0.2, 4: 0.12, 5: 0.08, 6: 0.05, 7: 0.03, 8: 0.02}


class AffineInteger(ScaleAndMinimum):
    """Integers on a line with any minimum."""

    def __init__(self, bits: int, region: Region) -> None:
        """`bits` 2..8; region: a group."""
        assert region.columns is not None
        self.name = f"int{bits}_{region.name}_affine"
        self.bits = bits
        self.scopes = (region.scope("scale", "minimum"),)
        self.block_size = region.columns
        self.block_bytes = 4 + region.columns * bits // 8
        self.last_code = (1 << bits) - 1
        cut = CUTS[bits]
        self.candidates = finest_first(
            [LineCandidate(stretch) for stretch in steps(0.9, 1.1, 9)]
            + [LineCandidate(1.0, low, high) for low in (0.0, cut / 2, cut) for high in (0.0, cut / 2, cut)]
        )

    def unpack_blocks(self, blocks: ByteArray) -> Encoded:
        """See the layout above."""
        parameters: Parameters = {"scale": read_half(blocks[:, :2]), "minimum": read_half(blocks[:, 2:4])}
        return Encoded(unpack_bits(np.ascontiguousarray(blocks[:, 4:]), self.bits, self.block_size), parameters)

    def pack_blocks(self, encoded: Encoded) -> ByteArray:
        """See the layout above."""
        halves = [half_bytes(encoded.parameters[name]) for name in ("scale", "minimum")]
        return np.concatenate([*halves, pack_bits(encoded.codes, self.bits)], axis=1)
