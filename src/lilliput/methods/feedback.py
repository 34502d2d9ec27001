# SPDX-License-Identifier: Apache-2.0
"""Feedback: each column is rounded so as to undo what the columns before it did to the layer's outputs.

Problem   rounding each weight on its own ignores that inputs are correlated: the error of one column can be taken back
          by its neighbours, at no cost in bytes.
Idea      GPTQ / LDLQ on the format's exact grid. Columns are decided one after the other against the factor of the
          Hessian E[x x^T] (methods/factor.py). A block's scales are searched when the loop reaches it, from weights
          that already carry the feedback, with the importance R_jj^2 that an error has inside the loop. Afterwards
          coordinate descent on tr(D H D^T) with a least-squares refit of the scales (methods/descent.py).
          Codes of several columns (IQ2, IQ3) are decided together under the small metric of their unit.
Changes   from GPTQ: blocks in order of their weight and columns in order of theirs inside a block, so that stored
          groups stay whole; scales weighted and searched instead of absmax; values exactly as the file will hold them
          (fp16 scales, integer scale codes) in the loop; polished afterwards.
Cost      per weight about columns operations for the feedback, 2 * columns for the descent's first gradient and for
          each of its sweeps: matrix products, for formats whose columns the native loops decide (native_columns.py).
Not when  there is no text to calibrate on: the Hessian must be that of real inputs. The pipeline keeps the baseline for
          a tensor whose loss on held-out text does not fall.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from lilliput.arrays import FloatArray
from lilliput.errors import CalibrationError
from lilliput.formats import Encoded, NumberFormat, Planes
from lilliput.formats.ordered_groups import OrderedGroups
from lilliput.formats.outliers import WithOutliers
from lilliput.methods.column_order import quantize_in_order
from lilliput.methods.descent import DescentOptions, descend
from lilliput.methods.factor import factor_of
from lilliput.methods.method import Needs
from lilliput.methods.native_columns import FeedbackColumns
from lilliput.methods.torch_format import TorchFormat, to_encoded
from lilliput.records import LayerInputs

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class FeedbackOptions:
    """descent: what follows the loop, None for nothing."""

    descent: DescentOptions | None = field(default_factory=DescentOptions)


class Feedback:
    """GPTQ / LDLQ with searched scales, then coordinate descent."""

    name: str = "feedback"
    paper: str = "https://arxiv.org/abs/2210.17323 (GPTQ), https://arxiv.org/abs/2307.13304 (LDLQ)"
    needs: Needs = "hessian"
    baseline: str | None = "searched_scales"

    def __init__(self, options: FeedbackOptions | None = None) -> None:
        self._options = options or FeedbackOptions()

    def supports(self, number_format: NumberFormat) -> bool:
        """Every format that has scales and encodes; outliers' places say nothing to a loop over blocks of columns."""
        has_scales = number_format.can_encode and bool(number_format.scopes)
        return has_scales and not isinstance(number_format, WithOutliers)

    def quantize(self, number_format: NumberFormat, weight: FloatArray, inputs: LayerInputs, *, threads: int) -> Planes:
        """Float32 weight [rows, columns] -> stored planes. Raises CalibrationError without a Hessian."""
        if isinstance(number_format, OrderedGroups):
            return quantize_in_order(self, number_format, weight, inputs, threads=threads)
        return number_format.pack(feed_back(number_format, weight, inputs, self._options, threads=threads))


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
    torch_format = TorchFormat(number_format, weight.shape[1], threads=threads)
    work = _Feedback(torch_format, torch.from_numpy(np.ascontiguousarray(weight)), inputs)
    for first in range(0, weight.shape[1], torch_format.panel):
        work.decide_panel(first)
    assert work.codes is not None
    if options.descent is not None:
        descend(torch_format, work.weight, work.factor.hessian, work.codes, work.parameters, options.descent)
    return to_encoded(work.codes, work.parameters)


class _Feedback:
    """One weight matrix: what is decided so far, as torch tensors on the Hessian's device.

    weight: [rows, columns] float32.  codes: [rows, columns / unit].
    parameters: of the whole matrix; filled block by block where their scope lies inside a block.
    """

    def __init__(self, torch_format: TorchFormat, weight: torch.Tensor, inputs: LayerInputs) -> None:
        self.format = torch_format
        self.factor = factor_of(inputs, torch_format.block, torch_format.unit)
        if len(self.factor.order) != weight.shape[1]:
            raise CalibrationError(f"the Hessian has {len(self.factor.order)} inputs, the weight {weight.shape[1]}")
        self.weight = weight.to(self.factor.hessian.device)
        self.codes: torch.Tensor | None = None
        self._wide = torch_format.fit_wide(self.weight, self.factor.hessian.diagonal())
        self.parameters = dict(self._wide)
        # In the order of decisions, as the feedback is.
        self._original = self.weight[:, self.factor.order]
        self._error = self.weight.new_zeros(self.weight.shape)

    def decide_panel(self, first: int) -> None:
        """Blocks of the panel at place `first` of the order, from what the panels before it left."""
        panel = slice(first, first + self.format.panel)
        target = self._original[:, panel]
        if first:
            target = target - self._error[:, :first] @ self.factor.feedback[:first, panel]
        for start in range(first, panel.stop, self.format.block):
            places = slice(start, start + self.format.block)
            wanted = target[:, start - first : places.stop - first]
            if start > first:
                wanted = wanted - self._error[:, first:start] @ self.factor.feedback[first:start, places]
            self._decide_block(places, wanted)

    def _decide_block(self, places: slice, target: torch.Tensor) -> None:
        """Scales, then codes of the block that is decided at these places of the order."""
        import torch

        factor, unit = self.factor, self.format.unit
        columns = factor.order[places]
        start = int(columns.min())
        local: list[int] = (columns - start).tolist()
        metric = factor.metric[places.start // unit : places.stop // unit]
        parameters = self._fit(target, start, local, metric)
        feedback, error, original = factor.feedback[places, places], self._error[:, places], self._original[:, places]
        lines = self.format.lines(parameters, target)
        if lines is not None:
            if self.codes is None:
                self.codes = self.weight.new_zeros(self.weight.shape, dtype=torch.uint8)
            codes = self.codes[:, start : start + len(local)]
            lines.feed_back(FeedbackColumns(local, target, original, feedback, codes, error), self.format.threads)
            return
        for place in range(0, len(local), unit):
            here = slice(place, place + unit)
            wanted = target[:, here]
            if place:
                wanted = wanted - error[:, :place] @ feedback[:place, here]
            at = slice(local[place], local[place] + unit)
            code = self.format.nearest_codes(wanted, parameters, at, metric[place // unit])
            error[:, here] = self.format.values(code, parameters, at) - original[:, here]
            self._keep_codes(code, (start + local[place]) // unit)

    def _keep_codes(self, code: torch.Tensor, unit_column: int) -> None:
        if self.codes is None:
            rows, columns = self.weight.shape
            self.codes = self.weight.new_zeros((rows, columns // self.format.unit), dtype=code.dtype)
        self.codes[:, unit_column] = code[:, 0]

    def _fit(self, target: torch.Tensor, start: int, local: list[int], metric: torch.Tensor) -> dict[str, torch.Tensor]:
        """Parameters of the block, fitted to what the loop wants there; their columns count from `start`."""
        import torch

        block = self.format.block
        wanted = torch.empty_like(target)
        wanted[:, local] = target
        importance = target.new_empty(block)
        importance[local] = metric.diagonal(dim1=1, dim2=2).reshape(-1)
        fitted = self.format.fit_block(wanted, importance, self._wide)
        for name, part in fitted.items():
            if name in self._wide:
                continue
            groups = part.shape[1]
            if name not in self.parameters:
                blocks = self.weight.shape[1] // block
                self.parameters[name] = part.new_zeros((part.shape[0], groups * blocks, *part.shape[2:]))
            place = start // block * groups
            self.parameters[name][:, place : place + groups] = part
        return fitted
