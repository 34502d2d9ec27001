# SPDX-License-Identifier: Apache-2.0
"""Coordinate descent on tr(D H D^T), D = Q - W: codes one by one, scales by least squares, never uphill.

Given gradient G = D H, the best value of column j with all others fixed is q_j - G_j / H_jj; it is rounded to the grid
and taken where the loss falls. A block's outer scales are linear in its values (`NumberFormat.linear_terms`), so their
best is a tiny least-squares problem per row; it is rounded as stored and taken where the loss falls.
Columns inside a block see each other at once, other blocks of its panel when it is done, all others through one matrix
product when the panel is done.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lilliput.methods.native_columns import DescentColumns
from lilliput.methods.torch_format import TorchFormat

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class DescentOptions:
    """sweeps: passes over all columns.  refits_scales: least squares for the outer scales before each block's codes."""

    sweeps: int = 2
    refits_scales: bool = True


def descend(
    torch_format: TorchFormat,
    weight: torch.Tensor,
    hessian: torch.Tensor,
    codes: torch.Tensor,
    parameters: dict[str, torch.Tensor],
    options: DescentOptions,
) -> None:
    """Improve codes [rows, columns / unit] and the float parameters in place.

    weight: [rows, columns] float32.  hessian: [columns, columns] float32.
    """
    work = _Descent(torch_format, weight, hessian, codes, parameters)
    columns = weight.shape[1]
    for sweep in range(options.sweeps):
        if options.refits_scales and not torch_format.has_blocks:
            work.refit_whole_rows()
        for start in range(0, columns, torch_format.panel):
            work.improve_panel(start, refits_scales=options.refits_scales and torch_format.has_blocks)
            # Nobody looks back at columns that are done for good.
            work.spread_panel(start, first=start + torch_format.panel if sweep == options.sweeps - 1 else 0)


class _Descent:
    """values: [rows, columns] of the current codes.  gradient: (values - weight) H, but for the panel at work.

    moved: [rows, panel], how far the values of the panel have moved since the gradient saw it.
    """

    def __init__(
        self,
        torch_format: TorchFormat,
        weight: torch.Tensor,
        hessian: torch.Tensor,
        codes: torch.Tensor,
        parameters: dict[str, torch.Tensor],
    ) -> None:
        self.format = torch_format
        self.hessian = hessian
        self.codes = codes
        self.parameters = parameters
        self.values = torch_format.values(codes, parameters)
        self.gradient = (self.values - weight) @ hessian
        self.moved = self.values[:, : torch_format.panel]

    def improve_panel(self, start: int, *, refits_scales: bool) -> None:
        """Scales and codes of the blocks of the panel at column `start`, one block after the other."""
        panel, block = self.format.panel, self.format.block
        gradient = self.gradient[:, start : start + panel].clone()
        self.moved = self.values.new_zeros((len(self.values), panel))
        for first in range(start, start + panel, block):
            columns = slice(first, first + block)
            own = slice(first - start, first - start + block)
            if refits_scales:
                self._move(self._refit(columns, gradient[:, own]), columns, own, gradient)
            self._move(self._improved(columns, gradient[:, own]), columns, own, gradient)

    def spread_panel(self, start: int, *, first: int) -> None:
        """Let the gradient of the columns from `first` on see what moved in the panel at column `start`."""
        self.gradient[:, first:].addmm_(self.moved, self.hessian[start : start + self.format.panel, first:])

    def _move(self, change: torch.Tensor | None, columns: slice, own: slice, gradient: torch.Tensor) -> None:
        """Move the values of a block, columns `own` of the panel, and the panel's gradient with them."""
        if change is None:
            return
        self.values[:, columns] += change
        self.moved[:, own] += change
        first = columns.start - own.start
        gradient.addmm_(change, self.hessian[columns, first : first + self.format.panel])

    def _improved(self, columns: slice, gradient: torch.Tensor) -> torch.Tensor:
        """One pass over the codes of a block; how far its values should move."""
        import torch

        unit, block = self.format.unit, self.format.block
        parameters = self.format.narrowed(self.parameters, columns.start, columns.stop)
        hessian, values = self.hessian[columns, columns], self.values[:, columns]
        codes = self.codes[:, columns.start // unit : columns.stop // unit]
        change = values.new_zeros(values.shape)
        lines = self.format.lines(parameters, values)
        if lines is not None:
            lines.descend(DescentColumns(hessian, gradient, values, codes, change), self.format.threads)
            return change
        for place in range(0, block, unit):
            here = slice(place, place + unit)
            slope = gradient[:, here]
            if place:
                slope = slope + change[:, :place] @ hessian[:place, here]
            metric = hessian[here, here]
            target = values[:, here] - _divided(slope, metric)
            code = self.format.nearest_codes(target, parameters, here, metric)
            moved = self.format.values(code, parameters, here) - values[:, here]
            is_better = _loss_change(moved, slope, moved @ metric) < 0.0
            change[:, here] = moved * is_better[:, None]
            codes[:, place // unit] = torch.where(is_better, code[:, 0], codes[:, place // unit])
        return change

    def refit_whole_rows(self) -> None:
        """Least squares for the scales of rows that have no blocks."""
        everything = slice(0, self.values.shape[1])
        change = self._refit(everything, self.gradient)
        if change is not None:
            self.values += change
            self.gradient.addmm_(change, self.hessian)

    def _refit(self, columns: slice, gradient: torch.Tensor) -> torch.Tensor | None:
        """Least squares for the outer float parameters of these columns, kept where the loss falls as stored.

        How far the values should move; None where there is nothing to fit.
        """
        import torch

        if self.format.scopes[0].rows != 1:
            return None
        block = self.format.narrowed(self.parameters, columns.start, columns.stop)
        codes = self.codes[:, columns.start // self.format.unit : columns.stop // self.format.unit]
        hessian = self.hessian[columns, columns]
        terms = self.format.linear_terms(codes, block)
        names = [name for name in terms if self.parameters[name].is_floating_point()]
        if not names:
            return None
        step = _least_squares(torch.stack([terms[name] for name in names], dim=1), hessian, gradient)
        wanted = {name: _stored(block[name], step[:, index : index + 1]) for index, name in enumerate(names)}
        moved = self.format.values(codes, {**block, **wanted}) - self.values[:, columns]
        is_better = (_loss_change(moved, gradient, moved @ hessian) < 0.0)[:, None]
        for name in names:
            block[name].copy_(torch.where(is_better, wanted[name], block[name]))
        return moved * is_better


def _loss_change(moved: torch.Tensor, gradient: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
    """Change of tr(D H D^T), per row, when values move; gradient: D H before.  spread: moved H."""
    return ((2.0 * gradient + spread) * moved).sum(1)


def _least_squares(terms: torch.Tensor, hessian: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Steps [rows, k] of the parameters whose terms are [rows, k, columns] that lower the loss most."""
    import torch

    curvature = ((terms @ hessian) @ terms.transpose(1, 2)).double()
    slope = -(terms @ gradient[:, :, None]).double()
    scale = curvature.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-30)
    ridge = torch.eye(terms.shape[1], dtype=torch.float64, device=terms.device) * (1e-9 * scale)[:, None, None]
    solved: torch.Tensor = torch.linalg.solve(curvature + ridge, slope)
    return solved[:, :, 0].float()


def _divided(gradient: torch.Tensor, metric: torch.Tensor) -> torch.Tensor:
    """Gradient [rows, unit] times the inverse of metric [unit, unit]."""
    import torch

    if len(metric) == 1:
        return gradient / metric[0, 0]
    solved: torch.Tensor = torch.linalg.solve(metric.double(), gradient.double(), left=False)
    return solved.float()


def _stored(old: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """Old + step as the file will hold it; a value that is not finite or changes its sign stays as it was."""
    import torch

    new = (old.float() + step).to(old.dtype)
    is_usable = new.isfinite() & (new.float() * old.float() > 0.0)
    return torch.where(is_usable, new, old)
