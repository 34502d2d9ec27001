# SPDX-License-Identifier: Apache-2.0
"""Inputs of experts: each sees the tokens that are routed to it, and some see hardly any.

Statistics of one expert of a stack are kept under `blk.0.ffn_up_exps.weight#3`. An expert that saw few tokens would be
fitted to those alone; its statistics are mixed with those of all experts of its stack, which are what it will see when
nothing else is known.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lilliput.records import NO_INPUTS, LayerInputs, Statistics

# An expert with fewer tokens is starved; the mean of all experts then counts as so many tokens.
STARVED_BELOW = 64


def of_expert(name: str, expert: int) -> str:
    """The name that statistics of one expert have."""
    return f"{name}#{expert}"


def split_name(name: str) -> tuple[str, int | None]:
    """Tensor and expert of a name; no expert for other tensors."""
    stack, mark, expert = name.rpartition("#")
    return (stack, int(expert)) if mark and expert.isdecimal() else (name, None)


def expert_inputs(statistics: Statistics, name: str, experts: int) -> list[LayerInputs]:
    """What each expert of a stack saw; NO_INPUTS for those without statistics."""
    found = [statistics.inputs.get(of_expert(name, expert)) for expert in range(experts)]
    return [
        LayerInputs(entry.tokens, entry.input_mean_square) if entry is not None and entry.tokens else NO_INPUTS
        for entry in found
    ]


def knows_inputs(statistics: Statistics, name: str) -> bool:
    """Whether there is anything about a tensor, or about any expert of a stack."""
    return name in statistics.inputs or any(split_name(each)[0] == name for each in statistics.inputs)


def starved_experts(inputs: Sequence[LayerInputs]) -> list[int]:
    """Experts that saw too few tokens, where any saw some."""
    if not any(each.tokens for each in inputs):
        return []
    return [expert for expert, each in enumerate(inputs) if each.tokens < STARVED_BELOW]


def with_prior(inputs: Sequence[LayerInputs]) -> list[LayerInputs]:
    """The same, mean squares of starved experts mixed with the mean of all; their Hessians are left out.

    A starved expert that saw n tokens has (n own + 64 mean) / (n + 64).
    """
    starved = set(starved_experts(inputs))
    if not starved:
        return list(inputs)
    seen = [(each.tokens, np.asarray(each.mean_square, dtype=np.float64)) for each in inputs if each.tokens]
    mean = np.asarray(sum(tokens * square for tokens, square in seen) / sum(tokens for tokens, _ in seen))
    return [_mixed(each, mean) if expert in starved else each for expert, each in enumerate(inputs)]


def _mixed(inputs: LayerInputs, mean: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> LayerInputs:
    own = 0.0 if inputs.mean_square is None else inputs.tokens * np.asarray(inputs.mean_square, dtype=np.float64)
    square = (own + STARVED_BELOW * mean) / (inputs.tokens + STARVED_BELOW)
    return LayerInputs(inputs.tokens, square.astype(np.float32))
