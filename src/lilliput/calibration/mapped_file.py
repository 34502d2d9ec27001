# SPDX-License-Identifier: Apache-2.0
"""Arrays that lie in files: hidden states of a whole text, larger than what may be in memory."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from lilliput.arrays import FloatArray


def mapped_floats(path: Path, shape: tuple[int, ...]) -> FloatArray:
    """A writable float32 array in a file; a file of that size keeps what it holds.

    Its space is taken now: a full disk is an OSError here and not a crash later.
    """
    size = 4 * int(np.prod(shape, dtype=np.int64))
    if not path.exists() or path.stat().st_size != size:
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    return np.memmap(path, dtype=np.float32, mode="r+", shape=shape)
