# SPDX-License-Identifier: Apache-2.0
"""Running sums over what enters a linear layer: squares for the imatrix, products for the Hessian."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np

from lilliput.arrays import Array, DoubleArray, FloatArray
from lilliput.errors import CalibrationError
from lilliput.records import InputStatistics, LayerInputs

if TYPE_CHECKING:
    import torch

# Rows widened to float64 together: few enough to stay in the cache (8 times faster than 512 at once, 8192 features).
ROWS_AT_ONCE = 16
# Columns of a Hessian that are summed together: few do little twice, many keep the product quick.
COLUMNS_AT_ONCE = 512
# One chunk in so many is held out of the Hessian that methods see, to judge their results by.
HELD_OUT_EVERY = 8


def is_held_out(chunk: int) -> bool:
    """Whether the chunk of that number is kept from the methods, to judge their results by; none of the first seven."""
    return chunk % HELD_OUT_EVERY == HELD_OUT_EVERY - 1


class InputSums:
    """Running sums over the inputs of one or more linears. Sums are float64, on one thread, in order.

    name: the tensor that errors name.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.tokens = 0
        self._sum_of_squares: DoubleArray | None = None
        self._absmax: FloatArray | None = None

    def add(self, inputs: FloatArray) -> None:
        """inputs: [..., in_features] float32. Raises CalibrationError for NaN or Inf."""
        rows = inputs.reshape(-1, inputs.shape[-1])
        absmax = np.maximum(rows.max(axis=0), -rows.min(axis=0))
        if not np.isfinite(absmax).all():
            feature = int(np.flatnonzero(~np.isfinite(absmax))[0])
            raise CalibrationError(
                f"{self.name}: its input holds NaN or Inf (feature {feature}, token {self.tokens} or later); "
                "the model overflows on this text, or its weights are damaged"
            )
        sums = np.zeros(rows.shape[1])
        for start in range(0, len(rows), ROWS_AT_ONCE):
            wide = rows[start : start + ROWS_AT_ONCE].astype(np.float64)
            wide *= wide
            sums += wide.sum(axis=0)
        self.tokens += len(rows)
        if self._sum_of_squares is None or self._absmax is None:
            self._sum_of_squares, self._absmax = sums, absmax
        else:
            self._sum_of_squares += sums
            np.maximum(self._absmax, absmax, out=self._absmax)

    def statistics(self) -> InputStatistics:
        """What was seen so far."""
        if self._sum_of_squares is None or self._absmax is None:
            raise CalibrationError(f"{self.name}: no input reached it during calibration")
        return InputStatistics(self.tokens, self._sum_of_squares, self._absmax)


def add_products_(total: torch.Tensor, rows: torch.Tensor) -> None:
    """Add x x^T of rows [n, columns] to the upper half of total [columns, columns], and to some of the lower."""
    for start in range(0, len(total), COLUMNS_AT_ONCE):
        stop = start + COLUMNS_AT_ONCE
        total[:stop, start:stop].addmm_(rows[:, :stop].T, rows[:, start:stop])


def mirrored_(total: torch.Tensor) -> torch.Tensor:
    """The lower half made the mirror of the upper one."""
    for start in range(0, len(total), COLUMNS_AT_ONCE):
        stop = start + COLUMNS_AT_ONCE
        total[start:stop, :start] = total[:start, start:stop].T
        square = total[start:stop, start:stop]
        square.copy_(square.triu() + square.triu(1).T)
    return total


class HessianSums:
    """InputSums and the Hessian E[x x^T], those of held-out chunks apart. Products are float32, on any device.

    Those sums hold the upper half until they are asked for: a Hessian is symmetric.
    Given the float model's inputs x_f as well, also E[x_f x^T], of the chunks that methods see.
    """

    def __init__(self, name: str, *, pairs: bool = True) -> None:
        """pairs: whether the float model's inputs belong to the same tokens; those of an expert do not."""
        self.squares = InputSums(name)
        self._pairs = pairs
        self._float_inputs: torch.Tensor | None = None
        self._cross: torch.Tensor | None = None
        self._chunk = 0
        # Of the chunks that methods see, and of those held out.
        self._sums: list[torch.Tensor | None] = [None, None]
        self._tokens = [0, 0]

    def add_float(self, inputs: torch.Tensor) -> None:
        """The float model's inputs for the chunk that `add` gets next."""
        if self._pairs:
            self._float_inputs = inputs.reshape(-1, inputs.shape[-1])

    def add(self, inputs: torch.Tensor) -> None:
        """One chunk: [..., in_features] float32, of no token too. Raises CalibrationError for NaN or Inf."""
        rows = inputs.reshape(-1, inputs.shape[-1])
        part = int(is_held_out(self._chunk))
        self._chunk += 1
        if not len(rows):
            return
        self.squares.add(rows.cpu().numpy())
        self._tokens[part] += len(rows)
        total = self._sums[part]
        if total is None:
            total = self._sums[part] = rows.new_zeros((rows.shape[1], rows.shape[1]))
        add_products_(total, rows)
        if self._float_inputs is not None and part == 0:
            self._cross = _with_product(self._cross, self._float_inputs, rows)
        self._float_inputs = None

    @property
    def cross(self) -> torch.Tensor | None:
        """[in_features, in_features] float32, mean of x_f x^T; None where no x_f was given."""
        return None if self._cross is None else self._cross / self._tokens[0]

    def layer_inputs(self) -> LayerInputs:
        """Means of what was seen, nothing where no token was; the sums are given up."""
        if not self.squares.tokens:
            return LayerInputs()
        statistics = self.squares.statistics()
        means = []
        for total, tokens in zip(self._sums, self._tokens, strict=True):
            means.append(None if total is None else mirrored_(total).div_(tokens))
        self._sums = [None, None]
        hessian, held_out = cast("tuple[Array | None, Array | None]", tuple(means))
        return LayerInputs(self._tokens[0], statistics.input_mean_square, hessian, held_out)


def _with_product(total: torch.Tensor | None, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Total plus left^T right; a new total where there is none yet."""
    return left.T @ right if total is None else total.addmm_(left.T, right)
