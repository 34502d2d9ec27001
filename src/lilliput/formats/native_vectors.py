# SPDX-License-Identifier: Apache-2.0
"""The fast way to the nearest codebook vectors: the native core's search where it has one, the array code otherwise."""

from __future__ import annotations

from functools import cache

import numpy as np
from array_api_compat import array_namespace, is_numpy_array, is_torch_array

from lilliput.arrays import Array, FloatArray


def nearest_vectors(name: str, y: Array, metric: Array | None) -> Array | None:
    """Codes int32 [n] of vectors y [unit, n] in units of their scale; None where only the array code can tell.

    metric: [unit], [unit, unit] or None.  Diagonal metrics: the array code's codes; others may differ at near ties.
    """
    if not _has_native():
        return None
    from lilliput import _native

    if is_numpy_array(y):
        return _native.nearest_vectors(name, np.ascontiguousarray(y), _square(metric, len(y)))
    if is_torch_array(y) and y.device.type == "cpu":  # type: ignore[attr-defined]  # Array stands for numpy's type
        square = _square(None if metric is None else np.asarray(metric), len(y))
        threads = array_namespace(y).get_num_threads()
        found = _native.nearest_vectors(name, np.ascontiguousarray(np.asarray(y)), square, threads)
        codes: Array = array_namespace(y).asarray(found)
        return codes
    return None


def _square(metric: Array | None, unit: int) -> FloatArray:
    """The metric as [unit, unit] with a largest number of 1: only ratios count, and scores then stay in range."""
    if metric is None:
        return np.eye(unit, dtype=np.float32)
    metric = np.asarray(metric, dtype=np.float32)
    if metric.ndim == 1:
        return np.diag(metric)
    square: FloatArray = np.ascontiguousarray(metric / max(float(np.abs(metric).max()), 1e-30), dtype=np.float32)
    return square


@cache
def _has_native() -> bool:
    try:
        from lilliput import _native
    except ImportError:  # the array code is complete on its own; only slower
        return False
    return hasattr(_native, "nearest_vectors")
