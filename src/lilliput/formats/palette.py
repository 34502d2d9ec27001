# SPDX-License-Identifier: Apache-2.0
"""Palettes: every weight is one of 2^bits numbers that its region stores: palette4_tensor, palette3_channel.

layout   "codes": rows of little-endian bit strings; "palette": fp16 [region rows, region columns, 2^bits], ascending
value    palette[code]
range    ±65504, whatever the entries are
bits     bits + 16 * 2^bits / weights of a region: palette4_g128 6, palette4_rows16 4.004 with rows of 4096
readers  none; the idea is that of Deep Compression (arXiv 1510.00149), Core ML's palettized weights, SqueezeLLM
"""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd

import numpy as np
from array_api_compat import array_namespace, device

from lilliput.arrays import Array
from lilliput.errors import FormatError
from lilliput.formats.k_means import cluster
from lilliput.formats.number_format import Parameters
from lilliput.formats.regions import Region
from lilliput.formats.scale_search import bounded, to_half
from lilliput.formats.scoped_number import ScopedNumber, StoredParameter

# A region with more weights is clustered by a sample of this size and its two ends: 4096 for each of 256 entries.
SAMPLE = 1 << 20


class Palette(ScopedNumber):
    """Weight sharing by k-means."""

    def __init__(self, bits: int, region: Region) -> None:
        """`bits` 1..8."""
        self.entries = 1 << bits
        palette = StoredParameter(np.dtype("<f2"), (self.entries,))
        super().__init__(f"palette{bits}_{region.name}", region, bits, {"palette": palette})

    def values(self, codes: Array, parameters: Parameters, columns: slice | None = None) -> Array:
        """Entries of the palettes."""
        xp = array_namespace(codes)
        palette = parameters["palette"]
        index = self._region_index(palette, codes, columns) * self.entries + xp.astype(codes, xp.int32)
        return take_flat(xp.astype(palette, xp.float32), index)

    def fit(
        self, weight: Array, importance: Array | None, *, scope: int = 0, outer: Parameters | None = None
    ) -> Parameters:
        """Weighted k-means of each region."""
        xp = array_namespace(weight)
        weight = bounded(weight)
        w = xp.ones_like(weight) if importance is None else xp.broadcast_to(importance, weight.shape)
        w = xp.astype(w, xp.float32)
        rows, columns = weight.shape
        if self.region.rows == 1:
            shape = (-1, self.region.columns or columns)
            centres = cluster(xp.reshape(weight, shape), xp.reshape(w, shape), self.entries)
        else:
            together = self.region.rows or max(rows, 1)
            starts = range(0, rows, together)
            problems = [(weight[start : start + together], w[start : start + together]) for start in starts]
            centres = xp.concat([cluster(*_sample(*problem), self.entries) for problem in problems], axis=0)
        return {"palette": xp.reshape(to_half(centres), (*self.region.grid(rows, columns), self.entries))}

    def widest_parameters(self, weight: Array) -> Parameters:
        """Evenly spaced from the smallest to the largest weight of each region."""
        xp = array_namespace(weight)
        low, high = self.region.extremes(bounded(weight))
        steps = [low + (high - low) * (index / (self.entries - 1)) for index in range(self.entries)]
        return {"palette": to_half(xp.stack(steps, axis=-1))}

    def nearest_codes(
        self, target: Array, parameters: Parameters, columns: slice | None = None, *, metric: Array | None = None
    ) -> Array:
        """Nearest entry."""
        xp = array_namespace(target)
        palette = xp.astype(parameters["palette"], xp.float32)
        middle = (palette[..., 1:] + palette[..., :-1]) * 0.5
        first = self._region_index(palette, target, columns) * (self.entries - 1) - 1
        target = bounded(target)
        code = xp.zeros_like(first)
        for place in reversed(range(self.code_bits)):
            probe = code + (1 << place)
            code = xp.where(take_flat(middle, first + probe) < target, probe, code)
        return xp.astype(code, xp.uint8)

    def linear_terms(self, codes: Array, parameters: Parameters, columns: slice | None = None) -> Mapping[str, Array]:
        """None: a palette is many parameters, each of which some of the values are."""
        raise FormatError(f"{self.name}: its values are entries of a palette, which have no terms")

    def _region_index(self, palette: Array, matrix: Array, columns: slice | None) -> Array:
        """int32, broadcastable to the matrix: which of the palettes, row by row, each weight uses."""
        xp = array_namespace(palette)
        grid = xp.arange(palette.shape[0] * palette.shape[1], dtype=xp.int32, device=device(palette))
        return self.region.spread(xp.reshape(grid, tuple(palette.shape[:2])), matrix.shape[0], columns)


def take_flat(table: Array, index: Array) -> Array:
    """table, flattened, at index."""
    xp = array_namespace(table)
    return xp.reshape(xp.take(xp.reshape(table, (-1,)), xp.reshape(index, (-1,)), axis=0), index.shape)


def _sample(weight: Array, importance: Array) -> tuple[Array, Array]:
    """One problem [1, m] of all weights, or of every n-th and the two ends."""
    xp = array_namespace(weight)
    columns = weight.shape[1]
    x, w = xp.reshape(weight, (-1,)), xp.reshape(importance, (-1,))
    step = -(-x.shape[0] // SAMPLE)
    if step > 1:
        # Every column comes up as often as every other.
        while gcd(step, columns) > 1:
            step += 1
        ends = [xp.argmin(x), xp.argmax(x)]
        x, w = (xp.concat([array[::step], *(array[end][None] for end in ends)]) for array in (x, w))
    return x[None], w[None]
