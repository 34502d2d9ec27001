# SPDX-License-Identifier: Apache-2.0
"""Attention of many tokens over an F16 cache in integers of 16 bits, beside floats over the same cache."""

from __future__ import annotations

import numpy as np
import pytest
from reference_program import ProgramSource, float_tensor

from lilliput import _native
from lilliput.architectures.program import Attention, Embed, KvState, Program, RelativeBias, SelectOutputRows
from lilliput.runtime.session import EngineOptions, Session

INSTRUCTION_SETS = _native.available_instruction_sets()
VOCABULARY, CONTEXT = 300, 256
ATTENTIONS = {
    "heads of 64 in groups of four": Attention("y", *"qkv", 0, 8, 2, 64, 0.125),
    "heads of 8": Attention("y", *"qkv", 0, 4, 2, 8, 0.35),
    "heads of 24, softcap": Attention("y", *"qkv", 0, 6, 2, 24, 0.3, softcap=5.0),
    "heads of 80, window": Attention("y", *"qkv", 0, 2, 2, 80, 0.11, window=7),
    "more rows than a task, window over a block": Attention("y", *"qkv", 0, 7, 1, 16, 0.25, window=70),
    "biases of distances": Attention("y", *"qkv", 0, 3, 3, 16, 0.25, bias=RelativeBias("near", 8, 32, False)),
    "every token sees all": Attention("y", *"qkv", 0, 3, 3, 20, 0.25, causal=False),
}


def source_of(attention: Attention, *, broken: str = "") -> ProgramSource:
    """Attention over embeddings of the tokens."""
    rng = np.random.default_rng(4)
    counts = {"q": attention.heads, "k": attention.kv_heads, "v": attention.kv_heads}
    widths = {name: count * attention.head_dim for name, count in counts.items()}
    tables = {name: rng.standard_normal((VOCABULARY, width)).astype(np.float32) for name, width in widths.items()}
    tables["k"][:, 0] *= 30  # large in one dimension, as keys are
    tables["v"] *= rng.uniform(0.01, 3, (VOCABULARY, 1)).astype(np.float32)
    if broken:
        tables[broken][7, 0] = np.nan
    tensors = {name: float_tensor(name, table) for name, table in tables.items()}
    tensors["near"] = float_tensor("near", rng.standard_normal((8, attention.heads)).astype(np.float32))
    operations = (*(Embed(name, name) for name in "qkv"), attention, SelectOutputRows("out", "y"))
    buffers = {**widths, "y": widths["q"], "out": widths["q"]}
    states = (KvState(0, attention.kv_heads, attention.head_dim),)
    return ProgramSource(Program(buffers, states, operations, "out"), tensors)


def session_of(source: ProgramSource, activations: str, instruction_set: str | None = None, threads: int = 2):
    options = EngineOptions(
        threads=threads, activations=activations, kv_format="f16", instruction_set=instruction_set, context=CONTEXT
    )
    return Session(source, options)


def bound_of(source: ProgramSource, attention: Attention, count: int) -> float:
    """What rounding q, k, v and weights by half a step each can do, counted in the worst case."""
    q, k, v = (source.tensors[name].dequantize()[:count].reshape(-1, attention.head_dim) for name in "qkv")
    (q_norm, q_sum), (k_norm, k_sum) = (
        (np.linalg.norm(x, axis=-1).max() / 32767, np.abs(x).sum(-1).max()) for x in (q, k)
    )
    score = attention.scale * (q_norm * k_sum + k_norm * q_sum + attention.head_dim * q_norm * k_norm) / 2
    # Exponentials err by 3e-6; up to 64 weights of a block, the largest 1 or more in sum, by half of 1 / 32767.
    weights = np.expm1(2 * score) + 6e-6 + 32 / 32767
    return float(np.abs(v).max() * (2 * weights + 1 / 8191 / 2))


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("name", ATTENTIONS)
@pytest.mark.parametrize("count", [9, 64, 65, 200])
def test_words_err_by_no_more_than_their_steps(instruction_set, name, count):
    attention = ATTENTIONS[name]
    source, tokens = source_of(attention), np.arange(count)
    exact = session_of(source, "f32", instruction_set).forward(tokens, "all")
    rounded = session_of(source, "engine", instruction_set).forward(tokens, "all")
    assert not np.array_equal(rounded, exact)
    assert np.abs(rounded - exact).max() < bound_of(source, attention, count)
    # Errors are as likely up as down: on the average a tenth of it.
    assert np.abs(rounded - exact).mean() < bound_of(source, attention, count) / 10


@pytest.mark.parametrize("name", ATTENTIONS)
def test_what_rounding_to_words_loses_is_less_than_what_float16_loses(name):
    source, tokens = source_of(ATTENTIONS[name]), np.arange(200)
    in_words = session_of(source, "engine").forward(tokens, "all")
    in_floats = session_of(source, "f32").forward(tokens, "all")
    options = EngineOptions(threads=2, activations="f32", kv_format="f32", context=CONTEXT)
    exact = Session(source, options).forward(tokens, "all")
    assert np.abs(in_words - in_floats).mean() < np.abs(in_floats - exact).mean()


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("name", [name for name, attention in ATTENTIONS.items() if attention.causal])
def test_a_prompt_gets_the_same_bits_however_it_is_cut(instruction_set, name):
    source, tokens = source_of(ATTENTIONS[name]), np.arange(200)
    whole = session_of(source, "engine", instruction_set).forward(tokens, "all")
    session = session_of(source, "engine", instruction_set, threads=3)
    # Pieces of more than 8 tokens: fewer are multiplied in floats.
    pieces = [session.forward(piece, "all") for piece in np.split(tokens, [9, 40, 64, 131, 147])]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


@pytest.mark.parametrize("count", [1, 8])
def test_few_tokens_are_multiplied_in_floats(count):
    source, tokens = source_of(ATTENTIONS["heads of 8"]), np.arange(count)
    exact = session_of(source, "f32").forward(tokens, "all")
    np.testing.assert_array_equal(session_of(source, "engine").forward(tokens, "all"), exact)


@pytest.mark.parametrize("broken", ["q", "k", "v"])
def test_what_is_not_finite_does_not_become_a_number(broken):
    attention = ATTENTIONS["heads of 24, softcap"]
    found = session_of(source_of(attention, broken=broken), "engine").forward(np.arange(100), "all")
    found = found.reshape(100, attention.heads, attention.head_dim)
    rows, heads = ([7], [0]) if broken == "q" else (range(7, 100), range(3))
    assert np.isnan(found[np.ix_(rows, heads)]).all()
    assert np.isfinite(found[:7]).all()
    assert np.isfinite(found[:, 3:]).all()
