# SPDX-License-Identifier: Apache-2.0
"""Passes whose threads take tokens instead of rows of weights: the same bits as one thread gives."""

from __future__ import annotations

import numpy as np
import pytest
from reference_program import ProgramSource, encoded_tensor, float_tensor

from lilliput import _native
from lilliput.architectures.program import (
    Activate,
    Add,
    Attention,
    Embed,
    KvState,
    LayerNorm,
    Linear,
    Operation,
    Program,
    RelativeBias,
    SelectOutputRows,
)
from lilliput.runtime.session import EngineOptions, Session

INSTRUCTION_SETS = _native.available_instruction_sets()
HEADS, HEAD_DIM, FFN, LAYERS, VOCABULARY = 3, 32, 160, 3, 50
WIDTH = HEADS * HEAD_DIM


def blocks(*, causal: bool, bias: RelativeBias | None) -> tuple[Operation, ...]:
    """Blocks of BERT, all with the same weights; the second attention finds keys that the first one has read."""
    operations: list[Operation] = [Embed("x", "table")]
    for layer in range(LAYERS):
        operations += [Linear(part, "x", part, "bias") for part in "qkv"]
        operations += [
            Attention("y", *"qkv", layer, HEADS, HEADS, HEAD_DIM, 0.25, causal=causal, bias=bias),
            Linear("output", "y", "o", "bias"),
            Add("sum", "x", "output"),
            LayerNorm("x", "sum", "ones", "bias", 1e-5),
            Linear("up", "x", "up"),
            Activate("up", "up", "gelu"),
            Linear("output", "up", "down", "bias"),
            Add("sum", "x", "output"),
            LayerNorm("x", "sum", "ones", "bias", 1e-5),
        ]
    return (*operations, SelectOutputRows("out", "x"))


def source_of(kinds: dict[str, str], *, causal: bool = False, biased: bool = False) -> ProgramSource:
    """kinds: number formats of weights that are not int8 a channel."""
    rng = np.random.default_rng(5)
    shapes = {**dict.fromkeys("qkvo", (WIDTH, WIDTH)), "up": (FFN, WIDTH), "down": (WIDTH, FFN)}
    tensors = {
        name: encoded_tensor(name, rng.standard_normal(shape).astype(np.float32), kinds.get(name, "int8_channel"))
        for name, shape in shapes.items()
    }
    floats = {"table": (VOCABULARY, WIDTH), "bias": (WIDTH,), "near": (8, HEADS)}
    tensors |= {
        name: float_tensor(name, rng.standard_normal(shape).astype(np.float32)) for name, shape in floats.items()
    }
    tensors["ones"] = float_tensor("ones", np.ones(WIDTH, np.float32))
    relative = RelativeBias("near", 8, 32, bidirectional=not causal) if biased else None
    widths = {**dict.fromkeys([*"qkvyx", "output", "sum", "out"], WIDTH), "up": FFN}
    states = tuple(KvState(layer, HEADS, HEAD_DIM) for layer in range(LAYERS))
    return ProgramSource(Program(widths, states, blocks(causal=causal, bias=relative), "out"), tensors)


def run(source: ProgramSource, tokens: np.ndarray, threads: int, instruction_set: str | None = None) -> np.ndarray:
    options = EngineOptions(threads=threads, kv_format="f32", instruction_set=instruction_set, context=128)
    return Session(source, options).forward(tokens, "all")


def tokens_of(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, VOCABULARY, count)


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("biased", [False, True])
def test_threads_that_take_tokens_give_the_bits_of_one_thread(instruction_set, biased):
    source = source_of({}, biased=biased)
    for count in (63, 64, 97, 128):
        exact = run(source, tokens_of(count), 1, instruction_set)
        for threads in (2, 3):
            assert np.array_equal(run(source, tokens_of(count), threads, instruction_set), exact), (count, threads)


@pytest.mark.parametrize(
    "kinds", [{"o": "q8_0"}, {"k": "q8_0"}, {"up": "f16", "down": "q4_0"}, dict.fromkeys("qkv", "f32")]
)
def test_weights_that_are_cut_by_rows_may_stand_between(kinds):
    source = source_of(kinds)
    assert np.array_equal(run(source, tokens_of(100), 2), run(source, tokens_of(100), 1))


def test_causal_attention_stands_between_what_is_cut_by_tokens():
    source = source_of({}, causal=True, biased=True)
    exact = run(source, tokens_of(100), 1)
    assert np.array_equal(run(source, tokens_of(100), 2), exact)


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("kind", ["int8_channel", "int8_channel_asym"])
def test_one_token_alone_has_the_bits_that_it_has_among_others(instruction_set, kind):
    source = source_of(dict.fromkeys(["q", "k", "v", "o", "up", "down"], kind), causal=True)
    tokens = tokens_of(9)
    together = run(source, tokens, 1, instruction_set)
    options = EngineOptions(threads=2, kv_format="f32", instruction_set=instruction_set, context=128)
    session = Session(source, options)
    alone = np.concatenate([session.forward(tokens[i : i + 1]) for i in range(len(tokens))])
    # Attention sums its keys in other ranges; what the first token gives has seen one key.
    assert np.array_equal(alone[0], together[0])
    assert np.allclose(alone, together, atol=0.2)
