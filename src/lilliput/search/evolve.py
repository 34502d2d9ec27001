# SPDX-License-Identifier: Apache-2.0
"""Refinement by real KL: swap moves from the exact solution, kept where the measured KL falls.

Problem   costs are predicted to second order and taken to add up; below 3 bits neither holds.
Idea      widen one tensor, narrow another, stay within the limits; try each child on a few windows of the selection
          text, the best of them on all of it; keep what is better than its parent. Moves are drawn with a probability
          that falls with their predicted loss.
Paper     EvoPress, https://arxiv.org/abs/2410.14649
Changes   starts at the exact solution of the predicted problem instead of a uniform one; predictions guide mutations.
Cost      the stated number of evaluations of the selection text. A search that was killed draws the same moves again
          and finds their measurements in the meter's file.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lilliput.progress import Progress
from lilliput.search.choices import Picks
from lilliput.search.measure import Meter
from lilliput.search.problem import Limits, Problem

CHILDREN = 6
# Children that are measured on the whole text.
FINALISTS = 2
# Of the text, what each child is tried on.
FIRST_SHARE = 4
# Steps in the list of candidates that one swap moves a tensor by, at most.
REACH = 2
DRAWS = 64


@dataclass(frozen=True, slots=True)
class Step:
    """One improvement: evaluations spent until then, and the measured KL reached."""

    evaluations: float
    kl: float


@dataclass(frozen=True, slots=True)
class Refined:
    """What a search found. kl: on the selection text, nats.  history: the start, then each improvement."""

    picks: Picks
    kl: float
    evaluations: float
    history: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """evaluations: of the whole selection text; parts of it count as parts."""

    evaluations: int = 60
    seed: int = 0


def evolve(
    problem: Problem,
    limits: Limits,
    start: Picks,
    meter: Meter,
    options: SearchOptions,
    progress: Progress | None = None,
) -> Refined:
    """Improve `start`. progress: called with (evaluations done, evaluations in all)."""
    draw = np.random.default_rng(options.seed)
    few = max(1, meter.windows // FIRST_SHARE)
    parent, kl, spent = start, meter.kl(start).mean, 1.0
    history = [Step(spent, kl)]
    seen = {start}
    while spent < options.evaluations:
        children = _children(problem, limits, parent, seen, draw)
        if not children:
            break
        tried = sorted(children, key=lambda child: meter.kl(child, few).mean)
        spent += len(children) * few / meter.windows
        parent_few = meter.kl(parent, few).mean
        for child in tried[:FINALISTS]:
            if meter.kl(child, few).mean >= parent_few:
                break
            found = meter.kl(child).mean
            spent += 1.0 - few / meter.windows
            if found < kl:
                parent, kl = child, found
                history.append(Step(spent, kl))
        if progress is not None:
            progress(min(round(spent), options.evaluations), options.evaluations)
    return Refined(parent, kl, spent, tuple(history))


def _children(
    problem: Problem, limits: Limits, parent: Picks, seen: set[Picks], draw: np.random.Generator
) -> list[Picks]:
    """Distinct configurations within the limits, none of them seen before; `seen` grows."""
    drawn: list[Picks] = []
    for _ in range(DRAWS):
        child = swapped(problem, limits, parent, draw)
        if child is not None and child not in seen and child not in drawn:
            drawn.append(child)
    drawn.sort(key=problem.predicted)
    # Mostly what is predicted to lose least, and some of the rest: the predictions are what is in doubt.
    chosen = drawn[: CHILDREN // 2]
    rest = drawn[CHILDREN // 2 :]
    more = draw.permutation(len(rest))[: CHILDREN - len(chosen)]
    chosen += [rest[int(place)] for place in more]
    seen.update(chosen)
    return chosen


def swapped(problem: Problem, limits: Limits, picks: Picks, draw: np.random.Generator) -> Picks | None:
    """One to three tensors moved a little, then the room that is left filled; None where that breaks a limit."""
    current = list(picks)
    moved = draw.choice(len(current), size=min(int(draw.integers(1, 4)), len(current)), replace=False)
    for place in (int(item) for item in moved):
        last = len(problem.choices[place].formats) - 1
        step = int(draw.integers(1, REACH + 1)) * (1 if draw.random() < 0.5 else -1)
        current[place] = int(np.clip(current[place] + step, 0, last))
    moved_places = [int(place) for place in moved]
    child = problem.narrowed(tuple(current), limits, moved_places)
    if child is None:
        return None
    child = problem.filled(child, limits, moved_places)
    return None if child == picks else child
