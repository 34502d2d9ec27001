# SPDX-License-Identifier: Apache-2.0
"""What Q2_K, Q4_K and Q5_K share: fp16 scale and minimum per 256 weights, small unsigned integers of both per group.

value = (scale * scale_code) * code - (minimum * minimum_code)
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from array_api_compat import array_namespace

from lilliput.arrays import Array, ByteArray
from lilliput.formats.number_format import BlockFormat, Parameters, expand


class ScaledScalesAndMinimums(BlockFormat):
    """Two levels of scales and of minimums; subclasses give code range, group size and layout.

    Parameters: "scale", "minimum" fp16 [rows, blocks]; "scale_code", "minimum_code" uint8 [rows, groups].
    The minimum is subtracted: with the positive `minimum` that encoders write, a group's lowest value is at most 0.
    """

    block_size = 256
    group_size: ClassVar[int]
    last_code: ClassVar[int]
    last_parameter_code: ClassVar[int]

    def values(self, codes: Array, parameters: Parameters, columns: slice | None = None) -> Array:
        """(scale * scale_code) * code - (minimum * minimum_code)."""
        xp = array_namespace(codes)
        scale = expand(self.group_parameter(parameters, "scale"), self.group_size, columns)
        minimum = expand(self.group_parameter(parameters, "minimum"), self.group_size, columns)
        return scale * xp.astype(codes, xp.float32) - minimum

    def group_parameter(self, parameters: Parameters, name: str) -> Array:
        """`name` * `name`_code, float32 [rows, groups]."""
        xp = array_namespace(parameters[f"{name}_code"])
        outer = expand(xp.astype(parameters[name], xp.float32), self.block_size // self.group_size, None)
        return outer * xp.astype(parameters[f"{name}_code"], xp.float32)


def unpack_six_bit_pairs(data: ByteArray) -> tuple[ByteArray, ByteArray]:
    """12 bytes [n, 12] of Q4_K and Q5_K -> eight 6-bit scale codes and eight 6-bit minimum codes, each [n, 8].

    Groups 0..3: scale in the low 6 bits of bytes 0..3, minimum in the low 6 bits of bytes 4..7.
    Groups 4..7: low 4 bits in bytes 8..11 (scale low nibble, minimum high nibble), high 2 bits on top of bytes 0..7.
    """
    first, second, third = data[:, 0:4], data[:, 4:8], data[:, 8:12]
    low = np.uint8(0x3F)
    scale = np.concatenate([first & low, (third & np.uint8(0x0F)) | ((first >> 6) << 4)], axis=1)
    minimum = np.concatenate([second & low, (third >> 4) | ((second >> 6) << 4)], axis=1)
    return scale, minimum


def pack_six_bit_pairs(scale: ByteArray, minimum: ByteArray) -> ByteArray:
    """The inverse of `unpack_six_bit_pairs`."""
    scale, minimum = scale.astype(np.uint8), minimum.astype(np.uint8)
    first = scale[:, :4] | ((scale[:, 4:] >> 4) << 6)
    second = minimum[:, :4] | ((minimum[:, 4:] >> 4) << 6)
    third = (scale[:, 4:] & np.uint8(0x0F)) | ((minimum[:, 4:] & np.uint8(0x0F)) << 4)
    return np.concatenate([first, second, third], axis=1)
