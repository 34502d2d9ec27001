# SPDX-License-Identifier: Apache-2.0
"""Nearest codebook vectors under a full metric M: least (y - q)ᵀ M (y - q) over entries and legal signs.

What block feedback needs: the columns of a vector are chosen together, and M holds how their errors join. With the
signs S fixed, the score of an entry g is linear in the products of its columns: g_i g_j (S M S)_ij - 2 g_i (S M y)_i;
with the entry fixed, the score of a sign mask is linear in the products of the signs. Either is one matrix product over
all choices, exact. From the best vector under M's diagonal on: for the best sign mask of each of 8 kinds the best
entry, the best mask for that, and of these ends the best. (Two codebook vectors under one mask, IQ3_XXS, take their
turns one after the other.)
"""

from __future__ import annotations

from functools import cache

import numpy as np
from array_api_compat import array_namespace, device

from lilliput.arrays import Array, FloatArray
from lilliput.formats.codebooks import codebook_signs, sign_table
from lilliput.formats.levels import take
from lilliput.formats.vector_search import Found, VectorTable, round_signed

# One start for each value of a mask's lowest three bits. On random metrics, error over the least possible: one start
# 1.2 to 1.4, these 8 1.0 to 1.1.
STARTS = 8
# Vectors in one product: bounds the scores, [PIECE, entries], to some tens of MB.
PIECE = 8192


@cache
def _pairs(width: int) -> tuple[list[int], list[int]]:
    """Row and column numbers of the upper triangle, diagonal first."""
    rows, columns = np.triu_indices(width, 1)
    return [*range(width), *rows.tolist()], [*range(width), *columns.tolist()]


@cache
def _products(entries: bytes, width: int) -> FloatArray:
    """float32 [width (width + 1) / 2 + width, n]: products of columns, doubled off the diagonal, then -2 * columns."""
    table = np.frombuffer(entries, dtype=np.float32).reshape(-1, width)
    first, second = _pairs(width)
    products = table[:, first] * table[:, second]
    products[:, width:] *= 2
    return np.ascontiguousarray(np.concatenate([products, -2 * table], axis=1).T)


def products_of(table: FloatArray) -> FloatArray:
    """What a metric's numbers multiply, for each row of `table`."""
    return _products(np.ascontiguousarray(table, dtype=np.float32).tobytes(), table.shape[1])


def scores(quadratic: Array, linear: Array, table: FloatArray) -> Array:
    """[n, entries] of gᵀ Q g - 2 bᵀ g.

    quadratic: [n, width, width] or [1, width, width], symmetric.  linear: [n, width].  table: [entries, width].
    """
    xp = array_namespace(linear)
    first, second = _pairs(table.shape[1])
    flat = xp.stack([quadratic[:, i, j] for i, j in zip(first, second, strict=True)], axis=1)
    flat = xp.broadcast_to(flat, (linear.shape[0], flat.shape[1]))
    return xp.concat([flat, linear], axis=1) @ xp.asarray(products_of(table), device=device(linear))


@cache
def legal_signs(width: int, is_even: bool) -> FloatArray:
    """float32 [masks, width]; row number = stored mask."""
    return sign_table(7) if is_even else codebook_signs(np.arange(1 << width, dtype=np.uint8), width)


def nearest_signed_under_metric(y: Array, metric: Array, table: VectorTable, index_bits: int, is_even: bool) -> Array:
    """Codes int32 [n] of y [unit, n], in units of the scale, as `round_signed` makes them.

    metric: [unit, unit], symmetric, positive semidefinite.
    """
    xp = array_namespace(y)
    metric = _normalized(metric)
    pieces = [
        _nearest_signed(y[:, start : start + PIECE], metric, table, index_bits, is_even)
        for start in range(0, max(y.shape[1], 1), PIECE)
    ]
    return xp.concat(pieces)


def nearest_entries_under_metric(y: Array, metric: Array, table: VectorTable) -> Found:
    """Entry without signs of least (y - g)ᵀ M (y - g) for each vector of y [unit, n]; score: that error."""
    xp = array_namespace(y)
    metric = _normalized(metric)
    found = []
    for start in range(0, max(y.shape[1], 1), PIECE):
        target = y[:, start : start + PIECE].T
        pull = target @ metric
        score = scores(metric[None, :, :], pull, table.entries)
        error = xp.min(score, axis=1) + xp.sum(pull * target, axis=1)
        found.append(Found(xp.astype(xp.argmin(score, axis=1), xp.int32), error))
    return Found(xp.concat([part.index for part in found]), xp.concat([part.score for part in found]))


def _normalized(metric: Array) -> Array:
    """Only ratios count; a metric of any size then keeps the scores in range."""
    xp = array_namespace(metric)
    metric = xp.astype(metric, xp.float32)
    return metric / xp.clip(xp.max(xp.abs(metric)), 1e-30, None)


def _nearest_signed(y: Array, metric: Array, table: VectorTable, index_bits: int, is_even: bool) -> Array:
    xp = array_namespace(y)
    unit, width = y.shape[0], table.entries.shape[1]
    parts = unit // width
    diagonal = xp.stack([metric[i, i] for i in range(unit)])
    start = round_signed(y, xp.broadcast_to(diagonal[:, None], y.shape), table, index_bits, is_even).codes
    pull = y.T @ metric
    start_indices = [(start >> (index_bits * part)) & ((1 << index_bits) - 1) for part in range(parts)]
    signs = legal_signs(unit, is_even)
    first = _sign_scores(_levels(start_indices, table), metric, pull, signs)
    best, codes = xp.full_like(pull[:, 0], float("inf")), start
    for mask in _best_of_each_kind(first):
        indices = list(start_indices)
        _choose_entries_(indices, take(signs, mask), metric, pull, table)
        score = _sign_scores(_levels(indices, table), metric, pull, signs)
        found = xp.astype(xp.argmin(score, axis=1), xp.int32) << (index_bits * parts)
        for part, index in enumerate(indices):
            found = found | (index << (index_bits * part))
        error = xp.min(score, axis=1)
        is_better = error < best
        best, codes = xp.where(is_better, error, best), xp.where(is_better, found, codes)
    return xp.astype(codes, xp.int32)


def _levels(indices: list[Array], table: VectorTable) -> Array:
    """Unsigned levels [n, unit] of the entries."""
    return array_namespace(indices[0]).concat([take(table.entries, index) for index in indices], axis=1)


def _sign_scores(level: Array, metric: Array, pull: Array, signs: FloatArray) -> Array:
    """Score of every legal mask for given entries: [n, masks]."""
    return scores(level[:, :, None] * metric[None, :, :] * level[:, None, :], level * pull, signs)


def _choose_entries_(indices: list[Array], sign: Array, metric: Array, pull: Array, table: VectorTable) -> None:
    """Put the best entries under given signs [n, unit] into `indices`, one part after the other."""
    xp = array_namespace(sign)
    width = table.entries.shape[1]
    signed_metric = sign[:, :, None] * metric[None, :, :] * sign[:, None, :]
    linear = sign * pull
    for part in range(len(indices)):
        own = slice(part * width, (part + 1) * width)
        rest = linear[:, own]
        if len(indices) > 1:
            other = slice((1 - part) * width, (2 - part) * width)
            level = take(table.entries, indices[1 - part])
            rest = rest - xp.sum(signed_metric[:, own, other] * level[:, None, :], axis=2)
        best = xp.argmin(scores(signed_metric[:, own, own], rest, table.entries), axis=1)
        indices[part] = xp.astype(best, xp.int32)


def _best_of_each_kind(scores_of_masks: Array) -> list[Array]:
    """The best mask [n] of those with each value of the lowest bits; scores_of_masks: [n, masks]."""
    xp = array_namespace(scores_of_masks)
    kinds = xp.reshape(scores_of_masks, (scores_of_masks.shape[0], -1, STARTS))
    best = xp.astype(xp.argmin(kinds, axis=1), xp.int32)
    return [best[:, kind] * STARTS + kind for kind in range(STARTS)]
