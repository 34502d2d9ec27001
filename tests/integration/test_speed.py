# SPDX-License-Identifier: Apache-2.0
"""The measurement behind `lilliput bench`: what its rows hold, and how it fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from lilliput.errors import RuntimeModelError
from lilliput.runtime.speed import SpeedTest, measure_speed, speed_tests


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
            "threads", "test", "n", "depth", "kv_format", "batch", "ready_s", "first_token_s", "tok_s_median",
            "tok_s_min", "tok_s_max", "peak_rss_bytes",
        }  # fmt: skip
        assert (row.threads, row.test, row.n, row.depth) == (2, test.test, test.n, 16)
        assert 0 < row.tok_s_min <= row.tok_s_median <= row.tok_s_max
        assert 0 < row.ready_s < row.first_token_s
        assert 10_000_000 < row.peak_rss_bytes < 2_000_000_000


def test_decoding_takes_as_many_tokens_a_pass_as_asked(stories_folder: Path) -> None:
    tests = speed_tests([1], prefill=0, decode=9, depth=0, repeat=1, batches=(1, 4))
    assert [row.batch for row in measure_speed(str(stories_folder), tests)] == [1, 4]


def test_a_test_longer_than_the_context_is_refused_in_one_line(stories_folder: Path) -> None:
    with pytest.raises(RuntimeModelError, match=r"^500 tokens at depth 13 are longer than the model's context of 512$"):
        measure_speed(str(stories_folder), [SpeedTest("prefill", 500, 13, 1, 1)])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RuntimeModelError, match=r"absent\.gguf"):
        measure_speed(str(tmp_path / "absent.gguf"), [SpeedTest("prefill", 5, 0, 1, 1)])
