# SPDX-License-Identifier: Apache-2.0
"""The measurement behind `lilliput bench`: what its rows hold, and how it fails."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lilliput.architectures.program import Experts, Program
from lilliput.containers import open_model
from lilliput.errors import RuntimeModelError
from lilliput.formats import get_format
from lilliput.records import TensorHeader
from lilliput.runtime.speed import SpeedTest, measure_speed, speed_tests
from lilliput.runtime.speed_limits import Limits, token_work

Run = Callable[..., tuple[int, str, str]]


def test_each_thread_count_gets_a_row_per_test_and_zero_skips() -> None:
    tests = speed_tests([1, 2], prefill=8, decode=4, depth=3, repeat=2)
    assert [(test.threads, test.test, test.n, test.depth, test.repeat) for test in tests] == [
        (1, "prefill", 8, 3, 2), (1, "decode", 4, 3, 2), (2, "prefill", 8, 3, 2), (2, "decode", 4, 3, 2),
    ]  # fmt: skip
    assert [test.test for test in speed_tests([1], prefill=0, decode=4, depth=0, repeat=1)] == ["decode"]


def test_rows_say_what_was_measured_in_a_process_of_its_own(stories_folder: Path) -> None:
    seen = []
    tests = speed_tests([2], prefill=32, decode=8, depth=16, repeat=3)
    rows = measure_speed(str(stories_folder), tests, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]
    for test, row in zip(tests, rows, strict=True):
        assert row.to_json().keys() == {
            "threads", "test", "n", "depth", "kv_format", "batch", "instruction_set", "ready_s", "first_token_s",
            "limit_tok_s", "tok_s_median", "tok_s_min", "tok_s_max", "peak_rss_bytes",
        }  # fmt: skip
        assert (row.threads, row.test, row.n, row.depth) == (2, test.test, test.n, 16)
        assert 0 < row.tok_s_min <= row.tok_s_median <= row.tok_s_max
        assert 0 < row.ready_s < row.first_token_s
        assert row.limit_tok_s > 0
        assert 10_000_000 < row.peak_rss_bytes < 2_000_000_000


def test_decoding_takes_as_many_tokens_a_pass_as_asked(stories_folder: Path) -> None:
    tests = speed_tests([1], prefill=0, decode=9, depth=0, repeat=1, batches=(1, 4))
    assert [row.batch for row in measure_speed(str(stories_folder), tests)] == [1, 4]


def test_a_token_is_counted_by_the_matrices_that_it_meets(stories_folder: Path) -> None:
    source = open_model(stories_folder)
    program = source.architecture.program(source.config)
    work = token_work(program, lambda name: source.headers[name])
    hidden, ffn, kv = 64, 172, 32  # of its config
    block = 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * ffn
    last = hidden * hidden + 3 * hidden * ffn + 512 * hidden  # after the rows whose logits were asked for are chosen
    products = 2 * 4  # of numbers four times as wide as bytes
    assert (work.operations, work.last_operations) == (products * (5 * block + 512 * hidden - last), products * last)
    assert work.bytes == 4 * (5 * block + 512 * hidden)
    limits = Limits(operations=4e9, bytes=1e9)
    assert work.prefill_limit(10, limits) == pytest.approx(4e9 / (work.operations + work.last_operations / 10))
    assert work.decode_limit(1, 1000.0, limits) == pytest.approx(1e9 / (work.bytes + 1000))
    assert work.decode_limit(64, 1000.0, limits) == pytest.approx(4e9 / (work.operations + work.last_operations))


def test_a_token_meets_the_experts_that_are_used() -> None:
    experts = Experts("out", "x", "router", "gate", "up", "down", "silu", used=2, normalizes=True)
    program = Program({"x": 8, "router": 4, "out": 8}, (), (experts,), "out")
    stacks = {"gate": (4, 16, 8), "up": (4, 16, 8), "down": (4, 8, 16)}
    work = token_work(program, lambda name: TensorHeader(name, stacks[name], get_format("f16")))
    assert (work.operations, work.bytes) == (2 * 2 * 2 * 3 * 16 * 8, 2 * 2 * 3 * 16 * 8)


def test_a_test_longer_than_the_context_is_refused_in_one_line(stories_folder: Path) -> None:
    with pytest.raises(RuntimeModelError, match=r"^500 tokens at depth 13 are longer than the model's context of 512$"):
        measure_speed(str(stories_folder), [SpeedTest("prefill", 500, 13, 1, 1)])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RuntimeModelError, match=r"absent\.gguf"):
        measure_speed(str(tmp_path / "absent.gguf"), [SpeedTest("prefill", 5, 0, 1, 1)])


def test_an_instruction_set_can_be_forced_and_an_unknown_one_is_refused(run: Run, stories_folder: Path) -> None:
    words = ("bench", stories_folder, "--prefill", 0, "--decode", 4, "--threads", 1, "--repeat", 1, "--json")
    code, out, err = run(*words, "--instruction-set", "scalar")
    assert code == 0, err
    assert json.loads(out)["rows"][0]["instruction_set"] == "scalar"
    code, _, err = run(*words, "--instruction-set", "avx99")
    assert code != 0
    assert "unknown --instruction-set 'avx99'; known: scalar" in err
