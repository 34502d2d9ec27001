# SPDX-License-Identifier: Apache-2.0
"""Speed beside llama.cpp: the same file, interleaved rounds, a read probe in each round, medians and ratios.

    python benchmarks/speed.py MODEL.gguf [MODEL.gguf …] --llama-bench PATH --ik-llama-bench PATH --rounds 5
    python benchmarks/speed.py MODEL.gguf --llama-bench PATH --prefill 0 --depth 4096 --kv f16,q8_0

Each round measures, in turn: memory bandwidth, our engine, llama-bench as it is, llama-bench with `--repack 0` where it
knows that option, ik_llama.cpp's as it is and with `-rtr 1` (at a depth it knows decode only). The peers get the same
KV cache, with flash attention. Judge by ratios within a round: on shared machines bandwidth moves by a factor of two
within minutes.
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
from lilliput.runtime.session import KV_FORMATS, KvFormat
from lilliput.runtime.speed import SpeedTest, Test, measure_speed

PROBE_BYTES = 1 << 29
OURS = "lilliput"
LIMIT = "limit"


@dataclass(frozen=True)
class Cell:
    """What one rate belongs to."""

    file: Path
    threads: int
    test: str
    n: int
    depth: int
    kv_format: KvFormat


def read_bandwidth() -> float:
    """GB/s of one thread summing an array that fits no cache; best of three."""
    array = np.ones(PROBE_BYTES // 8, dtype=np.int64)
    best = 0.0
    for _ in range(3):
        start = time.perf_counter()
        array.sum()
        best = max(best, array.nbytes / (time.perf_counter() - start) / 1e9)
    return best


def our_rates(cell: Cell, instruction_set: str) -> tuple[float, float]:
    """Our tokens per second, and what the machine allowed in the same minute."""
    kind: Test = "prefill" if cell.test == "prefill" else "decode"
    test = SpeedTest(kind, cell.n, cell.depth, cell.threads, 1, cell.kv_format, instruction_set=instruction_set)
    row = measure_speed(str(cell.file), [test])[0]
    return row.tok_s_median, row.limit_tok_s


def llama_bench_rate(program: Path, cell: Cell, *options: str, knows_depth: bool = True) -> float | None:
    """Tokens per second, or None where this llama-bench does not know the options or the test."""
    sizes = ["-p", str(cell.n), "-n", "0"] if cell.test == "prefill" else ["-p", "0", "-n", str(cell.n)]
    if knows_depth:
        sizes += ["-d", str(cell.depth)]
    elif cell.depth:
        if cell.test == "prefill":
            return None
        sizes = ["-p", "0", "-n", "0", "-gp", f"{cell.depth},{cell.n}"]
    # A quantized cache of values works with flash attention only.
    cache = ["-ctk", cell.kv_format, "-ctv", cell.kv_format, "-fa", "1"]
    command = [program, "-m", cell.file, "-t", str(cell.threads), *sizes, *cache, "-r", "1", "-o", "json"]
    done = subprocess.run([*map(str, command), *options], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return None
    return float(json.loads(done.stdout)[0]["avg_ts"])


def rounds(arguments: argparse.Namespace, cells: list[Cell]) -> Iterator[tuple[Cell, str, float]]:
    """(cell, engine, rate) of every round, engines interleaved within each cell."""
    for number in range(arguments.rounds):
        for cell in cells:
            yield cell, "read GB/s", read_bandwidth()
            ours, limit = our_rates(cell, arguments.instruction_set)
            yield cell, OURS, ours
            yield cell, LIMIT, limit
            for name, program, options in peers(arguments):
                rate = llama_bench_rate(program, cell, *options, knows_depth=not name.startswith("ik"))
                if rate is not None:
                    yield cell, name, rate
        print(f"round {number + 1} of {arguments.rounds} done", file=sys.stderr)


def peers(arguments: argparse.Namespace) -> Iterator[tuple[str, Path, tuple[str, ...]]]:
    """(name, program, options) of each rival."""
    if arguments.llama_bench is not None:
        yield "llama.cpp", arguments.llama_bench, ()
        yield "llama.cpp --repack 0", arguments.llama_bench, ("--repack", "0")
    if arguments.ik_llama_bench is not None:
        yield "ik_llama.cpp", arguments.ik_llama_bench, ()
        yield "ik_llama.cpp -rtr 1", arguments.ik_llama_bench, ("-rtr", "1")


def summary(cell: Cell, rates: dict[str, list[float]]) -> Iterator[dict[str, object]]:
    """One record per engine; `ratio` is the median over rounds of ours divided by theirs.

    share_of_limit: that of ours divided by what the machine's int8 peak or memory allowed (`lilliput bench`).
    """
    for engine, values in rates.items():
        record: dict[str, object] = {
            "file": cell.file.name,
            "threads": cell.threads,
            "test": cell.test,
            "n": cell.n,
            "depth": cell.depth,
            "kv_format": cell.kv_format,
            "engine": engine,
            "median": round(statistics.median(values), 3),
            "min": round(min(values), 3),
            "max": round(max(values), 3),
            "rounds": len(values),
        }
        if engine.startswith(("llama.cpp", "ik_llama.cpp")):
            ratios = [ours / theirs for ours, theirs in zip(rates[OURS], values, strict=True)]
            record["ratio"] = round(statistics.median(ratios), 3)
        if engine == OURS:
            shares = [ours / limit for ours, limit in zip(values, rates[LIMIT], strict=True)]
            record["share_of_limit"] = round(statistics.median(shares), 3)
        yield record


def machine(instruction_set: str) -> dict[str, object]:
    """Where and how this was measured."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        named = [line.split(":")[1].strip() for line in information.read_text().splitlines() if "model name" in line]
        model = named[0] if named else model
    return {
        "processor": model,
        "cpus": os.cpu_count(),
        "instruction_set": instruction_set,
        "commit": commit.stdout.strip(),
        "date": time.strftime("%Y-%m-%d"),
    }


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="default: the built-in model")
    parser.add_argument("--llama-bench", type=Path, help="the rival's program")
    parser.add_argument("--ik-llama-bench", type=Path, help="that of ik_llama.cpp")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--depth", type=int, default=0)
    parser.add_argument("--kv", default="f16", help="formats of the KV cache, e.g. f16,q8_0")
    parser.add_argument("--rounds", type=int, default=5)
    sets = _native.available_instruction_sets()
    parser.add_argument("--instruction-set", choices=sets, default=sets[-1], help="ours; beside peers built for it")
    arguments = parser.parse_args()
    sizes = [("prefill", arguments.prefill), ("decode", arguments.decode)]
    cells = [
        Cell(file, int(threads), test, n, arguments.depth, kv_format)
        for file in arguments.files or [gulliver()]
        for threads in arguments.threads.split(",")
        for kv_format in KV_FORMATS
        if kv_format in arguments.kv.split(",")
        for test, n in sizes
        if n > 0
    ]
    measured: dict[Cell, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for cell, engine, rate in rounds(arguments, cells):
        measured[cell][engine].append(rate)
    where = machine(arguments.instruction_set)
    for cell in cells:
        for record in summary(cell, measured[cell]):
            print(json.dumps({**record, **where}), flush=True)
            ratio = f"  ours / theirs {record['ratio']}" if "ratio" in record else ""
            label = f"{cell.file.stem} {cell.threads}T {cell.test} {cell.n} @{cell.depth} {cell.kv_format}"
            print(f"{label:44} {record['engine']!s:22} {record['median']:>9}{ratio}", file=sys.stderr)


if __name__ == "__main__":
    main()
