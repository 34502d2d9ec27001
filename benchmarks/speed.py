# SPDX-License-Identifier: Apache-2.0
"""Speed beside llama.cpp: the same file, interleaved rounds, a read probe in each round, medians and ratios.

    python benchmarks/speed.py MODEL.gguf [MODEL.gguf …] --llama-bench PATH --threads 1,2 --rounds 5

Each round measures, in turn: memory bandwidth, our engine, llama-bench as it is, llama-bench with `--repack 0` where it
knows that option. Judge by ratios within a round: on shared machines bandwidth moves by a factor of two within minutes.
One JSON line per file, thread count, test and engine goes to stdout, a table to stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lilliput import _native
from lilliput.models import gulliver
from lilliput.runtime.speed import SpeedTest, measure_speed

PROBE_BYTES = 1 << 29
OURS = "lilliput"


@dataclass(frozen=True)
class Cell:
    """What one rate belongs to."""

    file: Path
    threads: int
    test: str
    n: int


def read_bandwidth() -> float:
    """GB/s of one thread summing an array that fits no cache; best of three."""
    array = np.ones(PROBE_BYTES // 8, dtype=np.int64)
    best = 0.0
    for _ in range(3):
        start = time.perf_counter()
        array.sum()
        best = max(best, array.nbytes / (time.perf_counter() - start) / 1e9)
    return best


def our_rate(cell: Cell, depth: int) -> float:
    test = SpeedTest("prefill" if cell.test == "prefill" else "decode", cell.n, depth, cell.threads, 1)
    return measure_speed(str(cell.file), [test])[0].tok_s_median


def llama_bench_rate(program: Path, cell: Cell, depth: int, *options: str) -> float | None:
    """Tokens per second, or None where this llama-bench does not know the options."""
    sizes = ["-p", str(cell.n), "-n", "0"] if cell.test == "prefill" else ["-p", "0", "-n", str(cell.n)]
    command = [program, "-m", cell.file, "-t", str(cell.threads), *sizes, "-d", str(depth), "-r", "1", "-o", "json"]
    done = subprocess.run([*map(str, command), *options], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return None
    return float(json.loads(done.stdout)[0]["avg_ts"])


def rounds(arguments: argparse.Namespace, cells: list[Cell]) -> Iterator[tuple[Cell, str, float]]:
    """(cell, engine, rate) of every round, engines interleaved within each cell."""
    for number in range(arguments.rounds):
        for cell in cells:
            yield cell, "read GB/s", read_bandwidth()
            yield cell, OURS, our_rate(cell, arguments.depth)
            if arguments.llama_bench is None:
                continue
            for name, options in (("llama.cpp", ()), ("llama.cpp --repack 0", ("--repack", "0"))):
                rate = llama_bench_rate(arguments.llama_bench, cell, arguments.depth, *options)
                if rate is not None:
                    yield cell, name, rate
        print(f"round {number + 1} of {arguments.rounds} done", file=sys.stderr)


def summary(cell: Cell, depth: int, rates: dict[str, list[float]]) -> Iterator[dict[str, object]]:
    """One record per engine; `ratio` is the median over rounds of ours divided by theirs."""
    for engine, values in rates.items():
        record: dict[str, object] = {
            "file": cell.file.name,
            "threads": cell.threads,
            "test": cell.test,
            "n": cell.n,
            "depth": depth,
            "engine": engine,
            "median": round(statistics.median(values), 3),
            "min": round(min(values), 3),
            "max": round(max(values), 3),
            "rounds": len(values),
        }
        if engine.startswith("llama.cpp"):
            ratios = [ours / theirs for ours, theirs in zip(rates[OURS], values, strict=True)]
            record["ratio"] = round(statistics.median(ratios), 3)
        yield record


def machine() -> dict[str, object]:
    """Where this was measured."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        named = [line.split(":")[1].strip() for line in information.read_text().splitlines() if "model name" in line]
        model = named[0] if named else model
    return {
        "processor": model,
        "cpus": os.cpu_count(),
        "instruction_set": _native.available_instruction_sets()[-1],
        "commit": commit.stdout.strip(),
        "date": time.strftime("%Y-%m-%d"),
    }


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="default: the built-in model")
    parser.add_argument("--llama-bench", type=Path, help="the rival's program")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--depth", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    sizes = [("prefill", arguments.prefill), ("decode", arguments.decode)]
    cells = [
        Cell(file, int(threads), test, n)
        for file in arguments.files or [gulliver()]
        for threads in arguments.threads.split(",")
        for test, n in sizes
        if n > 0
    ]
    measured: dict[Cell, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for cell, engine, rate in rounds(arguments, cells):
        measured[cell][engine].append(rate)
    where = machine()
    for cell in cells:
        for record in summary(cell, arguments.depth, measured[cell]):
            print(json.dumps({**record, **where}), flush=True)
            ratio = f"  ours / theirs {record['ratio']}" if "ratio" in record else ""
            label = f"{cell.file.stem} {cell.threads}T {cell.test} {cell.n}"
            print(f"{label:44} {record['engine']!s:22} {record['median']:>9}{ratio}", file=sys.stderr)


if __name__ == "__main__":
    main()
