# SPDX-License-Identifier: Apache-2.0
"""NVFP4: 4-bit floats in groups of 16 under an unsigned 8-bit float scale, as ggml stores it.

layout   block of 64 weights, 36 bytes: [0:4] scales of the four groups, E4M3 without sign,
         [4:36] codes, four runs of 16 columns: byte i of a run = column i | column i + 8 << 4
value    e4m3(scale) * e2m1(code); e2m1 = 0 0.5 1 1.5 2 3 4 6 and their negatives, code 8 = 0
range    -6 .. 6 scales; scale 0x7f decodes to 0, bit 7 of a scale is ignored otherwise.
         NVIDIA's second, per-tensor float32 scale travels as a tensor of its own
bits     4.5 per weight
readers  llama.cpp, gguf-py; the same numbers, packed differently, in compressed-tensors and ModelOpt checkpoints
"""

from __future__ import annotations

import numpy as np

from lilliput.arrays import ByteArray, FloatArray
from lilliput.formats.bit_packing import pack_fields, unpack_fields
from lilliput.formats.four_bit_float import FourBitFloat
from lilliput.formats.number_format import Encoded, Scope


def half_e4m3_table() -> FloatArray:
    """float32 [256]: half the E4M3 number in the low 7 bits; 0 for 0x7f."""
    code = np.arange(256)
    exponent, fraction = (code >> 3) & 15, (code & 7) / 8.0
    number = np.where(exponent == 0, np.ldexp(fraction, -6), np.ldexp(1 + fraction, exponent - 7))
    return np.where(code == 0x7F, 0.0, number * 0.5).astype(np.float32)


class NVFP4(FourBitFloat):
    """4-bit floats in groups of 16 under an unsigned 8-bit float scale."""

    name = "nvfp4"
    scopes = (Scope(1, 16, ("scale_code",)),)
    block_size = 64
    block_bytes = 36
    group_size = 16
    # From the least normal scale, 2^-6, to the greatest, 448, times 6.
    full_precision = (6 * 2.0**-6, 448 * 6)
    n_scale_codes = 127
    code_offsets = tuple(sorted(range(-5, 13), key=abs))
    half_scales = half_e4m3_table()

    def unpack_blocks(self, blocks: ByteArray) -> Encoded:
        """See the layout above."""
        return Encoded(unpack_fields(blocks[:, 4:], 4, 8), {"scale_code": blocks[:, :4]})

    def pack_blocks(self, encoded: Encoded) -> ByteArray:
        """See the layout above."""
        return np.concatenate([encoded.parameters["scale_code"], pack_fields(encoded.codes, 4, 8)], axis=1)
