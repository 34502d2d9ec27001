# SPDX-License-Identifier: Apache-2.0
"""A quantized matrix as a differentiable function: of its outermost float parameters, and of its rounding.

Rounding is trained as AutoRound does (https://arxiv.org/abs/2309.05516): each code has an offset, a float that starts
at 0; beyond one half the code moves to its neighbour. The gradient passes the rounding as if it were not there, and
only its sign counts. It starts from the codes of another method instead of from rounding to nearest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np

from lilliput.arrays import Array
from lilliput.methods.torch_format import TorchFormat, to_encoded
from lilliput.records import QuantizedTensor

if TYPE_CHECKING:
    import torch

# How far noise alone may carry an offset, one standard deviation: few codes pass one half without a reason.
ROUNDING_NOISE = 0.14
# A code moves by at most one; beyond this an offset says nothing more.
LARGEST_OFFSET = 1.4


class TrainedWeight:
    """changes: relative change of each outermost float parameter, what training moves.

    offsets: of the codes, [rows, columns] float32, or None where codes have no neighbours (vector codebooks) or stay.
    """

    def __init__(self, tensor: QuantizedTensor, *, trains_rounding: bool = False) -> None:
        import torch

        encoded = tensor.format.unpack(tensor.planes, tensor.columns)
        self.tensor = tensor
        self._format = TorchFormat(tensor.format, tensor.columns)
        self._codes = torch.from_numpy(np.array(encoded.codes))
        self._parameters = {name: torch.from_numpy(np.array(value)) for name, value in encoded.parameters.items()}
        terms = self._format.linear_terms(self._codes, self._parameters)
        self._terms = {name: term for name, term in terms.items() if self._parameters[name].is_floating_point()}
        self.changes = {name: torch.zeros(self._parameters[name].shape) for name in self._terms}
        self._neighbours = self._find_neighbours() if trains_rounding else None
        self.offsets = None if self._neighbours is None else torch.zeros(self._codes.shape)

    def value(self) -> torch.Tensor:
        """Float32 [rows, columns], differentiable."""
        total: torch.Tensor | None = None
        for name, term in self._terms.items():
            parameter = self._parameters[name].float() * (1.0 + self.changes[name])
            groups = self._moved(name, term).reshape(len(parameter), parameter.shape[1], -1)
            part = (groups * parameter[:, :, None]).reshape(term.shape)
            total = part if total is None else total + part
        return self._format.values(self._codes, self._parameters) if total is None else total

    def stored(self) -> QuantizedTensor:
        """As the file would hold the present state."""
        import torch

        parameters = dict(self._parameters)
        for name, change in self.changes.items():
            old = self._parameters[name]
            new = (old.float() * (1.0 + change.detach())).to(old.dtype)
            parameters[name] = torch.where(new.isfinite(), new, old)
        codes = self._codes
        if self._neighbours is not None and self.offsets is not None:
            codes = _by_offset(self.offsets, self._neighbours.above, codes, self._neighbours.below)
        return replace(self.tensor, planes=self.tensor.format.pack(to_encoded(codes, parameters)))

    def step_rounding(self, rate: float) -> None:
        """One step of SignSGD on the offsets, whose gradients are used up."""
        import torch

        if self.offsets is None or self.offsets.grad is None:
            return
        with torch.no_grad():
            self.offsets.sub_(self.offsets.grad.sign() * rate).clamp_(-LARGEST_OFFSET, LARGEST_OFFSET)
        self.offsets.grad = None

    def _moved(self, name: str, term: torch.Tensor) -> torch.Tensor:
        """A term as the offsets leave it."""
        import torch

        if self._neighbours is None or self.offsets is None or name not in self._neighbours.rise:
            return term
        rise, fall = self._neighbours.rise[name], self._neighbours.fall[name]
        fixed = self.offsets.detach()
        moved = _by_offset(fixed, rise, torch.zeros(()), -fall)
        return term + moved + (rise + fall) * (0.5 * (self.offsets - fixed))

    def _find_neighbours(self) -> _Neighbours | None:
        import torch

        lines = self._format.format.group_lines(cast("Mapping[str, Array]", self._parameters), len(self._codes))
        if lines is None or not self._terms:
            return None
        written = torch.from_numpy(lines.levels.codes.astype(np.int64))
        # Codes that no encoder writes stay where they are.
        above, below = torch.arange(256), torch.arange(256)
        above[written[:-1]], below[written[1:]] = written[1:], written[:-1]
        index = self._codes.long()
        upper, lower = above[index].to(self._codes.dtype), below[index].to(self._codes.dtype)
        higher, deeper = (self._format.linear_terms(codes, self._parameters) for codes in (upper, lower))
        rise = {name: higher[name] - term for name, term in self._terms.items()}
        moving = [name for name, change in rise.items() if bool(change.any())]
        return _Neighbours(
            upper,
            lower,
            {name: rise[name] for name in moving},
            {name: self._terms[name] - deeper[name] for name in moving},
        )


class Descent:
    """The steps of one training: Adam for scales and vectors, SignSGD for rounding, all rates falling evenly to zero.

    vectors: other parameters, relative changes as well.  rate: about the largest relative change a step.
    """

    def __init__(
        self, weights: Sequence[TrainedWeight], vectors: Sequence[torch.Tensor], *, steps: int, rate: float
    ) -> None:
        import torch

        self.steps = steps
        self.taken = 0
        self._weights = weights
        changes = [change for weight in weights for change in weight.changes.values()]
        offsets = [weight.offsets for weight in weights if weight.offsets is not None]
        for parameter in (*changes, *vectors, *offsets):
            parameter.requires_grad_(True)
        self._optimizer = torch.optim.Adam([*changes, *vectors], lr=rate)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimizer, lambda step: max(0.0, 1.0 - step / steps))
        # With rates that fall evenly, noise of one rate adds up to rate * sqrt(steps / 3).
        self._rounding_rate = ROUNDING_NOISE * (3.0 / steps) ** 0.5

    def step(self, loss: torch.Tensor) -> None:
        """One step down the gradient of `loss`."""
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        for weight in self._weights:
            weight.step_rounding(self._rounding_rate * (1.0 - self.taken / self.steps))
        self._schedule.step()
        self.taken += 1


def _by_offset(offsets: torch.Tensor, up: torch.Tensor, same: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """What holds for a code that its offset moves up, leaves, or moves down."""
    import torch

    return torch.where(offsets > 0.5, up, torch.where(offsets < -0.5, down, same))


@dataclass(frozen=True, slots=True)
class _Neighbours:
    """Codes one level above and below, [rows, columns]; themselves at the ends.

    rise, fall: what a term gains by moving up and loses by moving down, for the terms that codes are in.
    """

    above: torch.Tensor
    below: torch.Tensor
    rise: Mapping[str, torch.Tensor]
    fall: Mapping[str, torch.Tensor]
