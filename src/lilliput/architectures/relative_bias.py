# SPDX-License-Identifier: Apache-2.0
"""T5's relative position bias as numbers by distance: arXiv 1910.10683, section 2.1."""

from __future__ import annotations

import math

import numpy as np

from lilliput.architectures.program import RelativeBias
from lilliput.arrays import FloatArray, IntArray


def distance_buckets(bias: RelativeBias, distance: IntArray) -> IntArray:
    """The bucket of each distance, a key's position less the query's.

    Half of the buckets are single distances from 0 on, the other half grow in size with the logarithm; with
    `bidirectional` each direction has half of all.
    """
    buckets = bias.buckets
    start: IntArray = np.zeros_like(distance)
    if bias.bidirectional:
        buckets //= 2
        start = np.where(distance > 0, buckets, 0)
        far = np.abs(distance)
    else:
        far = np.maximum(-distance, 0)
    exact = buckets // 2
    # float32 as in transformers, so that a distance on the border of two buckets falls on the same side.
    ratio = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(exact)) / np.float32(
        math.log(bias.max_distance / exact)
    )
    grown = exact + (ratio * np.float32(buckets - exact)).astype(distance.dtype)
    found: IntArray = start + np.where(far < exact, far, np.minimum(grown, buckets - 1))
    return found


def bias_by_distance(bias: RelativeBias, weight: FloatArray) -> FloatArray:
    """[heads, 2 * max_distance + 1] float32 by distance, from -max_distance to max_distance.

    weight: [buckets, heads].  What lies farther has the numbers of the ends.
    """
    distance = np.arange(-bias.max_distance, bias.max_distance + 1, dtype=np.int32)
    return np.ascontiguousarray(weight[distance_buckets(bias, distance)].T)
