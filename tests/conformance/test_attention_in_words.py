# SPDX-License-Identifier: Apache-2.0
"""Attention of encoders in integers of 16 bits, which programs have whose linears round their inputs to 8."""

from __future__ import annotations

import numpy as np
import pytest
from reference_program import ProgramSource, encoded_tensor, float_tensor

from lilliput import _native
from lilliput.architectures.program import (
    Attention,
    Embed,
    KvState,
    Linear,
    Program,
    RelativeBias,
    SelectOutputRows,
)
from lilliput.runtime.session import EngineOptions, Session

INSTRUCTION_SETS = _native.available_instruction_sets()
HEADS, VOCABULARY, SCALE = 3, 300, 0.2


def source_of(head_dim: int, *, biased: bool = False, broken: str = "") -> ProgramSource:
    """Attention over embeddings; beside it a linear in integers, whose result nobody reads."""
    rng = np.random.default_rng(4)
    width = HEADS * head_dim
    tables = {name: rng.standard_normal((VOCABULARY, width)).astype(np.float32) for name in "qkv"}
    if broken:
        tables[broken][7, 0] = np.nan
    tensors = {name: float_tensor(name, table) for name, table in tables.items()}
    tensors["near"] = float_tensor("near", rng.standard_normal((8, HEADS)).astype(np.float32))
    tensors["w"] = encoded_tensor("w", rng.standard_normal((32, width)).astype(np.float32), "int8_channel")
    bias = RelativeBias("near", 8, 32, bidirectional=True) if biased else None
    operations = (
        *(Embed(name, name) for name in "qkv"),
        Attention("y", *"qkv", 0, HEADS, HEADS, head_dim, SCALE, causal=False, bias=bias),
        Linear("unread", "y", "w"),
        SelectOutputRows("out", "y"),
    )
    buffers = {**dict.fromkeys([*"qkvy", "out"], width), "unread": 32}
    return ProgramSource(Program(buffers, (KvState(0, HEADS, head_dim),), operations, "out"), tensors)


def run(source: ProgramSource, count: int, activations: str, instruction_set: str | None = None) -> np.ndarray:
    tokens = np.arange(count)
    options = EngineOptions(
        threads=2, activations=activations, kv_format="f32", instruction_set=instruction_set, context=256
    )
    return Session(source, options).forward(tokens, "all")


def bound_of(source: ProgramSource, head_dim: int, count: int) -> float:
    """What rounding q, k, v and probabilities by half a step each can do, counted in the worst case."""
    q, k, v = (source.tensors[name].dequantize()[:count].reshape(count, HEADS, head_dim) for name in "qkv")
    top = np.floor(np.sqrt((2**31 - 1) / head_dim)) - 1
    step = max(np.abs(q).max(), np.abs(k).max()) / top
    sums = np.abs(q).sum(-1).max() + np.abs(k).sum(-1).max()
    score = SCALE * (sums * step / 2 + head_dim * step**2 / 4)
    # Weights are off by a factor e^(±score) and half a step of the largest; sums of them, too.
    largest = float(np.abs(v).max())
    return float(2 * largest * (np.expm1(score) + count / 16383 / 2) + largest / 2047 / 2)


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize(("head_dim", "biased"), [(32, False), (64, True), (96, False)])
@pytest.mark.parametrize("count", [1, 31, 100, 256])
def test_words_err_by_no_more_than_their_steps(instruction_set, head_dim, biased, count):
    source = source_of(head_dim, biased=biased)
    exact = run(source, count, "f32", instruction_set)
    rounded = run(source, count, "engine", instruction_set)
    assert not np.array_equal(rounded, exact)
    assert np.abs(rounded - exact).max() < bound_of(source, head_dim, count)
    # Errors are as likely up as down: on the average a tenth of it.
    assert np.abs(rounded - exact).mean() < bound_of(source, head_dim, count) / 10


def test_heads_of_other_sizes_stay_in_floats():
    source = source_of(48)
    assert np.array_equal(run(source, 40, "engine"), run(source, 40, "f32"))


@pytest.mark.parametrize("broken", ["q", "k", "v"])
def test_what_is_not_finite_does_not_become_a_number(broken):
    found = run(source_of(32, broken=broken), 40, "engine").reshape(40, HEADS, 32)
    rows = [7] if broken == "q" else range(40)
    assert np.isnan(found[rows, 0]).all()
    assert np.isfinite(found[:, 1:]).all()
