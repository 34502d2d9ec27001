# SPDX-License-Identifier: Apache-2.0
"""Which format for which tensor, exactly: the multiple-choice knapsack by dynamic programming.

Each choice takes one option; amounts (bytes) add up and must not exceed a budget; costs (nats of KL) add up and shall
be least. One table holds the answer for every budget up to a capacity, so the whole frontier costs one run.

Exact     amounts are counted in steps of the greatest common divisor of their differences, which loses nothing.
Bound     where that would need more than MAX_STEPS steps, amounts are rounded up to coarser ones: the budget is never
          exceeded, and the answer is no worse than the best for a budget smaller by `slack`.
Two       a second budget enters as a price per unit of its amount (Lagrange), raised until it is met; `gap` says how
budgets   far the answer can be from the best.
Cost      choices * options * steps additions, and a byte a choice and step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd, inf

import numpy as np

from lilliput.arrays import Array, DoubleArray

MAX_STEPS = 1 << 18
# Halvings of the interval of prices: more than enough for float64's relative differences between allocations.
PRICE_HALVINGS = 60


@dataclass(frozen=True, slots=True)
class Options:
    """The options of one choice: what each takes of the budget, and what it costs. Equal length, at most 255."""

    amounts: tuple[int, ...]
    costs: tuple[float, ...]


class Knapsack:
    """The least cost for every budget up to `capacity`.

    smallest: the least amount that any picks take.  slack: see the module; 0 where the answer is exact.
    """

    def __init__(self, options: Sequence[Options], capacity: int) -> None:
        self._options = tuple(options)
        self.smallest = sum(min(item.amounts) for item in options)
        room = max(capacity - self.smallest, 0)
        step = 0
        for item in options:
            least = min(item.amounts)
            for amount in item.amounts:
                step = gcd(step, amount - least)
        exact = max(step, 1)
        self._step = exact if room // exact <= MAX_STEPS else -(-room // MAX_STEPS)
        self.slack = 0 if self._step == exact else len(self._options) * self._step
        self._steps = room // self._step
        self._best, self._taken = self._fill()

    def best(self, budget: int) -> tuple[int, ...] | None:
        """Index of the option of each choice, or None where even the smallest ones exceed the budget."""
        if budget < self.smallest:
            return None
        left = min((budget - self.smallest) // self._step, self._steps)
        picks = []
        for item, taken in zip(reversed(self._options), reversed(self._taken), strict=True):
            pick = int(taken[left])
            picks.append(pick)
            left -= self._needed(item, pick)
        return tuple(reversed(picks))

    def _needed(self, item: Options, pick: int) -> int:
        return -(-(item.amounts[pick] - min(item.amounts)) // self._step)

    def _fill(self) -> tuple[DoubleArray, list[Array]]:
        best = np.zeros(self._steps + 1)
        history: list[Array] = []
        for item in self._options:
            found = np.full(self._steps + 1, inf)
            taken = np.zeros(self._steps + 1, dtype=np.uint8)
            for pick, cost in enumerate(item.costs):
                needed = self._needed(item, pick)
                if needed > self._steps:
                    continue
                reached = best[: self._steps + 1 - needed] + cost
                is_better = reached < found[needed:]
                found[needed:][is_better] = reached[is_better]
                taken[needed:][is_better] = pick
            best = found
            history.append(taken)
        return best, history


def allocate(options: Sequence[Options], budget: int) -> tuple[int, ...] | None:
    """Picks of least cost within one budget; None where it is infeasible."""
    return Knapsack(options, budget).best(budget)


@dataclass(frozen=True, slots=True)
class Priced:
    """An allocation within two budgets. gap: its cost exceeds the least possible one by at most so much."""

    picks: tuple[int, ...]
    gap: float


def allocate_within(
    options: Sequence[Options], budget: int, second: Sequence[Sequence[float]], second_budget: float
) -> Priced | None:
    """Picks of small cost within both budgets, or None where no price on the second amount meets it.

    second: for each choice what each of its options takes of the second budget.
    """

    def priced(price: float) -> tuple[int, ...] | None:
        changed = [
            Options(item.amounts, tuple(c + price * s for c, s in zip(item.costs, extra, strict=True)))
            for item, extra in zip(options, second, strict=True)
        ]
        return allocate(changed, budget)

    def takes(picks: tuple[int, ...]) -> float:
        return sum(extra[pick] for extra, pick in zip(second, picks, strict=True))

    def cost(picks: tuple[int, ...]) -> float:
        return sum(item.costs[pick] for item, pick in zip(options, picks, strict=True))

    free = priced(0.0)
    if free is None or takes(free) <= second_budget:
        return None if free is None else Priced(free, 0.0)
    largest = max(max(item.costs) - min(item.costs) for item in options)
    differences = [abs(a - b) for extra in second for a in extra for b in extra if a != b]
    low, high = 0.0, len(options) * max(largest, 1e-300) / min(differences, default=1.0)
    best = priced(high)
    if best is None or takes(best) > second_budget:
        return None
    bound = cost(free)
    for _ in range(PRICE_HALVINGS):
        middle = (low + high) / 2
        found = priced(middle)
        assert found is not None
        # Weak duality: no allocation within both budgets costs less than this.
        bound = max(bound, cost(found) + middle * (takes(found) - second_budget))
        if takes(found) > second_budget:
            low = middle
        else:
            high = middle
            best = min(best, found, key=cost)
    return Priced(best, max(cost(best) - bound, 0.0))
