# SPDX-License-Identifier: Apache-2.0
"""Lookup tables that exist only in ggml, read once from codebooks.npz (made by tools/generate_codebooks.py)."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import numpy as np

from lilliput.arrays import FloatArray


@cache
def codebook(name: str) -> FloatArray:
    """float32 [entries, 4 or 8] of a grid ("iq1", "iq2_xxs" …), or [16] of a 4-bit table ("iq4_nl", "e2m1_doubled")."""
    with (files("lilliput.formats") / "codebooks.npz").open("rb") as file, np.load(file, allow_pickle=False) as tables:
        table: FloatArray = tables[name].astype(np.float32)
        return table


@cache
def sign_table(bits: int) -> FloatArray:
    """float32 of +1 and -1.

    7: [128, 8], where the eighth sign makes the number of minus signs even.  8: [256, 8].  4: [16, 4].
    """
    if bits == 7:
        return codebook_signs(codebook("sign_parity").astype(np.uint8), 8)
    return codebook_signs(np.arange(1 << bits, dtype=np.uint8), bits)


def codebook_signs(masks: np.ndarray[tuple[int], np.dtype[np.uint8]], width: int) -> FloatArray:
    """uint8 [n], bit j set = minus -> float32 [n, width]."""
    bits = (masks[:, None] >> np.arange(width, dtype=np.uint8)) & np.uint8(1)
    return np.where(bits == 0, np.float32(1), np.float32(-1))
