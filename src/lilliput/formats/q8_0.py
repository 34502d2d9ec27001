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
from lilliput.formats.bit_packing import half_bytes, read_half
from lilliput.formats.levels import Levels
from lilliput.formats.number_format import Encoded, Parameters, Scope
from lilliput.formats.scale_search import steps
from lilliput.formats.single_scale import SingleScale


class Q8_0(SingleScale):
    """8-bit symmetric integers in groups of 32; codes are int8 + 128."""

    name = "q8_0"
    scopes = (Scope(1, 32, ("scale",)),)
    block_size = 32
    block_bytes = 34
    half_places = (0,)
    levels = Levels.integers(-128, 127)
    # -128 stays unused: kernels that take absolute values of int8 may overflow on it.
    search_levels = Levels.integers(-127, 127)
    anchors = steps(127 * 1.03, 127 * 0.97, 17)

    def unpack_blocks(self, blocks: ByteArray) -> Encoded:
        """See the layout above."""
        return Encoded(blocks[:, 2:] ^ np.uint8(0x80), {"scale": read_half(blocks[:, :2])})

    def pack_blocks(self, encoded: Encoded) -> ByteArray:
        """See the layout above."""
        scale = half_bytes(encoded.parameters["scale"])
        return np.concatenate([scale, encoded.codes.astype(np.uint8) ^ np.uint8(0x80)], axis=1)

    def nearest_codes(
        self, target: Array, parameters: Parameters, columns: slice | None = None, *, metric: Array | None = None
    ) -> Array:
        """Nearest of -127..127."""
        codes = super().nearest_codes(target, parameters, columns, metric=metric)
        return array_namespace(codes).clip(codes, 1, 255)
