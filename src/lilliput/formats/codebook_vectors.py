# SPDX-License-Identifier: Apache-2.0
"""What the IQ1, IQ2 and IQ3 formats share: 4 or 8 columns at a time are an entry of a fixed codebook.

value = scale * (scale_code + 1/2) * factor * level, in blocks of 256; level = codebook entry with its signs (IQ2, IQ3)
or shifted by ±1/8 (IQ1). Codes are int32: codebook index in the low bits, signs or shift above them.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np
from array_api_compat import array_namespace

from lilliput.arrays import Array, ByteArray, IntArray
from lilliput.formats.codebooks import codebook, sign_table
from lilliput.formats.levels import take
from lilliput.formats.number_format import BlockFormat, Parameters, expand


class CodebookVectors(BlockFormat):
    """Columns in vectors; parameters "scale" fp16 per 256 and "scale_code" uint8 per group."""

    block_size = 256
    group_size: ClassVar[int]
    grid: ClassVar[str]
    index_bits: ClassVar[int]
    factor: ClassVar[float]
    can_encode = False

    def values(self, codes: Array, parameters: Parameters, columns: slice | None = None) -> Array:
        """See the formula of the module."""
        xp = array_namespace(codes)
        scale = expand(xp.astype(parameters["scale"], xp.float32), self.block_size // self.group_size, None)
        step = (scale * (xp.astype(parameters["scale_code"], xp.float32) + 0.5)) * self.factor
        return expand(step, self.group_size, columns) * self.level(codes, parameters, columns)

    @abstractmethod
    def level(self, codes: Array, parameters: Parameters, columns: slice | None) -> Array:
        """float32 [rows, n]: what the step multiplies."""


class SignedVectors(CodebookVectors):
    """Unsigned codebook entries with sign bits: 8 independent ones, or 7 whose parity gives the eighth."""

    sign_bits: ClassVar[int]

    def level(self, codes: Array, parameters: Parameters, columns: slice | None) -> Array:
        """Codebook entries times signs."""
        xp = array_namespace(codes)
        grid = codebook(self.grid)
        indices = self.unit // grid.shape[1]
        mask = (1 << self.index_bits) - 1
        entries = [take(grid, (codes >> (self.index_bits * k)) & mask) for k in range(indices)]
        magnitude = entries[0] if indices == 1 else xp.concat(entries, axis=-1)
        sign = take(sign_table(self.sign_bits), codes >> (self.index_bits * indices))
        return xp.reshape(magnitude * sign, (codes.shape[0], -1))


def read_words(data: ByteArray, dtype: str) -> IntArray:
    """Little-endian "<u2" or "<u4" words of uint8 [n, bytes] as int32."""
    return np.ascontiguousarray(data).view(dtype).astype(np.int32)
