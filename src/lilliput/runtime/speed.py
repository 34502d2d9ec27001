# SPDX-License-Identifier: Apache-2.0
"""How fast the engine runs a file here: the measurement behind `lilliput bench`. One process per row."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from lilliput.errors import RuntimeModelError
from lilliput.runtime.session import KvFormat

Test = Literal["prefill", "decode"]


@dataclass(frozen=True, slots=True)
class SpeedTest:
    """One row to measure: `n` tokens after `depth` tokens are in the cache.

    batch: tokens that decoding takes in one pass, as when guesses are verified.
    kv_format, repack, instruction_set: as in `EngineOptions`.
    """

    test: Test
    n: int
    depth: int
    threads: int
    repeat: int
    kv_format: KvFormat = "f16"
    batch: int = 1
    repack: bool = True
    instruction_set: str | None = None


@dataclass(frozen=True, slots=True)
class SpeedRow:
    """One measured row.

    tok_s_*: tokens per second.  ready_s: seconds from the start of the process until the model can take tokens.
    limit_tok_s: what the machine's int8 peak (prefill) or memory (decode) allowed in the same minute.
    first_token_s: and until the logits after the first pass, of a prompt of n tokens or of one token, are there.
    peak_rss_bytes: the process's highest resident size, the file's pages included.
    """

    threads: int
    test: Test
    n: int
    depth: int
    kv_format: KvFormat
    batch: int
    instruction_set: str
    ready_s: float
    first_token_s: float
    limit_tok_s: float
    tok_s_median: float
    tok_s_min: float
    tok_s_max: float
    peak_rss_bytes: int

    def to_json(self) -> dict[str, int | float | str]:
        """The contract of `lilliput bench --json`."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Timed:
    """What a worker hands back. seconds: of each repetition.  limit_tok_s: tokens a second that the machine allows.

    *_at: seconds since the epoch.
    """

    seconds: tuple[float, ...]
    limit_tok_s: float
    ready_at: float
    first_token_at: float
    peak_rss_bytes: int
    instruction_set: str


def measure_speed(
    model: str, tests: Sequence[SpeedTest], *, progress: Callable[[int, int], None] | None = None
) -> list[SpeedRow]:
    """Measure each test in a process of its own.

    model: path or hub id.  progress: called with (rows done, rows in all).
    Raises RuntimeModelError with the worker's own line when it fails.
    """
    rows = []
    for test in tests:
        started_at = time.time()
        rows.append(_row(test, _run_worker(model, test), started_at))
        if progress is not None:
            progress(len(rows), len(tests))
    return rows


def speed_tests(
    thread_counts: Sequence[int],
    *,
    prefill: int,
    decode: int,
    depth: int,
    repeat: int,
    batches: Sequence[int] = (1,),
) -> list[SpeedTest]:
    """The rows of `lilliput bench`: for each thread count prefill, then decode with each batch; 0 tokens skip one."""
    sizes: list[tuple[Test, int, int]] = [("prefill", prefill, 1), *(("decode", decode, batch) for batch in batches)]
    return [
        SpeedTest(test, n, depth, threads, repeat, batch=batch)
        for threads in thread_counts
        for test, n, batch in sizes
        if n > 0
    ]


def _row(test: SpeedTest, timed: Timed, started_at: float) -> SpeedRow:
    rates = [test.n / seconds for seconds in timed.seconds]
    return SpeedRow(
        threads=test.threads,
        test=test.test,
        n=test.n,
        depth=test.depth,
        kv_format=test.kv_format,
        batch=test.batch,
        instruction_set=timed.instruction_set,
        ready_s=timed.ready_at - started_at,
        first_token_s=timed.first_token_at - started_at,
        limit_tok_s=timed.limit_tok_s,
        tok_s_median=statistics.median(rates),
        tok_s_min=min(rates),
        tok_s_max=max(rates),
        peak_rss_bytes=timed.peak_rss_bytes,
    )


def _run_worker(model: str, test: SpeedTest) -> Timed:
    command = [sys.executable, "-m", "lilliput.runtime.speed_worker", model, json.dumps(asdict(test))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        raise RuntimeModelError(lines[-1] if lines else f"the measuring process ended with code {done.returncode}")
    answer = json.loads(done.stdout.splitlines()[-1])
    return Timed(**{**answer, "seconds": tuple(answer["seconds"])})
