# SPDX-License-Identifier: Apache-2.0
"""Where to cut a histogram of magnitudes so that few levels keep most of what it tells, for weights and inputs alike.

Source: 8-bit inference with TensorRT (GTC 2017), slides 28 to 38.
"""

from __future__ import annotations

import numpy as np

from lilliput.arrays import DoubleArray

THRESHOLDS = 64


def best_cut(counts: DoubleArray, levels: int) -> DoubleArray:
    """Bins to keep [n] of histograms [n, bins] of magnitudes for least divergence under `levels` steps from zero."""
    bins = counts.shape[1]
    counts = counts.copy()
    # Zeros have a level of their own under every threshold and would only drown the rest.
    counts[:, 0] = 0
    kept = np.unique(np.linspace(levels, bins, THRESHOLDS).astype(np.int64))
    found = np.stack([divergence(counts, int(count), levels) for count in kept])
    cut: DoubleArray = kept[found.argmin(axis=0)].astype(np.float64)
    return cut


def divergence(counts: DoubleArray, kept: int, levels: int) -> DoubleArray:
    """KL divergence [n] of histograms [n, bins], clipped into `kept` bins, from the same merged into `levels`."""
    inside = counts[:, :kept]
    clipped = inside.copy()
    clipped[:, -1] += counts[:, kept:].sum(axis=1)
    starts = np.arange(levels) * kept // levels
    sizes = np.diff(np.append(starts, kept))
    is_used = inside > 0
    used = np.add.reduceat(is_used.astype(np.float64), starts, axis=1)
    level = np.add.reduceat(inside, starts, axis=1) / np.maximum(used, 1)
    merged = np.repeat(level, sizes, axis=1) * is_used
    p = clipped / np.maximum(clipped.sum(axis=1, keepdims=True), 1)
    q = merged / np.maximum(merged.sum(axis=1, keepdims=True), 1)
    # Mass that was clipped into an empty bin has nowhere to go: a finite but heavy price.
    ratio = np.where(p > 0, p / np.maximum(q, 1e-9), 1.0)
    result: DoubleArray = (p * np.log(ratio)).sum(axis=1)
    return result
