# SPDX-License-Identifier: Apache-2.0
"""The exact allocation, held against trying everything."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from lilliput.search import allocate as allocate_module
from lilliput.search.allocate import Knapsack, Options, allocate, allocate_within


def random_options(draw: np.random.Generator, choices: int) -> list[Options]:
    found = []
    for _ in range(choices):
        count = int(draw.integers(1, 5))
        amounts = draw.integers(1, 40, count) * 32
        found.append(Options(tuple(int(a) for a in amounts), tuple(float(c) for c in draw.exponential(1.0, count))))
    return found


def taken(options: list[Options], picks: tuple[int, ...]) -> int:
    return sum(item.amounts[pick] for item, pick in zip(options, picks, strict=True))


def cost(options: list[Options], picks: tuple[int, ...]) -> float:
    return sum(item.costs[pick] for item, pick in zip(options, picks, strict=True))


def everything(options: list[Options]) -> list[tuple[int, ...]]:
    return list(product(*(range(len(item.amounts)) for item in options)))


@pytest.mark.parametrize("seed", range(20))
def test_the_allocation_is_the_best_of_all_for_every_budget(seed: int) -> None:
    draw = np.random.default_rng(seed)
    options = random_options(draw, int(draw.integers(1, 6)))
    knapsack = Knapsack(options, 40 * 32 * len(options))
    assert knapsack.slack == 0
    for budget in draw.integers(0, 40 * 32 * len(options), 15):
        within = [picks for picks in everything(options) if taken(options, picks) <= budget]
        found = knapsack.best(int(budget))
        if not within:
            assert found is None
            continue
        assert found is not None
        assert taken(options, found) <= budget
        assert cost(options, found) == pytest.approx(min(cost(options, picks) for picks in within), rel=1e-12)


def test_coarse_steps_never_exceed_the_budget_and_keep_their_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocate_module, "MAX_STEPS", 16)
    draw = np.random.default_rng(1)
    for _ in range(20):
        options = random_options(draw, 4)
        capacity = max(taken(options, picks) for picks in everything(options))
        knapsack = Knapsack(options, capacity)
        for budget in draw.integers(knapsack.smallest, capacity + 1, 5):
            found = knapsack.best(int(budget))
            assert found is not None
            assert taken(options, found) <= budget
            tighter = [p for p in everything(options) if taken(options, p) <= budget - knapsack.slack]
            if tighter:
                assert cost(options, found) <= min(cost(options, p) for p in tighter) + 1e-12


@pytest.mark.parametrize("seed", range(10))
def test_two_budgets_hold_and_the_gap_covers_what_is_lost(seed: int) -> None:
    draw = np.random.default_rng(seed)
    options = random_options(draw, 4)
    second = [tuple(float(t) for t in draw.exponential(1.0, len(item.amounts))) for item in options]

    def time_of(picks: tuple[int, ...]) -> float:
        return sum(extra[pick] for extra, pick in zip(second, picks, strict=True))

    size = int(np.median([taken(options, picks) for picks in everything(options)]))
    limit = float(np.median([time_of(picks) for picks in everything(options)]))
    within = [p for p in everything(options) if taken(options, p) <= size and time_of(p) <= limit]
    found = allocate_within(options, size, second, limit)
    assert found is not None
    assert taken(options, found.picks) <= size
    assert time_of(found.picks) <= limit
    assert cost(options, found.picks) <= min(cost(options, p) for p in within) + found.gap + 1e-9


def test_budgets_that_nothing_meets_give_none() -> None:
    options = [Options((64, 128), (1.0, 0.5)), Options((32,), (0.0,))]
    assert allocate(options, 95) is None
    assert allocate(options, 96) == (0, 0)
    assert allocate_within(options, 200, [(2.0, 3.0), (1.0,)], 2.9) is None
