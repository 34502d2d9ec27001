# SPDX-License-Identifier: Apache-2.0
"""Attention over caches of codes against float64 attention over what the codes mean, on every instruction set."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from reference_program import ProgramSource, float_tensor, run_program
from test_engine_operations import (
    ATTENTIONS,
    INSTRUCTION_SETS,
    attention_bound,
    attention_source,
    tokens_of,
)

from lilliput import _native
from lilliput.architectures.program import Attention, KvState
from lilliput.errors import RuntimeModelError
from lilliput.runtime.lowering import lower
from lilliput.runtime.session import KV_FORMATS, EngineOptions, Session

CODED = tuple(name for name in KV_FORMATS if name.startswith("q"))
SCALE_GROUP = 32


def open_session(source: ProgramSource, **options) -> Session:
    return Session(source, EngineOptions(**{"threads": 2, "context": 600, "activations": "f32", **options}))


def hadamard(size: int):
    """Rows of the Hadamard matrix of a power of two, not normalized."""
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def rotated(x, head_dim: int):
    """Each run of the largest power of two that divides head_dim, times a normalized Hadamard matrix.

    x: floats of few bits, so that sums are exact whatever their order.
    """
    size = head_dim & -head_dim
    sums = (x.reshape(-1, size) @ hadamard(size)).astype(np.float32)
    return (sums * (np.float32(1) / np.sqrt(np.float32(size)))).reshape(x.shape)


def grouped(x, head_dim: int):
    """Scale groups of each head, zeros appended: [rows, heads, groups, 32]."""
    heads = x.reshape(len(x), -1, head_dim)
    padding = -head_dim % SCALE_GROUP
    return np.pad(heads, ((0, 0), (0, 0), (0, padding))).reshape(*heads.shape[:2], -1, SCALE_GROUP)


def decoded(x, head_dim: int, bits: int, scale_type: type = np.float16):
    """Values of the codes of a key, a value or (with float32 scales) a query: [rows, heads * head_dim]."""
    groups = grouped(x, head_dim)
    reach, zero_point = (np.float32(127), np.float32(0)) if bits == 8 else (np.float32(7.5), np.float32(7.5))
    scale = (np.abs(groups).max(axis=-1, keepdims=True) / reach).astype(scale_type).astype(np.float32)
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)
    codes = np.clip(np.rint(groups * inverse + zero_point), zero_point - reach, zero_point + reach)
    values = (codes - zero_point).astype(np.float64) * scale
    return values.reshape(*values.shape[:2], -1)[..., :head_dim].reshape(x.shape)


def dyadic(source: ProgramSource) -> ProgramSource:
    """The same source with tables of quarters."""
    tensors = {
        name: float_tensor(name, (np.rint(tensor.dequantize() * 4) / 4).astype(np.float32))
        for name, tensor in source.tensors.items()
    }
    return ProgramSource(source.program, tensors)


def meant(source: ProgramSource, attention: Attention, kv_format: str) -> ProgramSource:
    """The source whose tables hold what queries, keys and values become, rotated if they are."""
    bits = 8 if kv_format.startswith("q8") else 4
    tensors = {}
    for name, tensor in source.tensors.items():
        values = tensor.dequantize()
        if not kv_format.endswith("plain"):
            values = rotated(values, attention.head_dim)
        values = decoded(values, attention.head_dim, *((8, np.float32) if name == "tq" else (bits,)))
        tensors[name] = float_tensor(name, values.astype(np.float32))
    return ProgramSource(source.program, tensors)


def coded_bound(source: ProgramSource, attention: Attention, tokens, kv_format: str) -> float:
    """Roundings of floats, and of probabilities: half of 1 / 16383 of the largest in a block of 64 keys, each."""
    values = np.abs(source.tensors["tv"].dequantize()[tokens]).max()
    bound = attention_bound(source, attention, tokens, input_error=0.0) + 64 * 0.5 / 16383 * values
    # Rotating back adds up to sqrt(size) of such errors, and a rounding each.
    size = 1 if kv_format.endswith("plain") else attention.head_dim & -attention.head_dim
    return bound * np.sqrt(size)


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("kv_format", CODED)
@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention_over_codes_is_attention_over_what_they_mean(instruction_set, kv_format, name):
    attention = ATTENTIONS[name]
    source = dyadic(attention_source(attention))
    for count in (1, 9, 130):
        tokens = tokens_of(count)
        exact = meant(source, attention, kv_format)
        expected = run_program(exact, tokens, range(count))
        if not kv_format.endswith("plain"):
            expected = rotated(expected, attention.head_dim).reshape(expected.shape)
        got = open_session(source, kv_format=kv_format, instruction_set=instruction_set).forward(tokens, "all")
        assert np.abs(got - expected).max() <= coded_bound(exact, attention, tokens, kv_format)


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("kv_format", KV_FORMATS)
def test_tokens_one_by_one_over_ranges_of_keys_are_the_tokens_of_a_batch(instruction_set, kv_format):
    # 560 keys are two ranges. Codes and blocks are the same; only their sums are joined otherwise.
    source, tokens = attention_source(ATTENTIONS["groups of eight"]), tokens_of(560)
    expected = open_session(source, kv_format=kv_format, instruction_set=instruction_set).forward(
        tokens, [557, 558, 559]
    )
    session = open_session(source, kv_format=kv_format, instruction_set=instruction_set)
    session.forward(tokens[:557], "none")
    got = np.concatenate([session.forward([token]) for token in tokens[557:]])
    np.testing.assert_allclose(got, expected, atol=2e-6)


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("kv_format", KV_FORMATS)
def test_results_are_the_same_at_any_number_of_threads(instruction_set, kv_format):
    source, tokens = attention_source(ATTENTIONS["head of 80, window"]), tokens_of(540)
    results = []
    for threads in (1, 2, 5):
        session = open_session(source, kv_format=kv_format, instruction_set=instruction_set, threads=threads)
        results.append(np.concatenate([session.forward(tokens[:539]), session.forward(tokens[539:])]))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


@pytest.mark.parametrize("kv_format", KV_FORMATS)
@pytest.mark.parametrize("length", [3, 4, 15, 16, 21])
def test_what_was_forgotten_leaves_no_trace_in_the_codes(kv_format, length):
    # Four-bit values share bytes with those of other positions.
    source, tokens = attention_source(ATTENTIONS["softcap"]), tokens_of(40)
    expected = open_session(source, kv_format=kv_format).forward(tokens, "all")[length:]
    session = open_session(source, kv_format=kv_format)
    session.forward(tokens[:length], "none")
    session.forward(tokens_of(33), "none")
    session.truncate(length)
    np.testing.assert_allclose(session.forward(tokens[length:], "all"), expected, atol=2e-6)


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("kv_format", KV_FORMATS)
@pytest.mark.parametrize(("table", "bad"), [("tq", np.nan), ("tk", np.nan), ("tv", np.nan), ("tv", np.inf)])
def test_what_is_no_number_shows_and_is_forgotten(instruction_set, kv_format, table, bad):
    source = attention_source(ATTENTIONS["one head"])
    values = source.tensors[table].dequantize().copy()
    values[7, 3] = bad
    poisoned = ProgramSource(source.program, {**source.tensors, table: float_tensor(table, values)})
    session = open_session(poisoned, kv_format=kv_format, instruction_set=instruction_set)
    assert not np.isfinite(session.forward([1, 2, 7], "all")[2]).all()
    session.truncate(2)
    expected = open_session(source, kv_format=kv_format, instruction_set=instruction_set).forward([1, 2, 5], [2])
    np.testing.assert_allclose(session.forward([5]), expected, atol=2e-6)


@pytest.mark.parametrize("kv_format", CODED)
def test_zeros_stay_zeros_and_small_values_keep_their_scale(kv_format):
    attention = ATTENTIONS["groups of eight"]
    source, tokens = attention_source(attention), tokens_of(20)
    for factor in (0.0, 1e-3):
        table = float_tensor("tv", (source.tensors["tv"].dequantize() * factor).astype(np.float32))
        scaled = ProgramSource(source.program, {**source.tensors, "tv": table})
        got = open_session(scaled, kv_format=kv_format).forward(tokens, "all")
        whole = open_session(source, kv_format=kv_format).forward(tokens, "all")
        # A scale of 1e-3 / 7.5 keeps 10 bits in F16, so a code may be the next one.
        step = np.abs(whole).max() * factor / (127 if kv_format.startswith("q8") else 7.5)
        assert np.abs(got - factor * whole).max() <= 2 * step


@pytest.mark.parametrize(("kv_format", "bits"), [("f32", 32), ("f16", 16), ("q8_0", 8.5), ("q4_0", 4.5)])
def test_a_cache_takes_its_bits_a_value(kv_format, bits):
    attention = Attention("y", "q", "k", "v", 0, 4, 2, 64, 0.125)
    session = open_session(attention_source(attention), kv_format=kv_format, context=320)
    assert session.cache_bytes == 2 * 320 * 2 * 64 * bits / 8
    assert session.cache_bytes == _native.kv_cache_bytes(kv_format, 320, 2, 64)


def test_heads_too_wide_for_codes_are_refused_with_what_to_do():
    attention = Attention("y", "q", "k", "v", 0, 1, 1, 1040, 0.03)
    source = attention_source(attention)
    assert np.isfinite(open_session(source).forward([1, 2])).all()
    with pytest.raises(RuntimeModelError, match=r"heads are 1040 wide.*up to 1024: use kv format f16"):
        open_session(source, kv_format="q8_0")


@pytest.mark.parametrize("kv_format", CODED)
def test_the_widest_head_of_codes_is_right(kv_format):
    attention = Attention("y", "q", "k", "v", 0, 2, 1, 1024, 1 / 64)
    source, tokens = attention_source(attention), tokens_of(20)
    expected = run_program(source, tokens, range(20))
    error = open_session(source, kv_format=kv_format).forward(tokens, "all") - expected
    assert np.sqrt(np.mean(error**2) / np.mean(expected**2)) < (0.02 if kv_format.startswith("q8") else 0.3)


@pytest.mark.parametrize("kv_format", ["q8_0", "q4_0"])
def test_rotation_keeps_what_outliers_of_one_dimension_would_cost(kv_format):
    attention = ATTENTIONS["one head"]
    source, tokens = attention_source(attention), tokens_of(100)
    keys = source.tensors["tk"].dequantize() * np.where(np.arange(64) == 5, 20, 1).astype(np.float32)
    queries = source.tensors["tq"].dequantize() * np.where(np.arange(64) == 5, 0.05, 1).astype(np.float32)
    tensors = {**source.tensors, "tk": float_tensor("tk", keys), "tq": float_tensor("tq", queries)}
    source = ProgramSource(source.program, tensors)
    expected = run_program(source, tokens, range(100))
    errors = [
        np.abs(open_session(source, kv_format=name).forward(tokens, "all") - expected).mean()
        for name in (kv_format, f"{kv_format}_plain")
    ]
    assert errors[0] < 0.7 * errors[1]


def test_states_of_several_layers_are_each_in_the_format():
    attention = ATTENTIONS["groups of eight"]
    source = attention_source(attention)
    states = (*source.program.states, KvState(1, 3, 24))
    program = replace(source.program, states=states)
    layers = [_native.kv_cache_bytes("q4_0", 600, heads, width) for heads, width in ((2, 16), (3, 24))]
    assert open_session(ProgramSource(program, source.tensors), kv_format="q4_0").cache_bytes == sum(layers)


@pytest.mark.parametrize("kv_format", KV_FORMATS)
def test_sequences_side_by_side_go_on_from_what_they_took_over(kv_format):
    source = attention_source(ATTENTIONS["groups of two, head of 8"])
    engine = _native.Engine(
        lower(source.program, source.tensor), context=64, batch=32, threads=2, kv_format=kv_format,
        activations="f32", sequences=3,
    )  # fmt: skip
    histories: list[list[int]] = [[], [], []]
    for step in range(27):
        if step in (19, 22):
            sources = [2, 2, 0]
            engine.reorder(np.array(sources, dtype=np.int32))
            histories = [list(histories[index]) for index in sources]
        tokens = tokens_of(100 + step)[:3].astype(np.int32)
        for history, token in zip(histories, tokens, strict=True):
            history.append(int(token))
        got = engine.forward(tokens, step, np.arange(3, dtype=np.int32), abreast=True)
    for row, history in zip(got, histories, strict=True):
        session = open_session(source, kv_format=kv_format)
        session.forward(history[:-1], "none")
        np.testing.assert_array_equal(session.forward(history[-1:])[0], row)
