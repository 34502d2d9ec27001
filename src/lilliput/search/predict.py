# SPDX-License-Identifier: Apache-2.0
"""What each candidate costs in KL: predicted from sensitivity and row losses, or scaled to measurements."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lilliput.arrays import DoubleArray
from lilliput.checkpoints.model_source import ModelSource
from lilliput.progress import Progress
from lilliput.records import Role
from lilliput.search.candidates import Candidates, error_slabs
from lilliput.search.choices import Choice, Picks
from lilliput.search.sensitivity import Sensitivity

# Predictions below this many nats are rounding of the engine and of float32 sums; logarithms need a floor.
LEAST_KL = 1e-9
LEAST_LOSS = 1e-30
# Where the scalar fall-back measures: large enough to stand out of the engine's rounding, small enough to be linear.
PROBED_BITS = 3.4


@dataclass(frozen=True, slots=True)
class CostTable:
    """Predicted KL in nats a token. by_choice: for each choice the cost of each of its formats."""

    by_choice: tuple[tuple[float, ...], ...]

    def total(self, picks: Picks) -> float:
        """Predicted KL of a whole configuration: costs add up."""
        return sum(costs[pick] for costs, pick in zip(self.by_choice, picks, strict=True))

    def scaled(self, factors: Sequence[float]) -> CostTable:
        """All costs of each choice times its factor."""
        pairs = zip(self.by_choice, factors, strict=True)
        return CostTable(tuple(tuple(cost * factor for cost in costs) for costs, factor in pairs))


def no_costs(choices: Sequence[Choice]) -> CostTable:
    """Before anything is known: all formats alike."""
    return CostTable(tuple((0.0,) * len(choice.formats) for choice in choices))


def predicted_costs(
    source: ModelSource, choices: Sequence[Choice], candidates: Candidates, sensitivity: Sensitivity
) -> CostTable:
    """1/2 tr(H_O D H_I D^T) with the diagonal of H_O; a table that is read by lookups counts those as well."""
    roles = {entry.name: entry.role for entry in source.architecture.tensor_table(source.config)}

    def cost(name: str, place: int, choice: Choice) -> float:
        number_format = choice.formats[place]
        found = 0.0
        outputs = sensitivity.outputs.get(name)
        if outputs is not None:
            losses = candidates.get(name, number_format).row_losses
            found += 0.5 * float(np.dot(outputs, losses.astype(np.float64)))
        if roles[name] is Role.TOKEN_EMBEDDING:
            found += _lookup_cost(source, candidates, name, choice, place, sensitivity)
        return found

    return CostTable(
        tuple(
            tuple(
                rounded(sum(cost(name, place, choice) for name in choice.names)) for place in range(len(choice.formats))
            )
            for choice in choices
        )
    )


def measured_costs(
    choices: Sequence[Choice],
    candidates: Candidates,
    kl: Callable[[Picks], float],
    progress: Progress | None = None,
) -> CostTable:
    """The scalar fall-back: real KL with one choice alone in a narrow format, scaled by the loss of the others.

    kl: measures a configuration.  A choice's cost in a format is that KL times the format's loss tr(D H D^T) over the
    narrow one's: linear in the loss, whatever the outputs do with it. One measurement a choice.
    progress: called with (measurements done, measurements in all).
    Source: the linearity theorem of HIGGS, https://arxiv.org/abs/2411.17525, with real losses in place of its noise.
    """
    widest = tuple(0 for _ in choices)
    others = kl(widest)
    rows = []
    for place, choice in enumerate(choices):
        widths = [abs(item.bits_per_weight - PROBED_BITS) for item in choice.formats]
        probed = widths.index(min(widths))
        # What the other tensors cost in their widest formats is not this one's.
        alone = max(kl((*widest[:place], probed, *widest[place + 1 :])) - others, LEAST_KL)
        losses = [_loss(candidates, choice, option) for option in range(len(choice.formats))]
        rows.append(tuple(rounded(alone * loss / max(losses[probed], LEAST_LOSS)) for loss in losses))
        if progress is not None:
            progress(place + 2, len(choices) + 1)
    return CostTable(tuple(rows))


def _loss(candidates: Candidates, choice: Choice, option: int) -> float:
    """Sum of the row losses of all its tensors."""
    found = (candidates.get(name, choice.formats[option]).row_losses for name in choice.names)
    return float(sum(losses.sum(dtype=np.float64) for losses in found))


def rounded(cost: float) -> float:
    """Five digits: what is beyond depends on how many threads summed, and must not decide between formats."""
    return float(f"{cost:.5g}")


def _lookup_cost(
    source: ModelSource, candidates: Candidates, name: str, choice: Choice, place: int, sensitivity: Sensitivity
) -> float:
    """1/2 of the mean over the tokens read of the squared error, weighted by what each column matters."""
    shares = sensitivity.counts / max(int(sensitivity.counts.sum()), 1)
    found = 0.0
    candidate = candidates.get(name, choice.formats[place]).tensor
    for part, error in error_slabs(source.tensor(name), candidate):
        found += 0.5 * float(shares[part] @ (np.square(error, dtype=np.float64) @ sensitivity.lookups))
    return found


@dataclass(frozen=True, slots=True)
class Agreement:
    """How well predictions match measurements: squared correlation of the logarithms, and the mean log ratio.

    bias: mean of ln(measured / predicted); it changes no allocation.
    """

    r_squared: float
    bias: float
    configurations: int


def agreement(predicted: Sequence[float], measured: Sequence[float]) -> Agreement:
    """Compare on a logarithmic scale; NaN where there are fewer than three configurations or no spread."""
    x = np.log(np.maximum(np.asarray(predicted, dtype=np.float64), LEAST_KL))
    y = np.log(np.maximum(np.asarray(measured, dtype=np.float64), LEAST_KL))
    if len(x) < 3 or not np.ptp(x) or not np.ptp(y):
        return Agreement(math.nan, math.nan, len(x))
    return Agreement(float(np.corrcoef(x, y)[0, 1] ** 2), float(np.mean(y - x)), len(x))


def fitted_factors(
    table: CostTable, measured: Mapping[Picks, float], *, prior: float = 0.5, rounds: int = 200
) -> DoubleArray:
    """A factor for each choice, so that the sums of scaled costs come near the measured KL: the corrected model.

    Least squares of log KL plus `prior` * (log factor - common log factor)^2: few measurements change little.
    Gauss-Newton steps with damping; deterministic.
    """
    costs = np.array([[c[p] for c, p in zip(table.by_choice, picks, strict=True)] for picks in measured])
    wanted = np.log(np.maximum(np.array(list(measured.values())), LEAST_KL))
    logs = np.full(costs.shape[1], float(np.mean(wanted - np.log(np.maximum(costs.sum(1), LEAST_KL)))))
    common = logs.copy()
    for _ in range(rounds):
        parts = costs * np.exp(logs)
        total = np.maximum(parts.sum(1), LEAST_KL)
        slope = parts / total[:, None]
        left = wanted - np.log(total)
        normal = slope.T @ slope + prior * np.eye(len(logs))
        step = np.linalg.solve(normal, slope.T @ left - prior * (logs - common))
        logs += np.clip(step, -0.5, 0.5)
        if float(np.abs(step).max()) < 1e-9:
            break
    factors: DoubleArray = np.exp(logs)
    return factors
