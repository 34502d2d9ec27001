# SPDX-License-Identifier: Apache-2.0
"""A model's choices, what they cost, and what they must stay within."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from lilliput.architectures.architecture import ModelConfig
from lilliput.errors import RecipeError
from lilliput.search.allocate import Knapsack, Options, allocate_within
from lilliput.search.choices import Choice, Picks, chosen_bytes
from lilliput.search.predict import CostTable
from lilliput.search.speed_costs import SpeedTable

KV_VALUE_BYTES = 2


@dataclass(frozen=True, slots=True)
class Limits:
    """What a configuration may take. file_bytes: whole file.  seconds: of one generated token; None means any."""

    file_bytes: int
    seconds: float | None = None


@dataclass(frozen=True)
class Problem:
    """overhead: bytes of the file beside the chosen tensors.  speed: None where speed does not matter."""

    choices: tuple[Choice, ...]
    costs: CostTable
    overhead: int
    speed: SpeedTable | None = None

    def file_bytes(self, picks: Picks) -> int:
        """Exact size of the file."""
        return self.overhead + chosen_bytes(self.choices, picks)

    def predicted(self, picks: Picks) -> float:
        """KL in nats a token."""
        return self.costs.total(picks)

    def seconds(self, picks: Picks) -> float:
        """Of one generated token, predicted; 0 where speed does not matter."""
        return self.speed.seconds(picks) if self.speed is not None else 0.0

    def is_within(self, picks: Picks, limits: Limits) -> bool:
        """Whether both limits hold."""
        return self.file_bytes(picks) <= limits.file_bytes and (
            limits.seconds is None or self.seconds(picks) <= limits.seconds
        )

    @property
    def smallest(self) -> Picks:
        """The smallest file."""
        return tuple(min(range(len(c.sizes)), key=lambda place: c.sizes[place]) for c in self.choices)

    @property
    def largest(self) -> Picks:
        """Every tensor in the format of least predicted cost."""
        return tuple(min(range(len(costs)), key=lambda place: costs[place]) for costs in self.costs.by_choice)

    @property
    def fastest(self) -> Picks:
        """Every tensor in the format that runs fastest."""
        assert self.speed is not None
        return tuple(min(range(len(s)), key=lambda place: s[place]) for s in self.speed.by_choice)

    @cached_property
    def _knapsack(self) -> Knapsack:
        return Knapsack(self.options, chosen_bytes(self.choices, self.largest))

    @property
    def options(self) -> tuple[Options, ...]:
        """Bytes and costs, as the allocation takes them."""
        pairs = zip(self.choices, self.costs.by_choice, strict=True)
        return tuple(Options(choice.sizes, costs) for choice, costs in pairs)

    def solve(self, limits: Limits) -> Picks:
        """The configuration of least predicted KL within the limits. Raises RecipeError: see `check`."""
        self.check(limits)
        budget = limits.file_bytes - self.overhead
        picks = self._knapsack.best(budget)
        assert picks is not None
        if self.is_within(picks, limits):
            return picks
        assert self.speed is not None
        assert limits.seconds is not None
        priced = allocate_within(self.options, budget, self.speed.by_choice, limits.seconds)
        if priced is None:
            best = allocate_within(self.options, budget, self.speed.by_choice, 0.0)
            raise RecipeError(self._no_speed(limits, self.fastest if best is None else best.picks))
        return priced.picks

    def check(self, limits: Limits) -> None:
        """Raise RecipeError that states the nearest feasible target where no configuration is within the limits."""
        least = self.file_bytes(self.smallest)
        if limits.file_bytes < least:
            raise RecipeError(
                f"no file of at most {limits.file_bytes:,} bytes: the smallest with these formats has {least:,} bytes "
                f"({least / 1e6:.2f} MB); ask for that, or allow smaller formats with --formats"
            )
        is_timed = self.speed is not None and limits.seconds is not None
        if is_timed and self.seconds(self.fastest) > (limits.seconds or 0.0):
            raise RecipeError(self._no_speed(limits, self.fastest))

    def _no_speed(self, limits: Limits, nearest: Picks) -> str:
        assert limits.seconds is not None
        return (
            f"nothing here runs at {1 / limits.seconds:.1f} tokens a second: the fastest configuration within the size "
            f"is predicted to make {1 / self.seconds(nearest):.1f}, in {self.file_bytes(nearest):,} bytes; ask for "
            "that, use more --threads, or a smaller model"
        )

    def with_costs(self, costs: CostTable) -> Problem:
        """The same with other predictions."""
        return replace(self, costs=costs)

    def filled(self, picks: Picks, limits: Limits, fixed: Sequence[int] = ()) -> Picks:
        """Widen tensors, those that gain most a byte first, until nothing more fits. fixed: choices to leave alone."""
        current = list(picks)
        while True:
            best: tuple[float, int, int] | None = None
            for place, (choice, costs) in enumerate(zip(self.choices, self.costs.by_choice, strict=True)):
                if place in fixed:
                    continue
                for option in range(len(choice.sizes)):
                    more = choice.sizes[option] - choice.sizes[current[place]]
                    gain = costs[current[place]] - costs[option]
                    if gain <= 0 or more < 0:
                        continue
                    changed = (*current[:place], option, *current[place + 1 :])
                    rate = gain / max(more, 1)
                    if (best is None or rate > best[0]) and self.is_within(changed, limits):
                        best = (rate, place, option)
            if best is None:
                return tuple(current)
            current[best[1]] = best[2]


def cache_bytes(config: ModelConfig, context: int) -> int:
    """Bytes of the cache of keys and values in F16 for so many tokens."""
    return 2 * KV_VALUE_BYTES * config.layers * config.kv_heads * config.head_dim * context


def reasons(problem: Problem, picks: Picks) -> Mapping[str, str]:
    """Why each tensor has its format, in words for the plan and the ledger."""
    total = problem.predicted(picks)
    found: dict[str, str] = {}
    for choice, costs, pick in zip(problem.choices, problem.costs.by_choice, picks, strict=True):
        share = costs[pick] / total if total > 0 else 0.0
        text = f"fitted: predicted to add {costs[pick]:.2e} nats of KL ({share:.1%} of the model's)"
        found |= dict.fromkeys(choice.names, text)
    return found
