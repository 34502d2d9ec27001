# SPDX-License-Identifier: Apache-2.0
"""Weighted k-means in one dimension, many problems at a time.

Clusters then are intervals of the sorted values, so that a step needs no distances: boundaries are midpoints of
neighbouring centres, and the mean between two boundaries is a difference of running sums. A step over a problem of m
values and k clusters costs k log m.
Source: Lloyd's algorithm, from several starts, whichever ends best: even spacing; quantiles of the importance; spacing
by the cube root of the density, which many clusters approach (Panter and Dite, 1951); and, for up to 16 clusters, the
exact solution over a few dozen bins by dynamic programming (Wang and Song, 2011), because a few clusters over a
heavy-tailed row often end badly from the others.
"""

from __future__ import annotations

from array_api_compat import array_namespace, device

from lilliput.arrays import Array

STEPS = 40
MOST_EXACT_CLUSTERS = 16
# Entries of the tables of one call of the exact solution: float64, a few of them at once.
TABLE_ENTRIES = 1 << 21


def cluster(values: Array, importance: Array, clusters: int) -> Array:
    """Centres of the weighted clusters of each problem, ascending: float32 [problems, clusters].

    values, importance: float32 [problems, m].  clusters: 2 or more.
    """
    xp = array_namespace(values)
    order = xp.argsort(values, axis=1, stable=True)
    x = xp.astype(xp.take_along_axis(values, order, axis=1), xp.float64)
    w = xp.astype(xp.take_along_axis(importance, order, axis=1), xp.float64)
    # Values without importance still have to lie somewhere.
    w = w + xp.max(w, axis=1, keepdims=True) * 1e-9 + 1e-300
    sums = _Running(x, w)
    best = best_gain = None
    starts = [sums.even_centres(clusters), sums.dense_centres(clusters), sums.spaced_centres(clusters)]
    if clusters <= MOST_EXACT_CLUSTERS:
        starts.append(_binned_centres(sums, clusters))
    for start in starts:
        centres, gain = sums.refined(start)
        if best is None or best_gain is None:
            best, best_gain = centres, gain
        else:
            is_better = gain > best_gain
            best = xp.where(is_better[:, None], centres, best)
            best_gain = xp.where(is_better, gain, best_gain)
    return xp.astype(xp.sort(best, axis=1), xp.float32)


class _Running:
    """Sorted values with running sums; everything float64."""

    def __init__(self, x: Array, w: Array) -> None:
        """Both [problems, m], x ascending along the last axis."""
        xp = array_namespace(x)
        zeros = xp.zeros_like(x[:, :1])
        self.x = x
        self.weights = xp.concat([zeros, xp.cumulative_sum(w, axis=1)], axis=1)
        self.moments = xp.concat([zeros, xp.cumulative_sum(w * x, axis=1)], axis=1)

    def even_centres(self, clusters: int) -> Array:
        """Evenly spaced between the ends."""
        xp = array_namespace(self.x)
        place = (xp.arange(clusters, dtype=xp.float64, device=device(self.x)) + 0.5) / clusters
        low, high = self.x[:, :1], self.x[:, -1:]
        return low + (high - low) * place

    def dense_centres(self, clusters: int) -> Array:
        """Quantiles of the importance."""
        xp = array_namespace(self.x)
        place = (xp.arange(clusters, dtype=xp.float64, device=device(self.x)) + 0.5) / clusters
        index = _search(self.weights[:, 1:], self.weights[:, -1:] * place)
        return xp.take_along_axis(self.x, xp.clip(index, 0, self.x.shape[1] - 1), axis=1)

    def spaced_centres(self, clusters: int) -> Array:
        """Quantiles of the cube root of the density: of (w / gap)^(1/3) * gap."""
        xp = array_namespace(self.x)
        gap = xp.concat([self.x[:, 1:] - self.x[:, :-1], xp.zeros_like(self.x[:, :1])], axis=1)
        weight = self.weights[:, 1:] - self.weights[:, :-1]
        mass = xp.cumulative_sum((weight * gap * gap) ** (1.0 / 3.0), axis=1)
        place = (xp.arange(clusters, dtype=xp.float64, device=device(self.x)) + 0.5) / clusters
        index = _search(mass, mass[:, -1:] * place)
        return xp.take_along_axis(self.x, xp.clip(index, 0, self.x.shape[1] - 1), axis=1)

    def refined(self, centres: Array) -> tuple[Array, Array]:
        """Lloyd's steps, and how much of the sum of squares [problems] the centres take away."""
        xp = array_namespace(self.x)
        gain = xp.zeros_like(centres[:, 0])
        for _ in range(STEPS):
            middle = (centres[:, 1:] + centres[:, :-1]) * 0.5
            inner = _search(self.x, middle)
            first = xp.zeros_like(inner[:, :1])
            edges = xp.concat([first, inner, first + self.x.shape[1]], axis=1)
            weight = _between(self.weights, edges)
            moment = _between(self.moments, edges)
            is_empty = weight <= 0.0
            moved = xp.where(is_empty, centres, moment / xp.where(is_empty, 1.0, weight))
            gain = xp.sum(xp.where(is_empty, 0.0, moment * moved), axis=1)
            if not bool(xp.any(moved != centres)):
                break
            centres = moved
        return centres, gain


def _binned_centres(sums: _Running, clusters: int) -> Array:
    """Best centres where boundaries may only lie between bins, float64 [problems, clusters]."""
    xp = array_namespace(sums.x)
    bins = max(64, 8 * clusters)
    edges = _bin_edges(sums, bins)
    weight = xp.take_along_axis(sums.weights, edges, axis=1)
    moment = xp.take_along_axis(sums.moments, edges, axis=1)
    step = max(1, TABLE_ENTRIES // (bins + 1) ** 2)
    parts = [
        _best_partition(weight[start : start + step], moment[start : start + step], clusters)
        for start in range(0, edges.shape[0], step)
    ]
    chosen = xp.take_along_axis(edges, xp.concat(parts, axis=0), axis=1)
    mass, total_moment = _between(sums.weights, chosen), _between(sums.moments, chosen)
    is_empty = mass <= 0.0
    # An empty cluster waits at the first value.
    return xp.sort(xp.where(is_empty, sums.x[:, :1], total_moment / xp.where(is_empty, 1.0, mass)), axis=1)


def _bin_edges(sums: _Running, bins: int) -> Array:
    """int64 [problems, bins + 1], ascending, from 0 to m: half evenly spaced by value, half by importance."""
    xp = array_namespace(sums.x)
    half = bins // 2
    place = xp.arange(1, half, dtype=xp.float64, device=device(sums.x)) / half
    low, high = sums.x[:, :1], sums.x[:, -1:]
    by_value = _search(sums.x, low + (high - low) * place)
    place = xp.arange(1, bins - half + 1, dtype=xp.float64, device=device(sums.x)) / (bins - half + 1)
    by_weight = _search(sums.weights[:, 1:], sums.weights[:, -1:] * place)
    first = xp.zeros_like(by_value[:, :1])
    return xp.sort(xp.concat([first, by_value, by_weight, first + sums.x.shape[1]], axis=1), axis=1)


def _best_partition(weight: Array, moment: Array, clusters: int) -> Array:
    """int64 [problems, clusters + 1] edges of the clusters; weight, moment: running sums at the edges of the bins."""
    xp = array_namespace(weight)
    mass = weight[:, None, :] - weight[:, :, None]
    total_moment = moment[:, None, :] - moment[:, :, None]
    # What a cluster from edge i (axis 1) to edge j (axis 2) takes away from the sum of squares; none backwards.
    is_some = mass > 0.0
    gain = xp.where(is_some, total_moment * total_moment / xp.where(is_some, mass, 1.0), 0.0)
    last = weight.shape[1] - 1
    index = xp.arange(last + 1, device=device(weight))
    gain = xp.where((index[:, None] <= index[None, :])[None], gain, -float("inf"))
    best = gain[:, 0, :]
    origins = []
    for _ in range(clusters - 1):
        total = best[:, :, None] + gain
        origins.append(xp.argmax(total, axis=1))
        best = xp.max(total, axis=1)
    edge = xp.zeros_like(origins[0][:, :1]) + last
    edges = [edge]
    for origin in reversed(origins):
        edge = xp.take_along_axis(origin, edge, axis=1)
        edges.append(edge)
    edges.append(xp.zeros_like(edge))
    return xp.concat(list(reversed(edges)), axis=1)


def _search(sorted_rows: Array, targets: Array) -> Array:
    """int64: how many entries of each ascending row lie below each target of that row."""
    xp = array_namespace(sorted_rows)
    length = sorted_rows.shape[1]
    found = xp.zeros(targets.shape, dtype=xp.int64, device=device(targets))
    step = 1 << max(length.bit_length() - 1, 0)
    while step and length:
        probe = found + step
        is_inside = probe <= length
        value = xp.take_along_axis(sorted_rows, xp.where(is_inside, probe, length) - 1, axis=1)
        found = xp.where(is_inside & (value < targets), probe, found)
        step >>= 1
    return found


def _between(running: Array, edges: Array) -> Array:
    xp = array_namespace(running)
    at = xp.take_along_axis(running, edges, axis=1)
    return at[:, 1:] - at[:, :-1]
