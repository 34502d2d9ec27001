# SPDX-License-Identifier: Apache-2.0
"""Refinement by a reinforcement-learning agent: a policy says how much more or less each tensor matters than predicted.

Problem   as in `evolve.py`.
Idea      the action is one number a tensor, the logarithm of a factor on its predicted costs; the exact allocation
          under these costs is the configuration, so that every action is within the limits. Reward: the fall of log KL
          measured, against the exact solution. A Gaussian policy, its mean linear in features of the tensor (what it
          does, how deep it lies, how large it is, what it costs) plus a free term a tensor; policy gradient with the
          mean reward of the batch as baseline.
Paper     HAQ, https://arxiv.org/abs/1811.08886
Changes   no critic: an episode is one step. HAQ cuts bits until the budget holds; here the budget is met exactly.
Cost      the stated number of evaluations; each sample is measured on a part of the text, improvements on all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log

import numpy as np

from lilliput.arrays import DoubleArray
from lilliput.progress import Progress
from lilliput.search.choices import Choice, Picks
from lilliput.search.evolve import FIRST_SHARE, Refined, SearchOptions, Step
from lilliput.search.measure import Meter
from lilliput.search.predict import LEAST_KL
from lilliput.search.problem import Limits, Problem

BATCH = 8
# Spread of the log factors, and the rate of learning in units of it.
SPREAD = 0.35
RATE = 0.5
KINDS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "token_embd", "output")


def reinforce(
    problem: Problem,
    limits: Limits,
    start: Picks,
    meter: Meter,
    options: SearchOptions,
    progress: Progress | None = None,
) -> Refined:
    """Improve `start`. progress: called with (evaluations done, evaluations in all)."""
    draw = np.random.default_rng(options.seed)
    features = _features(problem)
    weights = np.zeros(features.shape[1])
    few = max(1, meter.windows // FIRST_SHARE)
    best, kl, spent = start, meter.kl(start).mean, 1.0
    first = meter.kl(start, few).mean
    history = [Step(spent, kl)]
    known: dict[Picks, float] = {start: 0.0}
    idle = 0
    while spent < options.evaluations and idle < options.evaluations:
        noise = draw.normal(0.0, SPREAD, (BATCH, len(problem.choices)))
        rewards = np.zeros(BATCH)
        idle += 1
        for sample in range(BATCH):
            factors = np.exp(features @ weights + noise[sample])
            picks = problem.with_costs(problem.costs.scaled(factors.tolist())).solve(limits)
            if picks not in known:
                idle = 0
                known[picks] = log(max(first, LEAST_KL)) - log(max(meter.kl(picks, few).mean, LEAST_KL))
                spent += few / meter.windows
            rewards[sample] = known[picks]
            if meter.kl(picks, few).mean < meter.kl(best, few).mean and picks != best:
                found = meter.kl(picks).mean
                spent += 1.0 - few / meter.windows
                if found < kl:
                    best, kl = picks, found
                    history.append(Step(spent, kl))
        spread = float(rewards.std())
        if spread > 0:
            advantage = (rewards - rewards.mean()) / spread
            gradient = (advantage[:, None] * noise).mean(0) / SPREAD
            weights += RATE * SPREAD * np.linalg.lstsq(features, gradient, rcond=None)[0]
        if progress is not None:
            progress(min(round(spent), options.evaluations), options.evaluations)
    return Refined(best, kl, spent, tuple(history))


def _features(problem: Problem) -> DoubleArray:
    """[choices, features]: what, where, how large, how costly; then one free term a choice."""
    choices = problem.choices
    layers = [_layer(choice) for choice in choices]
    deepest = max([layer for layer in layers if layer is not None], default=1) or 1
    sizes = np.log([max(choice.sizes) for choice in choices])
    costs = np.log([max(max(found), LEAST_KL) for found in problem.costs.by_choice])
    kinds = np.array([[f".{kind}." in f".{choice.names[0]}" for kind in KINDS] for choice in choices], dtype=np.float64)
    depth = np.array([0.0 if layer is None else layer / deepest for layer in layers])
    columns = [kinds, _centred(depth), _centred(depth**2), _centred(sizes), _centred(costs), np.eye(len(choices))]
    return np.concatenate(columns, axis=1)


def _layer(choice: Choice) -> int | None:
    parts: Sequence[str] = choice.names[0].split(".")
    return int(parts[1]) if parts[0] == "blk" and parts[1].isdigit() else None


def _centred(values: DoubleArray) -> DoubleArray:
    spread = float(values.std()) or 1.0
    column: DoubleArray = ((values - values.mean()) / spread)[:, None]
    return column
