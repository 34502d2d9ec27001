# SPDX-License-Identifier: Apache-2.0
"""Q8_0: 8-bit symmetric integers in groups of 32.

layout   block of 32 weights, 34 bytes: [0:2] scale fp16 little endian, [2:34] 32 int8
value    scale * int8
range    -128..127 decodes; the encoder writes -127..127
bits     8.5 per weight
readers  llama.cpp, gguf-py, ik_llama.cpp, transformers (GGUF loader)
"""

from __future__ import annotations

import numpy as np
from array_api_compat import array_namespace

from lilliput.arrays import Array, ByteArray
from lilliput.formats.number_format import BlockFormat, Encoded, Parameters, Scope, expand

GROUP = 32


class Q8_0(BlockFormat):
    """8-bit symmetric integers in groups of 32; codes are int8 + 128."""

    name = "q8_0"
    scopes = (Scope(1, GROUP, ("scale",)),)
    block_size = GROUP
    block_bytes = 34

    def unpack_blocks(self, blocks: ByteArray) -> Encoded:
        """See the layout above."""
        return Encoded(blocks[:, 2:] ^ np.uint8(0x80), {"scale": blocks[:, :2].copy().view(np.float16)})

    def pack_blocks(self, encoded: Encoded) -> ByteArray:
        """See the layout above."""
        scale = np.ascontiguousarray(encoded.parameters["scale"]).view(np.uint8)
        return np.concatenate([scale, encoded.codes.astype(np.uint8) ^ np.uint8(0x80)], axis=1)

    def values(self, codes: Array, parameters: Parameters, columns: slice | None = None) -> Array:
        """Scale * (code - 128)."""
        xp = array_namespace(codes)
        scale = expand(xp.astype(parameters["scale"], xp.float32), GROUP, columns)
        return scale * (xp.astype(codes, xp.float32) - 128.0)

    def fit(
        self, weight: Array, importance: Array | None, *, scope: int = 0, outer: Parameters | None = None
    ) -> Parameters:
        """Largest magnitude / 127: at 8 bits a searched scale gains nothing that a measurement shows."""
        xp = array_namespace(weight)
        groups = xp.reshape(weight, (weight.shape[0], -1, GROUP))
        return {"scale": xp.astype(xp.max(xp.abs(groups), axis=2) / 127.0, xp.float16)}

    def nearest_codes(
        self, target: Array, parameters: Parameters, columns: slice | None = None, *, metric: Array | None = None
    ) -> Array:
        """Round to nearest, clamped to -127..127."""
        xp = array_namespace(target)
        scale = expand(xp.astype(parameters["scale"], xp.float32), GROUP, columns)
        safe = xp.where(scale == 0.0, 1.0, scale)
        signed = xp.clip(xp.round(target / safe), -127.0, 127.0)
        return xp.astype(xp.where(scale == 0.0, 0.0, signed) + 128.0, xp.uint8)
