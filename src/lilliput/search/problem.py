# SPDX-License-Identifier: Apache-2.0
"""A model's choices, what they cost, and what they must stay within."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf

from lilliput import _native
from lilliput.architectures.architecture import ModelConfig
from lilliput.errors import RecipeError
from lilliput.runtime.session import KvFormat
from lilliput.search.allocate import Knapsack, Options, allocate_within
from lilliput.search.choices import Choice, Picks, chosen_bytes, loaded_bytes
from lilliput.search.predict import CostTable
from lilliput.search.speed_costs import SpeedTable


@dataclass(frozen=True, slots=True)
class Limits:
    """What a configuration may take; None means any.

    file_bytes: whole file.  seconds: of one generated token.  memory_bytes: of weights as the runtime keeps them, and
    all else of the file.
    """

    file_bytes: int
    seconds: float | None = None
    memory_bytes: int | None = None


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

    def memory_bytes(self, picks: Picks) -> int:
        """What the runtime keeps in memory: weights, and the rest of the file."""
        return self.overhead + loaded_bytes(self.choices, picks)

    def predicted(self, picks: Picks) -> float:
        """KL in nats a token."""
        return self.costs.total(picks)

    def seconds(self, picks: Picks) -> float:
        """Of one generated token, predicted; 0 where speed does not matter."""
        return self.speed.seconds(picks) if self.speed is not None else 0.0

    def is_within(self, picks: Picks, limits: Limits) -> bool:
        """Whether all limits hold."""
        return (
            self.file_bytes(picks) <= limits.file_bytes
            and (limits.seconds is None or self.seconds(picks) <= limits.seconds)
            and (limits.memory_bytes is None or self.memory_bytes(picks) <= limits.memory_bytes)
        )

    @property
    def smallest(self) -> Picks:
        """The smallest file."""
        return tuple(min(range(len(c.sizes)), key=lambda place: c.sizes[place]) for c in self.choices)

    @property
    def lightest(self) -> Picks:
        """What takes least memory."""
        loads = (choice.loads or choice.sizes for choice in self.choices)
        return tuple(min(range(len(amounts)), key=lambda place: amounts[place]) for amounts in loads)

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

    @property
    def _loaded_options(self) -> tuple[Options, ...]:
        """Bytes in memory and costs."""
        pairs = zip(self.choices, self.costs.by_choice, strict=True)
        return tuple(Options(choice.loads or choice.sizes, costs) for choice, costs in pairs)

    def solve(self, limits: Limits) -> Picks:
        """The configuration of least predicted KL within the limits. Raises RecipeError: see `check`."""
        self.check(limits)
        options, budget = self.options, limits.file_bytes - self.overhead
        picks = self._knapsack.best(budget)
        assert picks is not None
        if self.is_within(picks, limits):
            return picks
        second, second_budget = [[float(size) for size in item.amounts] for item in options], float(budget)
        if limits.memory_bytes is not None and self.memory_bytes(picks) > limits.memory_bytes:
            # No matrix takes less in memory than in the file, so this budget is the narrower one, if not --size is.
            options, budget = self._loaded_options, limits.memory_bytes - self.overhead
        if self.speed is not None and limits.seconds is not None:
            second, second_budget = [list(row) for row in self.speed.by_choice], limits.seconds
        priced = allocate_within(options, budget, second, second_budget)
        if priced is not None and self.is_within(priced.picks, limits):
            return priced.picks
        if self.speed is None or limits.seconds is None:
            raise RecipeError(
                "no mix of these formats was found within the file's bytes and those in memory; allow more of one"
            )
        best = allocate_within(options, budget, second, 0.0)
        raise RecipeError(self._no_speed(limits, self.fastest if best is None else best.picks))

    def check(self, limits: Limits) -> None:
        """Raise RecipeError that states the nearest feasible target where no configuration is within the limits."""
        least = self.file_bytes(self.smallest)
        if limits.file_bytes < least:
            raise RecipeError(
                f"no file of at most {limits.file_bytes:,} bytes: the smallest with these formats has {least:,} bytes "
                f"({least / 1e6:.2f} MB); ask for that, or allow smaller formats with --formats"
            )
        light = self.memory_bytes(self.lightest)
        if limits.memory_bytes is not None and limits.memory_bytes < light:
            raise RecipeError(
                f"nothing takes at most {limits.memory_bytes:,} bytes of memory: the least with these formats is "
                f"{light:,}; ask for that, or allow smaller formats with --formats"
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
        room = limits.file_bytes - self.file_bytes(picks)
        time_left = inf if limits.seconds is None else limits.seconds - self.seconds(picks)
        memory_left = inf if limits.memory_bytes is None else limits.memory_bytes - self.memory_bytes(picks)
        while True:
            best: tuple[float, _Move] | None = None
            for move in self._moves(current, fixed):
                if move.cost >= 0 or move.size < 0 or move.size > room:
                    continue
                if move.seconds > time_left or move.memory > memory_left:
                    continue
                rate = -move.cost / max(move.size, 1)
                if best is None or rate > best[0]:
                    best = (rate, move)
            if best is None:
                return tuple(current)
            current[best[1].place] = best[1].option
            room -= best[1].size
            time_left -= best[1].seconds
            memory_left -= best[1].memory

    def narrowed(self, picks: Picks, limits: Limits, fixed: Sequence[int] = ()) -> Picks | None:
        """Narrow tensors, those that lose least a byte first, until the limits hold; None where that cannot be."""
        current = list(picks)
        while not self.is_within(tuple(current), limits):
            best: tuple[float, _Move] | None = None
            for move in self._moves(current, fixed):
                if move.size < 0 and (best is None or move.cost / -move.size < best[0]):
                    best = (move.cost / -move.size, move)
            if best is None:
                return None
            current[best[1].place] = best[1].option
        return tuple(current)

    def _moves(self, picks: Sequence[int], fixed: Sequence[int]) -> Iterator[_Move]:
        """Every other format of every choice that is not fixed."""
        for place, (choice, costs) in enumerate(zip(self.choices, self.costs.by_choice, strict=True)):
            if place in fixed:
                continue
            now = picks[place]
            timed = self.speed.by_choice[place] if self.speed is not None else (0.0,) * len(costs)
            loads = choice.loads or choice.sizes
            for option, (size, cost, seconds) in enumerate(zip(choice.sizes, costs, timed, strict=True)):
                if option != now:
                    yield _Move(
                        place, option, size - choice.sizes[now], cost - costs[now], seconds - timed[now],
                        loads[option] - loads[now],
                    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Move:
    """One choice in another format, and what that changes."""

    place: int
    option: int
    size: int
    cost: float
    seconds: float
    memory: int


def cache_bytes(config: ModelConfig, context: int, kv_format: KvFormat = "f16") -> int:
    """Bytes of the engine's cache of keys and values for so many tokens."""
    return config.layers * _native.kv_cache_bytes(kv_format, context, config.kv_heads, config.head_dim)


def reasons(problem: Problem, picks: Picks) -> Mapping[str, str]:
    """Why each tensor has its format, in words for the plan and the ledger."""
    total = problem.predicted(picks)
    found: dict[str, str] = {}
    for choice, costs, pick in zip(problem.choices, problem.costs.by_choice, picks, strict=True):
        share = costs[pick] / total if total > 0 else 0.0
        text = f"fitted: predicted to add {costs[pick]:.2e} nats of KL ({share:.1%} of the model's)"
        found |= dict.fromkeys(choice.names, text)
    return found
