# SPDX-License-Identifier: Apache-2.0
"""Feedback: each column is rounded so as to undo what the columns before it did to the layer's outputs.

Problem   rounding each weight on its own ignores that inputs are correlated: the error of one column can be taken back
          by its neighbours, at no cost in bytes.
Idea      GPTQ / LDLQ on the format's exact grid. Columns are decided one after the other against the factor of the
          Hessian E[x x^T] (methods/factor.py); a block's scales are searched when the loop reaches it, from weights that
          already carry the feedback, with the importance R_jj^2 that an error has inside the loop; then coordinate
          descent on tr(D H D^T) with a least-squares refit of the scales (methods/descent.py).
          Codes of several columns (IQ2, IQ3) are decided together under the small metric of their unit.
Changes   from GPTQ: blocks in order of their weight and columns in order of theirs inside a block, so that stored
          groups stay whole; scales weighted and searched instead of absmax; values exactly as the file will hold them
          (fp16 scales, integer scale codes) in the loop; polished afterwards.
Cost      per weight about 2 * columns operations for the feedback and 4 * columns for each sweep of the descent.
Not when  there is no text to calibrate on: the Hessian must be that of real inputs. The pipeline keeps the baseline for
          a tensor whose loss on held-out text does not fall.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lilliput.arrays import Array, FloatArray
from lilliput.errors import CalibrationError
from lilliput.formats import Encoded, NumberFormat, Planes
from lilliput.methods.descent import DescentOptions, descend
from lilliput.methods.factor import Factor, factor_of
from lilliput.methods.method import Needs
from lilliput.methods.searched_scales import native_encoders
from lilliput.records import LayerInputs

if TYPE_CHECKING:
    import torch

# Columns decided between two updates of all later ones where the format has no blocks of its own.
FREE_BLOCK = 128
# `error_weights` with so large a share is the importance alone; inside the loop that is the exact cost of an error.
IMPORTANCE_ALONE = 1e8


@dataclass(frozen=True, slots=True)
class FeedbackOptions:
    """descent: what follows the loop, None for nothing."""

    descent: DescentOptions | None = DescentOptions()


class Feedback:
    """GPTQ / LDLQ with searched scales, then coordinate descent."""

    name: str = "feedback"
    paper: str = "https://arxiv.org/abs/2210.17323 (GPTQ), https://arxiv.org/abs/2307.13304 (LDLQ)"
    needs: Needs = "hessian"
    baseline: str | None = "searched_scales"

    def __init__(self, options: FeedbackOptions | None = None) -> None:
        self._options = options or FeedbackOptions()

    def supports(self, number_format: NumberFormat) -> bool:
        """Every format that has scales and encodes."""
        return number_format.can_encode and bool(number_format.scopes)

    def quantize(
        self, number_format: NumberFormat, weight: FloatArray, inputs: LayerInputs, *, threads: int
    ) -> Planes:
        """Float32 weight [rows, columns] -> stored planes. Raises CalibrationError without a Hessian."""
        encoded = feed_back(number_format, weight, inputs, self._options, threads=threads)
        return number_format.pack(encoded)


def feed_back(
    number_format: NumberFormat,
    weight: FloatArray,
    inputs: LayerInputs,
    options: FeedbackOptions | None = None,
    *,
    threads: int = 1,
) -> Encoded:
    """Codes and parameters (numpy) of weight [rows, columns] for inputs with a Hessian.

    Raises CalibrationError for a Hessian that is absent, not finite or of another size.
    """
    import torch

    options = options or FeedbackOptions()
    number_format.check_columns("weight", weight.shape[1])
    problem = Problem(number_format, torch.from_numpy(np.ascontiguousarray(weight)), inputs, threads)
    problem.decide_all()
    if options.descent is not None:
        descend(number_format, problem.weight, problem.factor.hessian, problem.encoded(), options.descent)
    encoded = problem.encoded()
    return Encoded(_numpy(encoded.codes), {name: _numpy(array) for name, array in encoded.parameters.items()})


class Problem:
    """One weight matrix under feedback: what is decided so far. Arrays are torch tensors on the Hessian's device.

    weight: [rows, columns] float32.  codes: [rows, columns / unit].
    parameters: of the whole matrix; filled block by block where their scope lies inside a block.
    """

    def __init__(self, number_format: NumberFormat, weight: torch.Tensor, inputs: LayerInputs, threads: int) -> None:
        rows, columns = weight.shape
        self.format = number_format
        self.threads = threads
        self.block = block_of(number_format, columns)
        self.factor: Factor = factor_of(inputs, self.block, number_format.unit)
        if len(self.factor.order) != columns:
            raise CalibrationError(f"the Hessian has {len(self.factor.order)} inputs, the weight {columns}")
        self.weight = weight.to(self.factor.hessian.device)
        self.codes: torch.Tensor | None = None
        self.parameters: dict[str, torch.Tensor] = {}
        self._outer = self._fit_wide_scopes()
        # In the order of decisions, as the feedback is.
        self._wanted = self.weight[:, self.factor.order]
        self._error = self.weight.new_zeros((rows, columns))

    def encoded(self) -> Encoded:
        """Everything decided; torch."""
        assert self.codes is not None
        return Encoded(self.codes, self.parameters)

    def decide_all(self) -> None:
        """Block after block."""
        for first in range(0, self.weight.shape[1], self.block):
            self._decide_block(first)

    def _decide_block(self, first: int) -> None:
        """Scales, then codes of the block that is decided at place `first` of the order."""
        factor, unit = self.factor, self.format.unit
        places = slice(first, first + self.block)
        columns = factor.order[places]
        start = int(columns.min())
        local = columns - start
        target = self._wanted[:, places]
        if first:
            target = target - self._error[:, :first] @ factor.feedback[:first, places]
        parameters = self._fit_block(target, start, local, factor.metric[first // unit : (first + self.block) // unit])
        feedback = factor.feedback[places, places]
        error = self._error[:, places]
        for place in range(0, self.block, unit):
            here = slice(place, place + unit)
            wanted = target[:, here]
            if place:
                wanted = wanted - error[:, :place] @ feedback[:place, here]
            column = int(local[place])
            at = slice(column, column + unit)
            metric = factor.metric[(first + place) // unit] if unit > 1 else None
            code = self.format.nearest_codes(wanted, parameters, at, metric=metric)
            error[:, here] = self.format.values(code, parameters, at) - self._wanted[:, first + place : first + place + unit]
            self._keep_codes(code, (start + column) // unit)

    def _keep_codes(self, code: Array, unit_column: int) -> None:
        if self.codes is None:
            shape = (self.weight.shape[0], self.weight.shape[1] // self.format.unit)
            self.codes = self.weight.new_zeros(shape, dtype=code.dtype)
        self.codes[:, unit_column] = code[:, 0]

    def _fit_wide_scopes(self) -> dict[str, Array]:
        """Parameters of scopes that reach beyond a block, from the whole matrix before the loop."""
        outer: dict[str, Array] = {}
        importance = self.factor.hessian.diagonal()
        for index, scope in enumerate(self.format.scopes):
            if scope.columns is None or scope.columns > self.block:
                outer.update(self.format.fit(self.weight, importance, scope=index, outer=outer))
        self.parameters.update(outer)
        return outer

    def _fit_block(self, target: torch.Tensor, start: int, local: torch.Tensor, metric: torch.Tensor) -> dict[str, Array]:
        """Parameters of the block, fitted to what the loop wants there; columns count from `start`."""
        import torch

        wanted = torch.empty_like(target)
        wanted[:, local] = target
        importance = target.new_empty(self.block)
        importance[local] = metric.diagonal(dim1=1, dim2=2).reshape(-1)
        fitted = fitted_parameters(self.format, wanted, importance, self._outer, threads=self.threads)
        for name, array in fitted.items():
            if name in self._outer:
                continue
            groups = array.shape[1]
            if name not in self.parameters:
                self.parameters[name] = array.new_zeros((array.shape[0], groups * (self.weight.shape[1] // self.block)))
            place = start // self.block * groups
            self.parameters[name][:, place : place + groups] = array
        return fitted


def fitted_parameters(
    number_format: NumberFormat, target: torch.Tensor, importance: torch.Tensor, outer: Mapping[str, Array], *, threads: int
) -> dict[str, Array]:
    """Parameters of every scope for target [rows, block], natively where that is possible. importance: [block]."""
    import torch

    scaled = (importance / importance.mean()).clamp_min(1e-6)
    if not outer and target.device.type == "cpu" and number_format.name in native_encoders():
        from lilliput import _native

        blocks = _native.encode(
            number_format.name, target.contiguous().numpy(), scaled.numpy(), IMPORTANCE_ALONE, threads
        )
        parameters = number_format.unpack({"blocks": blocks}, target.shape[1]).parameters
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in parameters.items()}
    fitted: dict[str, Array] = dict(outer)
    for index, scope in enumerate(number_format.scopes):
        if not fitted.keys() >= set(scope.parameters):
            fitted.update(number_format.fit(target, scaled, scope=index, outer=fitted))
    return fitted


def block_of(number_format: NumberFormat, columns: int) -> int:
    """Columns whose parameters are chosen together: the widest scope narrower than the whole row."""
    inner = [scope.columns for scope in number_format.scopes if scope.columns is not None]
    if inner:
        return max(inner)
    # Any size will do; the largest that divides the row into equal blocks of whole units.
    return next(size for size in range(min(FREE_BLOCK, columns), 0, -1) if columns % size == 0 and size % number_format.unit == 0)


def _numpy(array: Array) -> Array:
    return np.asarray(array.cpu()) if hasattr(array, "cpu") else array
