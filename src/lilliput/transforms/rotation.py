# SPDX-License-Identifier: Apache-2.0
"""Orthogonal matrices whose entries are all small: they spread every outlier over all channels.

A size is split into a power of two and an odd rest. The first part is a Hadamard matrix, the second a Hartley matrix,
cos + sin of 2 pi j k / m over sqrt(m), which is orthogonal for every m: no entry of their product exceeds sqrt(2 / n),
where a random orthogonal matrix has entries of sqrt(2 log(n) / n) and more. Random signs in front make it a
"randomized Hadamard" (QuIP#, https://arxiv.org/abs/2402.04396, section 3). Cost: log2 of the first part plus the second
part, per element; hidden sizes of published models have rests of 1 to 45.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lilliput.arrays import DoubleArray, FloatArray

# Elements turned at once, in float64.
PIECE = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Rotation:
    """Q, block diagonal with blocks of equal size. signs: [blocks, size], +-1, what makes one differ from another."""

    signs: FloatArray

    @classmethod
    def random(cls, seed: tuple[int, ...], size: int, blocks: int = 1) -> Rotation:
        """The same for the same seed."""
        draws = np.random.default_rng(seed).integers(0, 2, (blocks, size))
        return cls((2 * draws - 1).astype(np.float32))

    @property
    def width(self) -> int:
        """Channels in all."""
        return self.signs.size

    def repeated(self, times: int) -> Rotation:
        """Each block several times, one after the other: for heads that share a key-value head."""
        return Rotation(np.repeat(self.signs, times, axis=0))

    def turned(self, rows: FloatArray) -> FloatArray:
        """Give rows @ Q for rows [n, width], computed in float64."""
        blocks, size = self.signs.shape
        result = np.empty(rows.shape, dtype=np.float32)
        step = max(1, PIECE // max(self.width, 1))
        for start in range(0, len(rows), step):
            part = rows[start : start + step].astype(np.float64).reshape(-1, blocks, size) * self.signs
            result[start : start + step] = _spread(part).reshape(-1, self.width)
        return result


def _spread(x: DoubleArray) -> DoubleArray:
    """[n, blocks, size] times the Kronecker product of Hartley and Hadamard matrices."""
    size = x.shape[-1]
    even = size & -size
    odd = size // even
    x = x.reshape(-1, odd, even)
    half = 1
    while half < even:
        pairs = x.reshape(-1, odd, even // (2 * half), 2, half)
        first, second = pairs[..., 0, :], pairs[..., 1, :]
        x = np.stack((first + second, first - second), axis=-2).reshape(-1, odd, even)
        half *= 2
    if odd > 1:
        # Not through BLAS, whose order of summation may depend on the threads.
        x = np.einsum("nke,kj->nje", x, _hartley(odd), optimize=False)
    spread: DoubleArray = x / np.sqrt(even)
    return spread


def _hartley(size: int) -> DoubleArray:
    angles = 2 * np.pi * (np.outer(np.arange(size), np.arange(size)) % size) / size
    matrix: DoubleArray = (np.cos(angles) + np.sin(angles)) / np.sqrt(size)
    return matrix
