# SPDX-License-Identifier: Apache-2.0
"""Fields of a few bits inside bytes, as every ggml block lays them out.

One pattern covers them all. Bytes come in chunks; each chunk holds the `8 / bits` fields of its bytes as layers, lowest
bits first, and layer k of a chunk is columns [k * chunk, (k + 1) * chunk) of that chunk's share. chunk = 1 is plain
little-endian bit order.

    bits 4, chunk 16 (Q4_0)    byte i = column i | column i + 16 << 4
    bits 2, chunk 32 (Q2_K)    byte i = column i | column i + 32 << 2 | column i + 64 << 4 | column i + 96 << 6
    bits 1, chunk 1            byte i = columns 8 i .. 8 i + 7, lowest bit first
"""

from __future__ import annotations

import numpy as np

from lilliput.arrays import Array, ByteArray, FloatArray, HalfArray


def unpack_fields(data: ByteArray, bits: int, chunk: int) -> ByteArray:
    """uint8 [n, bytes] -> fields uint8 [n, bytes * 8 / bits]."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8).reshape(1, 1, -1, 1)
    layers = (data.reshape(len(data), -1, 1, chunk) >> shifts) & np.uint8((1 << bits) - 1)
    return layers.reshape(len(data), -1)


def pack_fields(fields: Array, bits: int, chunk: int) -> ByteArray:
    """The inverse of `unpack_fields`; fields must be below 2 ** bits."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8).reshape(1, 1, -1, 1)
    layers = fields.astype(np.uint8).reshape(len(fields), -1, 8 // bits, chunk) << shifts
    packed: ByteArray = np.bitwise_or.reduce(layers, axis=2).reshape(len(fields), -1)
    return packed


def read_half(data: ByteArray) -> HalfArray:
    """uint8 [n, 2 k], little endian -> float16 [n, k]."""
    return np.ascontiguousarray(data).view("<f2").astype(np.float16, copy=False)


def half_bytes(values: HalfArray | FloatArray) -> ByteArray:
    """float16 [n, k] -> uint8 [n, 2 k], little endian."""
    return np.ascontiguousarray(values, dtype="<f2").view(np.uint8)
