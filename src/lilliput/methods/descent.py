# SPDX-License-Identifier: Apache-2.0
"""Coordinate descent on tr(D H D^T), D = Q - W: codes one by one, scales by least squares, never uphill.

Given gradient G = D H, the best value of column j with all others fixed is q_j - G_j / H_jj; it is rounded to the grid
and taken where the loss falls. A block's outer scales are linear in its values (`NumberFormat.linear_terms`), so their
best is a tiny least-squares problem per row; it is rounded as stored and taken where the loss falls.
Columns inside a block see each other at once, other blocks through one matrix product when the block is done.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lilliput.arrays import Array
from lilliput.formats import Encoded, NumberFormat

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class DescentOptions:
    """sweeps: passes over all columns.  refits_scales: least squares for the outer scales before each block's codes."""

    sweeps: int = 2
    refits_scales: bool = True


def descend(
    number_format: NumberFormat,
    weight: torch.Tensor,
    hessian: torch.Tensor,
    encoded: Encoded,
    options: DescentOptions | None = None,
) -> None:
    """Improve codes and float parameters of `encoded` (torch) in place.

    weight: [rows, columns] float32.  hessian: [columns, columns] float32.
    """
    options = options or DescentOptions()
    work = _Descent(number_format, weight, hessian, encoded)
    for _ in range(options.sweeps):
        if options.refits_scales and not work.scales_lie_in_blocks:
            work.refit_scales(0, weight.shape[1])
        for start in range(0, weight.shape[1], work.block):
            if options.refits_scales and work.scales_lie_in_blocks:
                work.refit_scales(start, start + work.block)
            work.improve_codes(start)


class _Descent:
    """values: [rows, columns] of the current codes.  gradient: (values - weight) H."""

    def __init__(
        self, number_format: NumberFormat, weight: torch.Tensor, hessian: torch.Tensor, encoded: Encoded
    ) -> None:
        self.format = number_format
        self.hessian = hessian
        self.codes = encoded.codes
        self.parameters = encoded.parameters
        columns = weight.shape[1]
        inner = [scope.columns for scope in number_format.scopes if scope.columns is not None]
        self.block = max(inner) if inner else columns
        self.scales_lie_in_blocks = number_format.scopes[0].columns is not None
        self.values: torch.Tensor = number_format.values(encoded.codes, encoded.parameters)
        self.gradient: torch.Tensor = (self.values - weight) @ hessian

    def improve_codes(self, start: int) -> None:
        """One pass over the units of the block at column `start`."""
        unit, stop = self.format.unit, start + self.block
        parameters = narrowed(self.format, self.parameters, start, stop)
        hessian = self.hessian[start:stop, start:stop]
        change = self.values.new_zeros((len(self.values), self.block))
        for place in range(0, self.block, unit):
            here = slice(place, place + unit)
            there = slice(start + place, start + place + unit)
            gradient = self.gradient[:, there]
            if place:
                gradient = gradient + change[:, :place] @ hessian[:place, here]
            metric = hessian[here, here]
            target = self.values[:, there] - _over(gradient, metric)
            code = self.format.nearest_codes(target, parameters, here, metric=metric if unit > 1 else None)
            moved = self.format.values(code, parameters, here) - self.values[:, there]
            is_better = ((2.0 * gradient + moved @ metric) * moved).sum(1, keepdim=True) < 0.0
            change[:, here] = moved * is_better
            unit_column = (start + place) // unit
            self.codes[:, unit_column] = _where(is_better[:, 0], code[:, 0], self.codes[:, unit_column])
        self._apply(change, start, stop)

    def refit_scales(self, start: int, stop: int) -> None:
        """Least squares for the outer float parameters of columns start to stop, kept where the loss falls as stored."""
        import torch

        names = [name for name in self.format.scopes[0].parameters if self.parameters[name].is_floating_point()]
        if not names or self.format.scopes[0].rows != 1:
            return
        block = narrowed(self.format, self.parameters, start, stop)
        unit = self.format.unit
        codes = self.codes[:, start // unit : stop // unit]
        terms = self.format.linear_terms(codes, block)
        stack = torch.stack([terms[name] for name in names], dim=1)
        hessian, gradient = self.hessian[start:stop, start:stop], self.gradient[:, start:stop]
        curvature = ((stack @ hessian) @ stack.transpose(1, 2)).double()
        slope = -(stack @ gradient[:, :, None]).double()
        scale = curvature.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-30)
        ridge = torch.eye(len(names), dtype=torch.float64, device=scale.device) * (1e-9 * scale)[:, None, None]
        step = torch.linalg.solve(curvature + ridge, slope)[:, :, 0].float()
        wanted = {
            name: _stored(block[name], block[name].float() + step[:, index : index + 1])
            for index, name in enumerate(names)
        }
        moved = self.format.values(codes, {**block, **wanted}) - self.values[:, start:stop]
        is_better = ((2.0 * gradient + moved @ hessian) * moved).sum(1, keepdim=True) < 0.0
        for name in names:
            block[name].copy_(_where(is_better, wanted[name], block[name]))
        self._apply(moved * is_better, start, stop)

    def _apply(self, change: torch.Tensor, start: int, stop: int) -> None:
        self.values[:, start:stop] += change
        self.gradient += change @ self.hessian[start:stop]


def narrowed(number_format: NumberFormat, parameters: Mapping[str, Array], start: int, stop: int) -> dict[str, Array]:
    """Views of the parameters that columns start to stop use; wider scopes stay whole."""
    found: dict[str, Array] = {}
    for scope in number_format.scopes:
        for name in scope.parameters:
            whole = parameters[name]
            if scope.columns is None:
                found[name] = whole
            else:
                found[name] = whole[:, start // scope.columns : -(-stop // scope.columns)]
    return found


def _over(gradient: torch.Tensor, metric: torch.Tensor) -> torch.Tensor:
    """Gradient times the inverse of the metric [unit, unit]."""
    import torch

    if metric.shape[0] == 1:
        return gradient / metric[0, 0]
    solved: torch.Tensor = torch.linalg.solve(metric.double(), gradient.double(), left=False).float()
    return solved


def _stored(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """As the file will hold it; a value that is not finite or changes its sign stays as it was."""
    stored = new.to(old.dtype)
    is_usable = stored.isfinite() & (stored.float() * old.float() > 0.0)
    return _where(is_usable, stored, old)


def _where(condition: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.where(condition, first, second)
