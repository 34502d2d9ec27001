# SPDX-License-Identifier: Apache-2.0
"""SparseGPT: half of the weights become zero and the others make up for it, in one pass with quantization.

Problem   a mask chosen once ignores that the weights that stay can take over what the others did.
Idea      the loop of error feedback (methods/feedback.py): when it reaches a block of columns, each row drops what
          costs least there, weight^2 * R_jj^2; a dropped weight is an error like a rounding error, and the columns
          after it take it back. Rounding to the grid happens in the same step, so that both are corrected together.
Changes   blocks and columns in the order of `factor`; scales searched at block entry on the weights that stay; the mask
          of 2:4 is chosen for a whole block at its entry.
Cost      that of feedback without its descent: 2 * columns operations per weight.
Not when  there is no Hessian (`wanda`), or the mask brings nothing: see methods/masks.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lilliput.arrays import FloatArray
from lilliput.formats import NumberFormat, Planes
from lilliput.formats.ordered_groups import OrderedGroups
from lilliput.formats.outliers import WithOutliers
from lilliput.methods.factor import Factor, factor_of
from lilliput.methods.masks import SERVES, Pattern, check_zero, has_exact_zero, kept, masked_name
from lilliput.methods.method import Needs
from lilliput.methods.torch_format import TorchFormat, to_encoded
from lilliput.records import LayerInputs

if TYPE_CHECKING:
    import torch


class SparseGpt:
    """Masks and codes together, under error feedback."""

    paper: str = "https://arxiv.org/abs/2301.00774 (SparseGPT)"
    needs: Needs = "hessian"
    serves: str = SERVES + "; of codes that are chosen one by one"

    def __init__(self, pattern: Pattern) -> None:
        """Named after the pattern."""
        self.name = masked_name("sparse_gpt", pattern)
        self.baseline: str | None = masked_name("magnitude_mask", pattern)
        self._pattern = pattern

    def supports(self, number_format: NumberFormat) -> bool:
        """Formats with an exact zero and scales, whose codes are chosen one by one."""
        is_plain = bool(number_format.scopes) and not isinstance(number_format, WithOutliers | OrderedGroups)
        return is_plain and number_format.unit == 1 and has_exact_zero(number_format)

    def quantize(self, number_format: NumberFormat, weight: FloatArray, inputs: LayerInputs, *, threads: int) -> Planes:
        """Weight [rows, columns] -> stored planes. Raises CalibrationError without a Hessian."""
        import torch

        check_zero(number_format, self.name)
        number_format.check_columns("weight", weight.shape[1])
        torch_format = TorchFormat(number_format, weight.shape[1], threads=threads)
        factor = factor_of(inputs, torch_format.block, 1)
        matrix = torch.from_numpy(np.ascontiguousarray(weight)).to(factor.hessian.device)
        work = _Pruning(torch_format, factor, matrix, self._pattern)
        for first in range(0, weight.shape[1], torch_format.block):
            work.decide_block(first)
        return number_format.pack(to_encoded(work.codes, work.parameters))


class _Pruning:
    """One matrix: errors so far in the order of decisions; codes and parameters in natural order."""

    def __init__(self, torch_format: TorchFormat, factor: Factor, weight: torch.Tensor, pattern: Pattern) -> None:
        import torch

        self._format, self._factor, self._pattern = torch_format, factor, pattern
        diagonal = factor.hessian.diagonal()
        if torch_format.wide:
            # Scales of whole rows or tensors are chosen before the loop: on what Wanda's mask would leave.
            stays = _kept(weight.abs() * diagonal.sqrt(), pattern)
            self._wide = torch_format.fit_wide(torch.where(stays, weight, 0.0), diagonal)
        else:
            self._wide = {}
        self.parameters = dict(self._wide)
        self.codes = torch.zeros(weight.shape, dtype=torch.uint8, device=weight.device)
        self._original = weight[:, factor.order]
        self._error = torch.zeros_like(weight)

    def decide_block(self, first: int) -> None:
        """Mask, scales, then codes of the block at place `first` of the order."""
        import torch

        factor, block = self._factor, self._format.block
        places = slice(first, first + block)
        columns = factor.order[places]
        start = int(columns.min())
        natural = (columns - start).argsort()
        target = self._original[:, places] - self._error[:, :first] @ factor.feedback[:first, places]
        importance = factor.metric[places, 0, 0]
        # The mask looks at neighbours, so that its columns stand in natural order.
        stays = _kept(((target * target) * importance)[:, natural], self._pattern)
        wanted = torch.where(stays, target[:, natural], 0.0)
        parameters = self._format.fit_block(wanted, importance[natural], self._wide)
        self._keep(parameters, start)
        places_of = (columns - start).tolist()
        error = self._error[:, places]
        for place, column in enumerate(places_of):
            value = target[:, place] - error[:, :place] @ factor.feedback[first : first + place, first + place]
            value = torch.where(stays[:, column], value, 0.0)[:, None]
            at = slice(column, column + 1)
            if self._format.wide:
                at = slice(start + column, start + column + 1)
            code = self._format.nearest_codes(value, parameters, at, factor.metric[first + place])
            error[:, place] = self._format.values(code, parameters, at)[:, 0] - self._original[:, first + place]
            self.codes[:, start + column] = code[:, 0]

    def _keep(self, parameters: dict[str, torch.Tensor], start: int) -> None:
        """Put the block's own parameters where they belong in the matrix."""
        blocks = self._original.shape[1] // self._format.block
        for name, part in parameters.items():
            if name in self._wide:
                continue
            groups = part.shape[1]
            if name not in self.parameters:
                self.parameters[name] = part.new_zeros((part.shape[0], groups * blocks, *part.shape[2:]))
            place = start // self._format.block * groups
            self.parameters[name][:, place : place + groups] = part


def _kept(scores: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.ascontiguousarray(kept(scores.cpu().numpy(), pattern))).to(scores.device)
