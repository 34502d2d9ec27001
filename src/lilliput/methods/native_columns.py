# SPDX-License-Identifier: Apache-2.0
"""The fast way through the columns of a block: the native core's loops, where a format's values are lines per group.

The loops in methods/feedback.py and descent.py over torch arrays are the meaning, and what runs on a GPU, for codes of
several columns, and without the native core. Decisions are the same but for the order of float32 sums.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from lilliput.arrays import Array, FloatArray
from lilliput.formats import NumberFormat
from lilliput.formats.number_format import Parameters

if TYPE_CHECKING:
    import torch

    from lilliput import _native


@dataclass(frozen=True, slots=True)
class NativeLines:
    """Lines of the groups of some rows, as the native core holds them."""

    lines: _native.GroupLines

    def feed_back(self, work: FeedbackColumns, threads: int) -> None:
        """Decide a block; writes `work.codes` and `work.error`."""
        from lilliput import _native

        _native.feed_back_columns(
            lines=self.lines,
            order=np.asarray(work.order, dtype=np.int32),
            target=work.target.numpy(),
            original=work.original.numpy(),
            feedback=work.feedback.contiguous().numpy(),
            codes=work.codes.numpy(),
            error=work.error.numpy(),
            threads=threads,
        )

    def descend(self, work: DescentColumns, threads: int) -> None:
        """One pass over a block; writes `work.codes` and `work.moves`."""
        from lilliput import _native

        _native.descend_columns(
            lines=self.lines,
            hessian=work.hessian.contiguous().numpy(),
            gradient=work.gradient.numpy(),
            values=work.values.numpy(),
            codes=work.codes.numpy(),
            moves=work.moves.numpy(),
            threads=threads,
        )


@dataclass(frozen=True, slots=True)
class FeedbackColumns:
    """One block under feedback: float32 views in the order of decisions; codes uint8 in the order of storage.

    order: the column of `codes` that each place decides.  feedback: [columns, columns], strictly upper.
    target, original, error, codes: [rows, columns].
    """

    order: list[int]
    target: torch.Tensor
    original: torch.Tensor
    feedback: torch.Tensor
    codes: torch.Tensor
    error: torch.Tensor


@dataclass(frozen=True, slots=True)
class DescentColumns:
    """One block under descent, in the order of storage. All [rows, columns] but the hessian, [columns, columns]."""

    hessian: torch.Tensor
    gradient: torch.Tensor
    values: torch.Tensor
    codes: torch.Tensor
    moves: torch.Tensor


def native_lines(number_format: NumberFormat, parameters: Parameters, shape: tuple[int, int]) -> NativeLines | None:
    """Lines of rows and columns of that shape; None where the values are no lines or there is no native core.

    parameters: torch tensors or numpy arrays on the CPU.
    """
    native = _native_core()
    if native is None:
        return None
    found = number_format.group_lines(parameters, shape[0])
    if found is None:
        return None
    numbers = {"scale": found.scale, "inverse": found.inverse, "offset": found.offset, "zero_point": found.zero_point}
    return NativeLines(
        native.GroupLines(
            **{name: None if array is None else _floats(array, found.scale.shape) for name, array in numbers.items()},
            group=found.group or shape[1],
            numbers=found.levels.numbers,
            codes=found.levels.codes,
        )
    )


def _floats(array: Array, shape: tuple[int, ...]) -> FloatArray:
    return np.ascontiguousarray(np.broadcast_to(np.asarray(array), shape), dtype=np.float32)


@cache
def _native_core() -> ModuleType | None:
    try:
        from lilliput import _native
    except ImportError:  # the array code is complete on its own; only slower
        return None
    return _native if hasattr(_native, "GroupLines") else None
