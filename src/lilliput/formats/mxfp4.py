# SPDX-License-Identifier: Apache-2.0
"""MXFP4: 4-bit floats in groups of 32 under a power-of-two scale (OCP Microscaling 1.0).

layout   block of 32 weights, 17 bytes: [0] scale E8M0, [1:17] codes: byte i = column i | column i + 16 << 4
value    2^(scale - 127) * e2m1(code); e2m1 = 0 0.5 1 1.5 2 3 4 6 and their negatives, code 8 = 0
range    -6 .. 6 scales
bits     4.25 per weight
readers  llama.cpp, gguf-py; the same numbers, packed differently, in compressed-tensors and gpt-oss checkpoints
"""

from __future__ import annotations

import numpy as np

from lilliput.arrays import ByteArray
from lilliput.formats.bit_packing import pack_fields, unpack_fields
from lilliput.formats.four_bit_float import FourBitFloat
from lilliput.formats.number_format import Encoded, Scope


class MXFP4(FourBitFloat):
    """4-bit floats in groups of 32 under a power-of-two scale."""

    name = "mxfp4"
    scopes = (Scope(1, 32, ("scale_code",)),)
    block_size = 32
    block_bytes = 17
    group_size = 32
    # 2^(code - 128): codes 0 and 1 are subnormal in float32; 255, NaN in the OCP text, decodes like its neighbours.
    n_scale_codes = 255
    code_offsets = (0, -1, 1, -2)
    half_scales = np.ldexp(np.float64(1), np.arange(256) - 128).astype(np.float32)

    def unpack_blocks(self, blocks: ByteArray) -> Encoded:
        """See the layout above."""
        return Encoded(unpack_fields(blocks[:, 1:], 4, 16), {"scale_code": blocks[:, :1]})

    def pack_blocks(self, encoded: Encoded) -> ByteArray:
        """See the layout above."""
        return np.concatenate([encoded.parameters["scale_code"], pack_fields(encoded.codes, 4, 16)], axis=1)
