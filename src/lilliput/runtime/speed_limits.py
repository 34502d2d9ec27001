# SPDX-License-Identifier: Apache-2.0
"""What the machine allows: int8 products in registers, reading memory, and what a token needs of either."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from lilliput import _native
from lilliput.architectures.program import Experts, Linear, Program, SelectOutputRows
from lilliput.records import TensorHeader

# Products of one probe, about 10 ms; bytes that one thread reads, more than caches hold.
PROBE_ITERATIONS = 200_000
PROBE_BYTES = 1 << 28
PROBES = 3


@dataclass(frozen=True, slots=True)
class Limits:
    """Of this machine at this moment, all threads together: int8 operations and bytes read a second."""

    operations: float
    bytes: float


@dataclass(frozen=True, slots=True)
class TokenWork:
    """What one token needs of the matrices.

    operations: two for each product of bytes, and as many times more as weights of 16 or 32 bits, which are multiplied
    as they are, are wider.  last_operations: those that only the last token of a prompt meets, the output
    head's and the last feed-forward's.  bytes: of the weights read for one token alone, as stored.
    """

    operations: int
    last_operations: int
    bytes: int

    def prefill_limit(self, tokens: int, limits: Limits) -> float:
        """Tokens a second of a prompt at the int8 peak."""
        return limits.operations / (self.operations + self.last_operations / tokens)

    def decode_limit(self, batch: int, cache_bytes: float, limits: Limits) -> float:
        """Tokens a second of passes over `batch` tokens, whichever of both limits is met first.

        cache_bytes: keys and values read in a pass.
        """
        reading = batch * limits.bytes / (self.bytes + cache_bytes)
        return min(reading, limits.operations / (self.operations + self.last_operations))


def token_work(program: Program, header: Callable[[str], TensorHeader]) -> TokenWork:
    """Count what the linears of a program multiply and read."""
    operations, last_operations, read = 0, 0, 0
    is_last = False
    for operation in program.operations:
        if isinstance(operation, SelectOutputRows):
            is_last = True
        for name, share in _weights(operation, program, header):
            found = header(name)
            products = 2 * round(found.rows * found.columns * share) * _width(found)
            read += round(found.nbytes * share)
            if is_last:
                last_operations += products
            else:
                operations += products
    return TokenWork(operations, last_operations, read)


def _width(header: TensorHeader) -> int:
    """Bytes of a number that is multiplied: an instruction takes half as many of two bytes."""
    return max(1, header.nbytes // (header.rows * header.columns))


def _weights(operation: object, program: Program, header: Callable[[str], TensorHeader]) -> list[tuple[str, float]]:
    """(name, share of it) of the matrices that an operation multiplies one token with."""
    if isinstance(operation, Linear):
        rows = header(operation.weight).rows
        begin, end = operation.rows or (0, rows)
        return [(operation.weight, (end - begin) / rows)]
    if isinstance(operation, Experts):
        share = operation.used / program.buffers[operation.router]
        return [(name, share) for name in (operation.gate, operation.up, operation.down)]
    return []


def measure_limits(threads: int) -> Limits:
    """Probe the machine with as many threads, best of a few. Takes 256 MB for each thread and about 0.2 s."""
    isa = _native.available_instruction_sets()[-1]
    arrays = [np.ones(PROBE_BYTES, dtype=np.uint8) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:

        def fastest(work: Callable[[int], int]) -> float:
            best = float("inf")
            for _ in range(PROBES):
                start = time.perf_counter()
                list(pool.map(work, range(threads)))
                best = min(best, time.perf_counter() - start)
            return best

        products = fastest(lambda _: _native.probe_dots(isa, PROBE_ITERATIONS))
        reading = fastest(lambda index: _native.probe_read(isa, arrays[index]))
    operations = threads * (_native.probe_dots(isa, PROBE_ITERATIONS) & ~1)
    return Limits(operations / products, threads * PROBE_BYTES / reading)
