# SPDX-License-Identifier: Apache-2.0
"""Speed of the matrix kernels beside what the machine can do in the same minute.

    python benchmarks/matmul.py [--formats q4_k,q8_0] [--isa avx512_vnni] [--threads 1,2] [--rounds 5]

Each round probes int8 dot products on registers (GOPS, one thread) and a read of an array that fits no cache (GB/s, one
thread), then multiplies: `decode` one token with weights that fit no cache (GB/s of weight bytes), `prefill` 512 tokens
(GOPS, 2 operations per weight and token; input preparation included). `of_peak` is the median over rounds of the rate
divided by the round's probe times threads. `cpu` counts the processor seconds of this process instead of wall time:
the figure to trust when others share the cores. One JSON line per cell.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lilliput import _native
from lilliput.arrays import ByteArray
from lilliput.formats import get_format

COLUMNS = 2048
PREFILL_TOKENS = 512
PREFILL_ROWS = 4096
DECODE_BYTES = 96_000_000


@dataclass(frozen=True)
class Rate:
    """Something per nanosecond, by wall clock and by processor seconds per thread."""

    wall: float
    cpu: float


def measure(amount: float, threads: int, work: Callable[[], object]) -> Rate:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Rate(amount / wall / 1e9, amount * threads / cpu / 1e9)


def random_rows(name: str, rows: int) -> ByteArray:
    """Stored rows of random weights; a smaller matrix is repeated."""
    number_format = get_format(name)
    weight = np.random.default_rng(0).standard_normal((64, COLUMNS), dtype=np.float32)
    if number_format.can_encode:
        blocks = np.asarray(number_format.pack(number_format.encode(weight))["blocks"])
    else:
        shape = number_format.stored_planes(64, COLUMNS)["blocks"].shape
        blocks = np.random.default_rng(0).integers(0, 64, shape, dtype=np.uint8)
    return np.tile(blocks, (-(-rows // 64), 1))[:rows].copy()


def round_of(name: str, isa: str, threads: int) -> dict[str, tuple[Rate, Rate]]:
    """(rate, probe) of each test, measured once."""
    decode_rows = int(DECODE_BYTES * 8 / (get_format(name).bits_per_weight * COLUMNS))
    big, small = random_rows(name, decode_rows), random_rows(name, PREFILL_ROWS)
    x = np.random.default_rng(1).standard_normal((PREFILL_TOKENS, COLUMNS), dtype=np.float32)
    buffer = np.ones(DECODE_BYTES, dtype=np.uint8)
    iterations = 2_000_000
    dots = measure(_native.probe_dots(isa, 1) * iterations, 1, lambda: _native.probe_dots(isa, iterations))
    read = measure(buffer.nbytes, 1, lambda: _native.probe_read(isa, buffer))
    decode = measure(big.nbytes, threads, lambda: _native.matmul(name, big, decode_rows, x[:1], isa, threads=threads))
    prefill = measure(
        2.0 * PREFILL_ROWS * COLUMNS * PREFILL_TOKENS,
        threads,
        lambda: _native.matmul(name, small, PREFILL_ROWS, x, isa, threads=threads),
    )
    return {"decode": (decode, read), "prefill": (prefill, dots)}


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", default="q4_k,q6_k,q8_0,q4_0,f16")
    parser.add_argument("--isa", default=_native.available_instruction_sets()[-1])
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    for name in arguments.formats.split(","):
        for threads in map(int, arguments.threads.split(",")):
            rounds = [round_of(name, arguments.isa, threads) for _ in range(arguments.rounds)]
            for test, unit in (("decode", "GB/s"), ("prefill", "GOPS")):
                pairs = [measured[test] for measured in rounds]
                record = {
                    "format": name, "isa": arguments.isa, "threads": threads, "test": test, "unit": unit,
                    "median": round(statistics.median(rate.wall for rate, _ in pairs), 1),
                    "cpu": round(statistics.median(rate.cpu for rate, _ in pairs), 1),
                    "probe": round(statistics.median(probe.cpu for _, probe in pairs), 1),
                    "of_peak": round(statistics.median(rate.cpu / probe.cpu / threads for rate, probe in pairs), 3),
                    "rounds": len(pairs), "machine": platform.processor() or platform.machine(),
                }  # fmt: skip
                print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
