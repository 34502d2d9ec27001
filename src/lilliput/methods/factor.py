# SPDX-License-Identifier: Apache-2.0
"""The triangular factor of a layer's Hessian that error feedback runs on.

With H = R R^T, R upper triangular, the loss of an error D = Q - W is tr(D H D^T) = |D R|^2, and column j of D R holds
only the errors of columns up to j. So columns can be decided one after the other: column j is rounded from what would
cancel the errors made before it, w_j - sum_i<j D_i R_ij / R_jj, and pays R_jj^2 for each squared error.
That is LDLQ (QuIP, https://arxiv.org/abs/2307.13304) and, step for step, GPTQ (https://arxiv.org/abs/2210.17323), whose
U = R^-1 is never formed here: its 1 / U_jj^2 is R_jj^2.
Formats that decide several columns at once (`unit`) get the block form: R_jj is then a small triangle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from lilliput.errors import CalibrationError
from lilliput.methods.torch_threads import torch_threads
from lilliput.records import LayerInputs

if TYPE_CHECKING:
    import torch

# Part of the mean diagonal added to all of it, as GPTQ does; raised tenfold as long as the factorization fails.
DAMPING = 0.01
# Columns that are factorized, and rows that are copied, together.
PANEL = 256
# With fewer tokens than this many per column the Hessian is mostly noise: damping rises in proportion.
TOKENS_PER_COLUMN = 4


@dataclass(frozen=True, slots=True)
class Factor:
    """What feedback needs of one Hessian, in the order in which columns are decided.

    order: [columns] int64, blocks of columns by falling weight, units by falling weight inside a block.
    hessian: [columns, columns] float32 as damped, in natural order.
    feedback: [columns, columns] float32 in `order`, strictly upper: entry ij is R_ij R_jj^-1.
    metric: [columns / unit, unit, unit] float32 in `order`, R_jj R_jj^T: what a squared error of the unit costs.
    damping: part of the mean diagonal that was added.  dead: columns whose input is always zero.
    """

    order: torch.Tensor
    hessian: torch.Tensor
    feedback: torch.Tensor
    metric: torch.Tensor
    damping: float
    dead: int


_factors: WeakKeyDictionary[LayerInputs, dict[tuple[int, int], Factor]] = WeakKeyDictionary()


def factor_of(inputs: LayerInputs, block: int, unit: int) -> Factor:
    """The factor for blocks of `block` columns decided `unit` at a time, computed once per `inputs`.

    Raises CalibrationError for a Hessian that is absent or not finite.
    """
    known = _factors.setdefault(inputs, {})
    if (block, unit) not in known:
        known.clear()  # float32 [columns, columns] twice: keep one
        known[block, unit] = factorize(_hessian(inputs), inputs.tokens, block, unit)
    return known[block, unit]


def _hessian(inputs: LayerInputs) -> torch.Tensor:
    import torch

    if inputs.hessian is None:
        raise CalibrationError("error feedback needs the Hessian of the layer's inputs; calibrate with --text")
    hessian = torch.as_tensor(inputs.hessian, dtype=torch.float32)
    if not bool(hessian.isfinite().all()):
        raise CalibrationError("the Hessian of the layer's inputs holds NaN or Inf; the model overflows on this text")
    return hessian


def factorize(hessian: torch.Tensor, tokens: int, block: int, unit: int) -> Factor:
    """Damp, order and factorize [columns, columns] float32, in float64 on one thread: the bytes must not depend on it.

    tokens: how many inputs the Hessian is the mean over; few tokens raise the damping.
    """
    columns = len(hessian)
    diagonal = hessian.diagonal()
    is_dead = diagonal <= 0
    mean = float(diagonal.double().mean()) or 1.0
    # A dead column costs nothing whatever it holds; a weight of the mean keeps the factor well conditioned.
    damped = hessian.clone()
    damped.diagonal()[is_dead] += mean
    order = decision_order(damped.diagonal(), block, unit)
    damping, added = damping_of(columns, tokens), 0.0
    for _ in range(6):
        damped.diagonal().add_((damping - added) * mean)
        added = damping
        triangle = _lower_triangle(damped, order.flip(0))
        if triangle is not None:
            break
        damping *= 10
    else:
        raise CalibrationError(f"the Hessian of {columns} inputs cannot be factorized even when damped; use more text")
    feedback, metric = _normalized(triangle, unit)
    return Factor(order, damped, feedback, metric, damping, int(is_dead.sum()))


def damping_of(columns: int, tokens: int) -> float:
    """Part of the mean diagonal to add to a Hessian of so many columns that is the mean over so many tokens."""
    return DAMPING * max(1.0, TOKENS_PER_COLUMN * columns / max(tokens, 1))


def decision_order(diagonal: torch.Tensor, block: int, unit: int) -> torch.Tensor:
    """Blocks by falling sum of the diagonal, inside them units by falling sum: what matters most is decided first.

    Scales belong to blocks of adjacent columns, so blocks stay whole.
    """
    import torch

    per_unit = diagonal.double().reshape(-1, block // unit, unit).sum(2)
    blocks = per_unit.sum(1).argsort(descending=True, stable=True)
    units = per_unit.argsort(dim=1, descending=True, stable=True)[blocks] + blocks[:, None] * (block // unit)
    return (units.reshape(-1, 1) * unit + torch.arange(unit, device=diagonal.device)).reshape(-1)


def _lower_triangle(matrix: torch.Tensor, order: torch.Tensor) -> torch.Tensor | None:
    """L with L L^T = matrix in that order, float64, or None where the matrix is not positive definite.

    Columns from the left, PANEL at a time, in the one float64 array that there is room for; above its diagonal L holds
    what was there.
    """
    import torch

    columns = len(matrix)
    work = matrix.new_empty((columns, columns), dtype=torch.float64)
    for start in range(0, columns, PANEL):
        rows = order[start : start + PANEL]
        work[start : start + PANEL] = matrix[rows][:, order]
    with torch_threads(1):
        starts = range(0, columns, PANEL)
        is_done = all(_finish_panel_(work, start, min(start + PANEL, columns)) for start in starts)
    return work if is_done else None


def _finish_panel_(work: torch.Tensor, start: int, stop: int) -> bool:
    """Columns start to stop of L, those before them being done; False where the matrix is not positive definite."""
    import torch

    panel = work[start:, start:stop]
    if start:
        panel.addmm_(work[start:, :start], work[start:stop, :start].T, alpha=-1.0)
    lower, failed = torch.linalg.cholesky_ex(panel[: stop - start])
    if int(failed):
        return False
    panel[: stop - start] = lower
    below = panel[stop - start :]
    if len(below):
        below.copy_(torch.linalg.solve_triangular(lower.T, below, upper=True, left=False))
    return True


def _normalized(lower: torch.Tensor, unit: int) -> tuple[torch.Tensor, torch.Tensor]:
    """L, both axes of R backward -> (R_ij R_jj^-1 without its diagonal, R_jj R_jj^T), float32; some rows at a time."""
    import torch

    columns = len(lower)
    places = torch.arange(columns, device=lower.device).reshape(-1, unit)
    backward = columns - 1 - places
    diagonal = lower[backward[:, :, None], backward[:, None, :]].triu()
    feedback = torch.empty((columns, columns), dtype=torch.float32, device=lower.device)
    for start in range(0, columns, PANEL):
        stop = min(start + PANEL, columns)
        rows = lower[columns - stop : columns - start].flip(0, 1)
        if unit == 1:
            rows = rows / diagonal[:, 0, 0]
        else:
            stripes = rows.reshape(stop - start, -1, unit).permute(1, 0, 2)
            solved = torch.linalg.solve_triangular(diagonal, stripes, upper=True, left=False)
            rows = solved.permute(1, 0, 2).reshape(stop - start, columns)
        # The units themselves feed back nothing, and nothing is fed back to columns decided before.
        is_later = places.new_tensor(range(columns)) // unit > (places.reshape(-1)[start:stop] // unit)[:, None]
        feedback[start:stop] = torch.where(is_later, rows, 0.0)
    return feedback, (diagonal @ diagonal.transpose(1, 2)).float()
