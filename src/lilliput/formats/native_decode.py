# SPDX-License-Identifier: Apache-2.0
"""The fast way to the same float32 values: the native core's decoder where it has one, the array code otherwise."""

from __future__ import annotations

from functools import cache

import numpy as np

from lilliput.arrays import FloatArray
from lilliput.formats.number_format import BlockFormat, NumberFormat, Planes


def decode(number_format: NumberFormat, planes: Planes, columns: int, *, threads: int = 1) -> FloatArray:
    """Stored planes -> float32 [rows, columns]; the same bits as `number_format.dequantize`."""
    if not isinstance(number_format, BlockFormat) or number_format.name not in _native_names():
        return number_format.dequantize(planes, columns)
    from lilliput import _native

    blocks = np.ascontiguousarray(planes["blocks"])
    n_values = blocks.size // number_format.block_bytes * number_format.block_size
    return _native.decode(number_format.name, blocks, n_values, threads).reshape(-1, columns)


@cache
def _native_names() -> frozenset[str]:
    try:
        from lilliput import _native
    except ImportError:  # the array code is complete on its own; only slower
        return frozenset()
    return frozenset(_native.formats())
