# SPDX-License-Identifier: Apache-2.0
"""TQ2_0: ternary weights, four to a byte, one scale per 256.

layout   block of 256 weights, 66 bytes: [0:64] codes, two halves of 128 columns: byte i of a half = columns i, i + 32,
         i + 64, i + 96, lowest bits first; [64:66] scale fp16
value    scale * (code - 1)
range    -1, 0, 1 scales; code 3, which no encoder writes, decodes to 2 scales
bits     2.0625 per weight
readers  llama.cpp, gguf-py
"""

from __future__ import annotations

import numpy as np
from array_api_compat import array_namespace

from lilliput.arrays import Array, ByteArray
from lilliput.formats.bit_packing import half_bytes, pack_fields, read_half, unpack_fields
from lilliput.formats.levels import Levels
from lilliput.formats.number_format import Encoded, Parameters, Scope
from lilliput.formats.single_scale import TERNARY_ANCHORS, SingleScale


class TQ2_0(SingleScale):
    """Ternary weights, four to a byte."""

    name = "tq2_0"
    scopes = (Scope(1, 256, ("scale",)),)
    block_size = 256
    block_bytes = 66
    levels = Levels.integers(-1, 2)
    search_levels = Levels.integers(-1, 1)
    anchors = TERNARY_ANCHORS

    def unpack_blocks(self, blocks: ByteArray) -> Encoded:
        """See the layout above."""
        return Encoded(unpack_fields(blocks[:, :64], 2, 32), {"scale": read_half(blocks[:, 64:])})

    def pack_blocks(self, encoded: Encoded) -> ByteArray:
        """See the layout above."""
        return np.concatenate([pack_fields(encoded.codes, 2, 32), half_bytes(encoded.parameters["scale"])], axis=1)

    def nearest_codes(
        self, target: Array, parameters: Parameters, columns: slice | None = None, *, metric: Array | None = None
    ) -> Array:
        """Nearest of -1, 0 and 1: code 3 stays unwritten."""
        codes = super().nearest_codes(target, parameters, columns)
        return array_namespace(codes).clip(codes, 0, 2)
