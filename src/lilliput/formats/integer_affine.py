# SPDX-License-Identifier: Apache-2.0
"""Integers of 2 to 8 bits with an fp16 scale and an fp16 minimum a group: int4_g64_affine.

layout   one plane, "blocks": per group 4 + group * bits / 8 bytes: [0:2] scale fp16, [2:4] minimum fp16,
         [4:] codes, a little-endian bit string; where the name ends in _f32, both are float32 and take 8 bytes
value    scale * code + minimum
range    minimum … minimum + (2^bits - 1) scales
bits     bits + 32 / group: int4_g64_affine has 4.5
readers  the grid of mlx, of HQQ's float zeros, and of Q4_1 (int4_g32_affine); only the packing differs
"""

from __future__ import annotations

import numpy as np
from array_api_compat import array_namespace

from lilliput.arrays import Array, ByteArray, FloatArray
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

    def __init__(self, bits: int, region: Region, *, has_wide_scales: bool = False) -> None:
        """`bits` 2..8; region: a group.  has_wide_scales: float32, as GGML of 2023 has them."""
        assert region.columns is not None
        self.name = f"int{bits}_{region.name}_affine{'_f32' if has_wide_scales else ''}"
        self.has_half_scales = not has_wide_scales
        self._halves = 1 if self.has_half_scales else 2
        self.bits = bits
        self.scopes = (region.scope("scale", "minimum"),)
        self.block_size = region.columns
        self.block_bytes = 4 * self._halves + region.columns * bits // 8
        self.last_code = (1 << bits) - 1
        cut = CUTS[bits]
        self.candidates = finest_first(
            [LineCandidate(stretch) for stretch in steps(0.9, 1.1, 9)]
            + [LineCandidate(1.0, low, high) for low in (0.0, cut / 2, cut) for high in (0.0, cut / 2, cut)]
        )

    def unpack_blocks(self, blocks: ByteArray) -> Encoded:
        """See the layout above."""
        first = 2 * self._halves
        parameters: Parameters = {"scale": blocks[:, :first], "minimum": blocks[:, first : 2 * first]}
        read = read_half if self.has_half_scales else _read_single
        codes = unpack_bits(np.ascontiguousarray(blocks[:, 2 * first :]), self.bits, self.block_size)
        return Encoded(codes, {name: read(data) for name, data in parameters.items()})

    def pack_blocks(self, encoded: Encoded) -> ByteArray:
        """See the layout above."""
        written = half_bytes if self.has_half_scales else _single_bytes
        numbers = [written(encoded.parameters[name]) for name in ("scale", "minimum")]
        return np.concatenate([*numbers, pack_bits(encoded.codes, self.bits)], axis=1)

    def fit(
        self, weight: Array, importance: Array | None, *, scope: int = 0, outer: Parameters | None = None
    ) -> Parameters:
        """As `ScaleAndMinimum` has it, in the type that is stored."""
        found = super().fit(weight, importance, scope=scope, outer=outer)
        if self.has_half_scales:
            return found
        xp = array_namespace(weight)
        return {name: xp.astype(values, xp.float32) for name, values in found.items()}

    def stored_line(self, scale: Array, minimum: Array) -> Parameters:
        """Parameters for value = scale * code + minimum, float32 [rows, groups]."""
        return super().stored_line(scale, minimum) if self.has_half_scales else {"scale": scale, "minimum": minimum}


def _read_single(data: ByteArray) -> FloatArray:
    """uint8 [n, 4 k], little endian -> float32 [n, k]."""
    return np.ascontiguousarray(data).view("<f4").astype(np.float32, copy=False)


def _single_bytes(values: FloatArray) -> ByteArray:
    """float32 [n, k] -> uint8 [n, 4 k], little endian."""
    return np.ascontiguousarray(values, dtype="<f4").view(np.uint8)
