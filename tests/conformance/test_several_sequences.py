# SPDX-License-Identifier: Apache-2.0
"""Several whole sequences in one pass of an encoder: each as it is alone."""

from __future__ import annotations

from dataclasses import replace

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
    Program,
    RelativeBias,
    SelectOutputRows,
)
from lilliput.runtime.lowering import lower

INSTRUCTION_SETS = _native.available_instruction_sets()
HEADS, FFN, VOCABULARY, LONGEST = 2, 96, 50, 80
LENGTHS = (5, 1, 33, 12, 80, 2, 31, 64)
TOKENS = np.random.default_rng(6).integers(0, VOCABULARY, sum(LENGTHS), dtype=np.int32)
SEGMENTS = (np.arange(len(TOKENS)) % 3 == 0).astype(np.int32)


def source_of(number_format: str, *, head_dim: int = 32, biased: bool = False, causal: bool = False) -> ProgramSource:
    """Two blocks of BERT with positions and segments."""
    rng = np.random.default_rng(5)
    width = HEADS * head_dim
    operations = [
        Embed("x", "table"),
        Embed("p", "places", by="position"),
        Embed("s", "kinds", by="segment"),
        Add("x", "x", "p"),
        Add("x", "x", "s"),
    ]
    bias = RelativeBias("near", 8, 32, bidirectional=not causal) if biased else None
    for layer in range(2):
        operations += [
            *(Linear(part, "x", part, "bias") for part in "qkv"),
            Attention("y", *"qkv", layer, HEADS, HEADS, head_dim, 0.25, causal=causal, bias=bias),
            Linear("output", "y", "o", "bias"),
            Add("sum", "x", "output"),
            LayerNorm("x", "sum", "ones", "bias", 1e-5),
            Linear("up", "x", "up"),
            Activate("up", "up", "gelu"),
            Linear("output", "up", "down", "bias"),
            Add("sum", "x", "output"),
            LayerNorm("x", "sum", "ones", "bias", 1e-5),
        ]
    shapes = {**dict.fromkeys("qkvo", (width, width)), "up": (FFN, width), "down": (width, FFN)}
    floats = {
        "table": (VOCABULARY, width), "places": (LONGEST, width), "kinds": (2, width), "bias": (width,),
        "near": (8, HEADS),
    }  # fmt: skip
    drawn = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in (shapes | floats).items()}
    tensors = {name: encoded_tensor(name, drawn[name], number_format) for name in shapes}
    tensors |= {name: float_tensor(name, drawn[name]) for name in floats}
    tensors["ones"] = float_tensor("ones", np.ones(width, np.float32))
    widths = {**dict.fromkeys([*"qkvyxps", "output", "sum", "out"], width), "up": FFN}
    states = tuple(KvState(layer, HEADS, head_dim) for layer in range(2))
    program = Program(widths, states, (*operations, SelectOutputRows("out", "x")), "out")
    return ProgramSource(program, tensors)


def engine_of(source: ProgramSource, threads: int = 1, instruction_set: str = "", activations: str = "engine"):
    return _native.Engine(
        lower(source.program, source.tensor, activations), context=LONGEST, batch=len(TOKENS), threads=threads,
        instruction_set=instruction_set, kv_format="f32", activations=activations,
    )  # fmt: skip


def together(engine, rows: np.ndarray | None = None) -> np.ndarray:
    wanted = np.arange(len(TOKENS), dtype=np.int32) if rows is None else rows
    return engine.forward(TOKENS, 0, wanted, SEGMENTS, lengths=np.array(LENGTHS, np.int32))


def alone(engine) -> np.ndarray:
    ends = np.cumsum(LENGTHS)
    return np.concatenate([
        engine.forward(TOKENS[end - n : end], 0, np.arange(n, dtype=np.int32), SEGMENTS[end - n : end])
        for n, end in zip(LENGTHS, ends, strict=True)
    ])  # fmt: skip


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize(("head_dim", "biased"), [(32, False), (32, True), (16, False)])
@pytest.mark.parametrize("number_format", ["int8_channel", "int4_g32"])
def test_each_sequence_has_the_bits_that_it_has_alone(instruction_set, head_dim, biased, number_format):
    source = source_of(number_format, head_dim=head_dim, biased=biased)
    expected = alone(engine_of(source, 1, instruction_set))
    for threads in (1, 2, 3):
        assert np.array_equal(together(engine_of(source, threads, instruction_set)), expected), threads


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize(("number_format", "activations"), [("f32", "f32"), ("q8_0", "f32")])
def test_floats_of_each_sequence_differ_by_roundings_at_most(instruction_set, number_format, activations):
    engine = engine_of(source_of(number_format), 2, instruction_set, activations)
    # 12 products of up to 96 terms follow each other, and norms keep numbers at a few units.
    assert np.abs(together(engine) - alone(engine)).max() < 12 * 96 * 2.0**-24 * 8


def test_rows_are_chosen_among_all_tokens():
    engine = engine_of(source_of("int8_channel"))
    starts = (np.cumsum(LENGTHS) - LENGTHS).astype(np.int32)
    assert np.array_equal(together(engine, starts), together(engine)[starts])


def test_a_sequence_sees_nothing_of_the_others():
    engine = engine_of(source_of("int8_channel"))
    before = together(engine)
    others = TOKENS.copy()
    others[LENGTHS[0] :] = 7
    lengths = np.array(LENGTHS, np.int32)
    after = engine.forward(others, 0, np.arange(len(TOKENS), dtype=np.int32), SEGMENTS, lengths=lengths)
    assert np.array_equal(after[: LENGTHS[0]], before[: LENGTHS[0]])
    assert not np.array_equal(after, before)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([3, 3], "sequences of 6 tokens in all, but there are 10"),
        ([10, 0], "a sequence of 0 tokens among several; 1 to 80 are allowed"),
        ([81, 9], "a sequence of 81 tokens among several; 1 to 80 are allowed"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(lengths, message):
    engine = engine_of(source_of("int8_channel"))
    count = 10 if sum(lengths) <= 10 else sum(lengths)
    rows = np.zeros(0, np.int32)
    with pytest.raises(ValueError, match=message):
        engine.forward(TOKENS[:count], 0, rows, lengths=np.array(lengths, np.int32))


def test_programs_that_need_the_cache_take_one_sequence():
    capped = source_of("int8_channel")
    operations = tuple(
        replace(operation, softcap=5.0) if isinstance(operation, Attention) else operation
        for operation in capped.program.operations
    )
    capped = ProgramSource(replace(capped.program, operations=operations), capped.tensors)
    for source in (source_of("int8_channel", causal=True), capped, source_of("int8_channel", head_dim=24)):
        engine = engine_of(source)
        assert engine.longest_of_several == 0
        with pytest.raises(ValueError, match="a pass of this model takes one sequence"):
            together(engine)
