# SPDX-License-Identifier: Apache-2.0
"""Coordinate descent on tr(D H D^T), D = Q - W: codes one by one, scales by least squares, never uphill.

Given gradient G = D H, the best value of column j with all others fixed is q_j - G_j / H_jj; it is rounded to the grid
and taken where the loss falls. A block's outer scales are linear in its values (`NumberFormat.linear_terms`), so their
best is a tiny least-squares problem per row; it is rounded as stored and taken where the loss falls.
Columns inside a block see each other at once, other blocks through one matrix product when the block is done.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

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
    for _ in range(options.sweeps):
        if options.refits_scales and not torch_format.has_blocks:
            work.refit_scales(0, columns)
        for start in range(0, columns, torch_format.block):
            if options.refits_scales and torch_format.has_blocks:
                work.refit_scales(start, start + torch_format.block)
            work.improve_codes(start)


class _Descent:
    """values: [rows, columns] of the current codes.  gradient: (values - weight) H."""

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

    def improve_codes(self, start: int) -> None:
        """One pass over the units of the block at column `start`."""
        import torch

        unit, block = self.format.unit, self.format.block
        stop = start + block
        parameters = self.format.narrowed(self.parameters, start, stop)
        hessian = self.hessian[start:stop, start:stop]
        change = self.values.new_zeros((len(self.values), block))
        for place in range(0, block, unit):
            here, there = slice(place, place + unit), slice(start + place, start + place + unit)
            gradient = self.gradient[:, there]
            if place:
                gradient = gradient + change[:, :place] @ hessian[:place, here]
            metric = hessian[here, here]
            target = self.values[:, there] - _divided(gradient, metric)
            code = self.format.nearest_codes(target, parameters, here, metric)
            moved = self.format.values(code, parameters, here) - self.values[:, there]
            is_better = _loss_change(moved, gradient, metric) < 0.0
            change[:, here] = moved * is_better[:, None]
            unit_column = (start + place) // unit
            self.codes[:, unit_column] = torch.where(is_better, code[:, 0], self.codes[:, unit_column])
        self._apply(change, start, stop)

    def refit_scales(self, start: int, stop: int) -> None:
        """Least squares for the outer float parameters of these columns, kept where the loss falls as stored."""
        import torch

        outer = self.format.scopes[0]
        if outer.rows != 1:
            return
        block = self.format.narrowed(self.parameters, start, stop)
        codes = self.codes[:, start // self.format.unit : stop // self.format.unit]
        hessian, gradient = self.hessian[start:stop, start:stop], self.gradient[:, start:stop]
        terms = self.format.linear_terms(codes, block)
        names = [name for name in terms if self.parameters[name].is_floating_point()]
        if not names:
            return
        step = _least_squares(torch.stack([terms[name] for name in names], dim=1), hessian, gradient)
        wanted = {name: _stored(block[name], step[:, index : index + 1]) for index, name in enumerate(names)}
        moved = self.format.values(codes, {**block, **wanted}) - self.values[:, start:stop]
        is_better = (_loss_change(moved, gradient, hessian) < 0.0)[:, None]
        for name in names:
            block[name].copy_(torch.where(is_better, wanted[name], block[name]))
        self._apply(moved * is_better, start, stop)

    def _apply(self, change: torch.Tensor, start: int, stop: int) -> None:
        self.values[:, start:stop] += change
        self.gradient += change @ self.hessian[start:stop]


def _loss_change(moved: torch.Tensor, gradient: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """Change of tr(D H D^T), per row, when values move; gradient: D H before."""
    return ((2.0 * gradient + moved @ hessian) * moved).sum(1)


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
