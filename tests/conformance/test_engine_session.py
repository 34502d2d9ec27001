# SPDX-License-Identifier: Apache-2.0
"""A whole tiny Llama in the native engine: batches, threads, rollback, bad input, forks, interruption."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from reference_program import ProgramSource, encoded_tensor, float_tensor, run_program

from lilliput import _native
from lilliput.architectures import llama
from lilliput.architectures.architecture import ModelConfig
from lilliput.architectures.program import Embed, Linear, Program, RopeFrequencies, SelectOutputRows
from lilliput.errors import RuntimeModelError
from lilliput.formats import get_format
from lilliput.records import QuantizedTensor
from lilliput.runtime import session as session_module
from lilliput.runtime.session import EngineOptions, Session, batch_size

INSTRUCTION_SETS = _native.available_instruction_sets()
CONFIG = ModelConfig(
    family="llama", vocab_size=96, context_length=256, hidden_size=64, layers=2, heads=4, kv_heads=2, head_dim=16,
    ffn_size=160, norm_epsilon=1e-5, rope=RopeFrequencies(10_000.0, 16), tied=False,
)  # fmt: skip


def tiny_llama(format_name: str = "f32") -> ProgramSource:
    rng = np.random.default_rng(11)
    tensors = {}
    for entry in llama.tensor_table(CONFIG):
        values = rng.standard_normal(entry.shape).astype(np.float32) / np.float32(np.sqrt(entry.shape[-1]))
        if len(entry.shape) == 1:
            tensors[entry.name] = float_tensor(entry.name, 1 + values)
        else:
            tensors[entry.name] = encoded_tensor(entry.name, values, format_name)
    return ProgramSource(llama.program(CONFIG), tensors, CONFIG.context_length)


def tokens_of(count: int):
    return np.random.default_rng(count).integers(0, CONFIG.vocab_size, count).astype(np.int32)


def open_session(source: ProgramSource, **options) -> Session:
    return Session(source, EngineOptions(**{"threads": 2, "context": 200, **options}))


EXACT = {"activations": "f32", "kv_format": "f32"}


def reference_and_bound(source: ProgramSource, tokens, rows):
    """Float64 logits, and four times what numpy's own float32 forward misses them by: another order of sums."""
    expected = run_program(source, tokens, rows)
    missed = np.abs(run_program(source, tokens, rows, np.float32) - expected).max()
    assert 0 < missed < 1e-4
    return expected, 4 * missed


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("format_name", ["f32", "q8_0"])
def test_the_forward_pass_is_as_exact_as_float32_can_be(instruction_set, format_name):
    source, tokens = tiny_llama(format_name), tokens_of(70)
    expected, bound = reference_and_bound(source, tokens, range(70))
    got = open_session(source, instruction_set=instruction_set, **EXACT).forward(tokens, "all")
    assert np.abs(got - expected).max() <= bound


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("format_name", ["q8_0", "q4_1", "mxfp4"])
def test_repacked_weights_give_what_weights_as_they_are_stored_give(instruction_set, format_name):
    source, tokens = tiny_llama(format_name), tokens_of(30)
    repacked = open_session(source, instruction_set=instruction_set)
    stored = open_session(source, instruction_set=instruction_set, repack=False)
    expected = stored.forward(tokens, "all")
    logits = [repacked.forward(tokens, "all")]
    repacked.truncate(0)
    logits.append(repacked.forward(tokens, "all"))
    np.testing.assert_array_equal(*logits)
    if instruction_set.endswith("_vnni") and format_name != "q4_1":
        # There scales become integers, and dots are rounded to 16 bits: by much less than the inputs are.
        exact = open_session(source, instruction_set=instruction_set, activations="f32").forward(tokens, "all")
        error_of_stored = np.abs(expected - exact).mean()
        assert 0 < np.abs(logits[0] - exact).mean() < 1.1 * error_of_stored
    else:
        np.testing.assert_array_equal(logits[0], expected)
    assert stored.repacked_bytes == 0 < repacked.repacked_bytes


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("format_name", ["q8_0", "q5_0", "mxfp4", "f16"])
def test_what_repacking_takes_is_told_from_headers(instruction_set, format_name):
    source = tiny_llama(format_name)
    session = open_session(source, instruction_set=instruction_set)
    matrices = [item for name, item in source.tensors.items() if len(item.shape) == 2 and "embd" not in name]
    told = [_native.repacked_bytes(item.format.name, item.rows, item.columns, instruction_set) for item in matrices]
    # Past the last of them, 8 KiB that may be read.
    assert session.repacked_bytes == sum(told) + (8192 if sum(told) else 0)


def test_exact_inputs_leave_weights_as_they_are_stored():
    assert open_session(tiny_llama("q8_0"), **EXACT).repacked_bytes == 0


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_token_by_token_equals_one_batch(instruction_set):
    source, tokens = tiny_llama(), tokens_of(40)
    expected, bound = reference_and_bound(source, tokens, range(40))
    session = open_session(source, instruction_set=instruction_set, **EXACT)
    got = np.concatenate([session.forward([int(token)]) for token in tokens])
    assert np.abs(got - expected).max() <= bound
    assert session.length == 40


def test_a_text_longer_than_a_batch_is_cut_into_batches(monkeypatch):
    source, tokens = tiny_llama(), tokens_of(100)
    expected, bound = reference_and_bound(source, tokens, range(100))
    monkeypatch.setattr(session_module, "LARGEST_BATCH", 32)
    session = open_session(source, **EXACT)
    assert session.batch == 32
    seen = []
    got = session.forward(tokens, "all", progress=lambda done, total: seen.append((done, total)))
    assert np.abs(got - expected).max() <= bound
    assert seen == [(32, 100), (64, 100), (96, 100), (100, 100)]


@cache
def wide_llama(format_name: str) -> ProgramSource:
    """One layer whose rows hold whole blocks of every format."""
    config = replace(CONFIG, hidden_size=256, heads=16, ffn_size=512, layers=1)
    tensors = {}
    for entry in llama.tensor_table(config):
        values = np.random.default_rng(3).standard_normal(entry.shape).astype(np.float32) / np.float32(16)
        if len(entry.shape) == 1:
            tensors[entry.name] = float_tensor(entry.name, 1 + values)
            continue
        blocks = _native.encode(format_name, values).reshape(len(values), -1)
        tensors[entry.name] = QuantizedTensor(entry.name, entry.shape, get_format(format_name), {"blocks": blocks})
    return ProgramSource(llama.program(config), tensors, config.context_length)


@pytest.mark.parametrize("format_name", _native.encoders())
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_results_do_not_depend_on_the_number_of_threads(instruction_set, format_name):
    source, tokens = wide_llama(format_name), tokens_of(60)
    results = []
    for threads in (1, 2, 5):
        session = open_session(source, instruction_set=instruction_set, threads=threads)
        results.append(np.concatenate([session.forward(tokens[:50], "all"), session.forward(tokens[50:51])]))
    assert np.isfinite(results[0]).all()
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


@pytest.mark.parametrize(
    ("output", "rows"), [("last", [29]), ("none", []), ([0, 7, 28], [0, 7, 28]), ("all", range(30))]
)
def test_only_the_rows_asked_for_come_back(output, rows):
    source, tokens = tiny_llama(), tokens_of(30)
    whole = open_session(source).forward(tokens, "all")
    got = open_session(source).forward(tokens, output)
    assert got.dtype == np.float32
    # Fewer output rows change the shape of the last products, and with it nothing but the order of their sums.
    np.testing.assert_allclose(got, whole[list(rows)], atol=1e-5)


def test_truncation_forgets_exactly_the_tokens_after_it():
    source, tokens = tiny_llama(), tokens_of(50)
    session = open_session(source)
    session.forward(tokens[:20], "none")
    first = session.forward(tokens[20:])
    session.truncate(20)
    assert (session.length, session.token_ids) == (20, tuple(tokens[:20].tolist()))
    session.forward(tokens_of(33), "none")
    session.truncate(20)
    np.testing.assert_array_equal(session.forward(tokens[20:]), first)
    with pytest.raises(RuntimeModelError, match="cannot truncate to 51 tokens: the cache holds 50"):
        session.truncate(51)


def test_a_context_longer_than_the_models_is_refused():
    with pytest.raises(RuntimeModelError, match="context 300 is longer than the model's 256"):
        open_session(tiny_llama(), context=300)


def test_tokens_that_do_not_fit_the_context_are_refused_and_change_nothing():
    session = open_session(tiny_llama(), context=20)
    session.forward(tokens_of(15), "none")
    with pytest.raises(RuntimeModelError, match="15 tokens are in the cache and 6 more do not fit the context of 20"):
        session.forward(tokens_of(6))
    assert session.length == 15
    session.forward(tokens_of(5))
    assert session.length == session.context == 20


@pytest.mark.parametrize("bad", [-1, 96, 2**31 - 1, 2**40])
def test_token_ids_outside_the_vocabulary_are_refused_and_change_nothing(bad):
    session = open_session(tiny_llama())
    session.forward([1, 2], "none")
    with pytest.raises(RuntimeModelError, match=f"token id {bad} is outside"):
        session.forward([3, bad])
    assert session.token_ids == (1, 2)


@pytest.mark.parametrize("rows", [[3], [-1], [1, 1], [2, 0]])
def test_output_rows_that_do_not_exist_or_do_not_increase_are_refused(rows):
    with pytest.raises(RuntimeModelError, match="output rows must increase"):
        open_session(tiny_llama()).forward([1, 2, 3], rows)


def test_no_tokens_give_no_logits():
    assert open_session(tiny_llama()).forward([], "all").shape == (0, 96)


def test_the_native_engine_checks_its_own_border():
    source = tiny_llama()
    engine = open_session(source)._engine
    tokens, rows = np.zeros(3, dtype=np.int32), np.zeros(1, dtype=np.int32)
    for message, arguments in {
        "n_past is 1, but the cache holds 0": (tokens, 1, rows),
        "n_past is -1": (tokens, -1, rows),
        "0 tokens in one batch": (tokens[:0], 0, rows),
        "output row 0 of 3": (tokens, 0, np.array([2, 0], dtype=np.int32)),
        "token id 96": (np.full(1, 96, dtype=np.int32), 0, rows),
    }.items():
        with pytest.raises(ValueError, match=message):
            engine.forward(*arguments)
    with pytest.raises(TypeError):
        engine.forward(np.zeros(3, dtype=np.int64), 0, rows)


def test_unknown_options_are_refused_with_the_known_ones():
    for option, message in {
        "instruction_set": "known: scalar, avx2, avx_vnni, avx512_vnni",
        "kv_format": "known: f16, f32, q8_0, q4_0, q8_0_plain, q4_0_plain",
        "activations": "known: engine, file, f32, or integers: int8_token",
    }.items():
        with pytest.raises(RuntimeModelError, match=message):
            open_session(tiny_llama(), **{option: "other"})
    with pytest.raises(RuntimeModelError, match="threads is 256"):
        open_session(tiny_llama(), threads=256)


def test_threads_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("LILLIPUT_THREADS", "3")
    assert open_session(tiny_llama(), threads=None).threads == 3
    monkeypatch.setenv("LILLIPUT_THREADS", "many")
    with pytest.raises(RuntimeModelError, match="LILLIPUT_THREADS is 'many'"):
        open_session(tiny_llama(), threads=None)


def test_a_batch_shrinks_so_that_its_buffers_stay_small():
    wide = Program({"x": 200_000, "y": 400_000, "logits": 5}, (), (), "logits")
    assert batch_size(wide) == 32
    assert batch_size(llama.program(CONFIG)) == 512


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_computes_the_same_with_threads_of_its_own():
    source, tokens = tiny_llama(), tokens_of(40)
    session = open_session(source)
    expected = session.forward(tokens, "all")
    session.truncate(0)
    child = os.fork()
    if child == 0:
        same = np.array_equal(session.forward(tokens, "all"), expected)
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0
    np.testing.assert_array_equal(session.forward(tokens, "all"), expected)


def test_two_python_threads_share_the_pool_without_mixing_results():
    source = tiny_llama()
    texts = [tokens_of(30), tokens_of(45)]
    expected = [open_session(source).forward(text, "all") for text in texts]
    wrong = []

    def work(index: int) -> None:
        session = open_session(source)
        for _ in range(20):
            session.truncate(0)
            if not np.array_equal(session.forward(texts[index], "all"), expected[index]):
                wrong.append(index)

    workers = [threading.Thread(target=work, args=(index,)) for index in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


class AlarmError(Exception):
    pass


def test_a_signal_stops_a_long_pass_between_operations_and_keeps_the_cache_sound():
    width, chain = 1536, 24
    weight = float_tensor("w", np.zeros((width, width), dtype=np.float32))
    operations = [Embed("x0", "w")]
    operations += [Linear(f"x{(i + 1) % 2}", f"x{i % 2}", "w") for i in range(chain)]
    operations.append(SelectOutputRows("logits", f"x{chain % 2}"))
    widths = {"x0": width, "x1": width, "logits": width}
    source = ProgramSource(Program(widths, (), tuple(operations), "logits"), {"w": weight})
    session = Session(source, EngineOptions(threads=1, instruction_set="scalar", context=512))

    def ring(signum, frame):
        raise AlarmError

    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        start = time.monotonic()
        with pytest.raises(AlarmError):
            session.forward(np.zeros(512, dtype=np.int32))
        interrupted_after = time.monotonic() - start
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert session.length == 0
    assert interrupted_after < 10
    assert session.forward([5]).shape == (1, width)
