# SPDX-License-Identifier: Apache-2.0
"""How fast this machine is at each kind of work: measured when first asked for, in a fraction of a second, and kept.

All measurements of one plan take a few seconds together; `machine.json` in the cache folder remembers them for
KEPT_SECONDS, or, where the machine had other work to do meanwhile, for KEPT_BUSY_SECONDS.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from lilliput.arrays import FloatArray
from lilliput.formats import NumberFormat, get_format
from lilliput.methods import METHODS
from lilliput.methods.torch_threads import layer_pass, torch_threads
from lilliput.records import NO_INPUTS, LayerInputs, TensorHeader, TensorPlan

# A random matrix this large shows what a method takes; smaller ones show the cost of starting it.
SAMPLE_ROWS, SAMPLE_COLUMNS = 64, 1024
# Rows and columns of two matrices: what a weight of the second takes longer is the part that grows with columns.
FLAT, STEEP = (1024, 256), (1024, 1024)
# Tokens and most columns of the product that stands for a forward pass.
PASS_TOKENS, PASS_COLUMNS = 512, 2048
SECONDS_PER_PROBE = 0.05
WRITE_SAMPLE_BYTES = 16_000_000
HASH_SAMPLE_BYTES = 4_000_000
# Clocks, disks and other tenants of a machine change from week to week; a measurement beside other work soon.
KEPT_SECONDS, KEPT_BUSY_SECONDS = 3 * 86_400.0, 3_600.0
# Running processes beyond the processors, averaged over a minute, that make a machine a busy one.
BUSY_PROCESSES = 1.0


@dataclass(frozen=True, slots=True)
class Measurement:
    """Speeds found by one measurement. measured: seconds since 1970.  is_busy: the machine had other work to do."""

    speeds: tuple[float, ...]
    measured: float
    is_busy: bool

    def is_fresh(self, now: float) -> bool:
        """Whether it still counts."""
        return 0.0 <= now - self.measured < (KEPT_BUSY_SECONDS if self.is_busy else KEPT_SECONDS)


@dataclass(frozen=True, slots=True)
class MethodCost:
    """Seconds of quantizing one tensor [rows, columns]: rows * columns * (weight + columns * column).

    What is factorized once for all tensors that share an input is not in it.
    """

    weight: float
    column: float = 0.0

    def seconds(self, rows: int, columns: int) -> float:
        """Of one tensor."""
        return rows * columns * (self.weight + columns * self.column)


class MachineSpeeds:
    """Speeds of this machine, measured when first asked for and remembered in a file.

    was_busy: one of those asked for so far was measured while the machine had other work, which makes times too long.
    """

    def __init__(
        self,
        threads: int,
        *,
        guided: bool,
        cache: Path | None = None,
        measuring: Callable[[str], None] | None = None,
    ) -> None:
        """Prepare to measure.

        guided: methods will have importance.  cache: the file, None means `machine.json` in the cache folder.
        measuring: called with the name of a speed before it is measured.
        """
        self._measuring = measuring
        self._threads = threads
        self._guided = guided
        self._cache = cache or cache_folder() / "machine.json"
        self._known = _read(self._cache)
        self._oldest = time.time()
        self.was_busy = False

    def method_cost(self, row: TensorPlan, header: TensorHeader) -> MethodCost:
        """What one tensor's method takes; a tensor that is kept is read as fast as it is decoded."""
        if row.format.name == header.format.name:
            return MethodCost(1 / self.weights_decoded_per_second())
        name = f"{row.format.name} {row.method} {'guided' if self._guided else 'unguided'}"
        if METHODS[row.method].needs != "hessian":
            return MethodCost(*self._speeds(name, 1, lambda: _seconds_per_weight(row, self._guided, self._threads)))
        return MethodCost(*self._speeds(name, 2, lambda: _hessian_costs(row, self._threads)))

    def weights_decoded_per_second(self) -> float:
        """How fast stored weights become float32 and are compared."""
        return self._speed("decode", _decode_speed)

    def bytes_hashed_per_second(self) -> float:
        """How fast a file is read and fingerprinted."""
        block = bytes(HASH_SAMPLE_BYTES)
        return self._speed("hash", lambda: _rate(HASH_SAMPLE_BYTES, lambda: hashlib.sha256(block).digest()))

    def flops(self, columns: int = PASS_COLUMNS) -> float:
        """Float32 multiplications and additions a second of torch, in a layer of that width and what surrounds it."""
        columns = min(1 << max(columns - 1, 1).bit_length(), PASS_COLUMNS)
        return self._speed(f"flops {columns}", lambda: _product_speed(columns, self._threads))

    def engine_flops(self, number_format: NumberFormat) -> float:
        """The same of the native engine with exact inputs; what it has no kernel for runs as float32."""
        from lilliput import _native

        if number_format.name not in _native.formats():
            number_format = get_format("f32")
        return self._speed(f"engine {number_format.name}", lambda: _engine_speed(number_format, self._threads))

    def seconds_to_start(self) -> float:
        """What loading torch takes."""
        return self._speed("start", _import_seconds)

    def bytes_written_per_second(self) -> float:
        """To disk, flushed."""
        return self._speed("write", lambda: _write_speed(self._cache.parent))

    def other(self, name: str, measure: Callable[[], float]) -> float:
        """Any other speed or time, measured by whoever asks for it."""
        return self._speed(name, measure)

    def _speed(self, name: str, measure: Callable[[], float]) -> float:
        return self._speeds(name, 1, lambda: (measure(),))[0]

    def _speeds(self, name: str, count: int, measure: Callable[[], Sequence[float]]) -> tuple[float, ...]:
        key = f"{_machine()} threads {self._threads}: {name}"
        known = self._known.get(key)
        if known is None or len(known.speeds) != count:
            if self._measuring is not None:
                self._measuring(name)
            known = Measurement(tuple(measure()), time.time(), _is_busy())
            self._known[key] = known
            _write(self._cache, self._known)
        self._oldest = min(self._oldest, known.measured)
        self.was_busy = self.was_busy or known.is_busy
        return known.speeds

    def age_seconds(self) -> float:
        """How long ago the oldest of the speeds asked for so far was measured."""
        return max(time.time() - self._oldest, 0.0)


def cache_folder() -> Path:
    """LILLIPUT_CACHE, or ~/.cache/lilliput."""
    return Path(os.environ.get("LILLIPUT_CACHE") or Path.home() / ".cache" / "lilliput")


def _seconds_per_weight(row: TensorPlan, guided: bool, threads: int) -> tuple[float]:
    rows, columns = SAMPLE_ROWS, max(SAMPLE_COLUMNS // row.format.block_size, 1) * row.format.block_size
    weight = _sample(rows, columns)
    inputs = LayerInputs(1, np.ones(columns, dtype=np.float32)) if guided else NO_INPUTS
    work = METHODS[row.method]
    return (1 / _rate(weight.size, lambda: work.quantize(row.format, weight, inputs, threads=threads)),)


def _hessian_costs(row: TensorPlan, threads: int) -> tuple[float, float]:
    """Per weight; per weight and column."""
    method, taken = METHODS[row.method], []
    with torch_threads(threads):
        for rows, columns in (FLAT, STEEP):
            # The factorization is kept with the inputs, so only the run that warms up does it.
            run = partial(
                method.quantize, row.format, _sample(rows, columns), _hessian_inputs(columns), threads=threads
            )
            taken.append(1 / _rate(rows * columns, run))
    column = max(taken[1] - taken[0], 0.0) / (STEEP[1] - FLAT[1])
    return max(taken[0] - column * FLAT[1], 1e-12), column


def _hessian_inputs(columns: int) -> LayerInputs:
    """Correlated inputs of as many tokens as columns, as a layer of a model has them."""
    x = _sample(2 * columns, columns)
    x[:, 1:] += 0.5 * x[:, :-1]
    hessian = (x.T @ x / np.float32(len(x))).astype(np.float32)
    return LayerInputs(len(x), np.diagonal(hessian).copy(), hessian, held_out=hessian)


def _decode_speed() -> float:
    weight = _sample(SAMPLE_ROWS, SAMPLE_COLUMNS).astype(np.float16)
    return _rate(weight.size, lambda: np.array_equal(weight.astype(np.float32), weight))


def _product_speed(columns: int, threads: int) -> float:
    with torch_threads(threads):
        run = layer_pass(_sample(PASS_TOKENS, columns), _sample(columns, columns))
        return _rate(2 * PASS_TOKENS * columns**2, run)


def _engine_speed(number_format: NumberFormat, threads: int) -> float:
    from lilliput import _native

    rows, columns = 4 * SAMPLE_ROWS, SAMPLE_COLUMNS
    width = number_format.stored_planes(rows, columns)["blocks"].shape[1]
    blocks = np.zeros((rows, width), dtype=np.uint8)
    x, isa = _sample(PASS_TOKENS, columns), _native.available_instruction_sets()[-1]
    work = 2 * rows * columns * PASS_TOKENS
    return _rate(work, lambda: _native.matmul(number_format.name, blocks, rows, x, isa, True, threads))


def _import_seconds() -> float:
    code = "import torch"
    start = time.perf_counter()
    if "torch" in sys.modules:
        subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    else:
        exec(code, {})
    return time.perf_counter() - start


def _write_speed(folder: Path) -> float:
    block = b"\0" * WRITE_SAMPLE_BYTES
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            start = time.perf_counter()
            file.write(block)
            file.flush()
            os.fsync(file.fileno())
            return WRITE_SAMPLE_BYTES / max(time.perf_counter() - start, 1e-9)
    except OSError:
        # A cache that cannot be written tells nothing about the output's disk; 100 MB/s is a slow disk.
        return 1e8


def _rate(work: float, run: Callable[[], object]) -> float:
    """Work per second of the fastest of a few runs, after one that warms up."""
    run()
    best, until = float("inf"), time.perf_counter() + SECONDS_PER_PROBE
    while time.perf_counter() < until or best == float("inf"):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return work / max(best, 1e-9)


def _sample(rows: int, columns: int) -> FloatArray:
    return np.random.default_rng(0).standard_normal((rows, columns), dtype=np.float32)


def _machine() -> str:
    """What a speed depends on: the processor and our own version."""
    processor = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                processor = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    try:
        installed = version("lilliput")
    except PackageNotFoundError:
        installed = "unknown"
    return f"{processor}, lilliput {installed},"


def _is_busy() -> bool:
    """Whether others keep the processors from us."""
    try:
        return os.getloadavg()[0] > (os.cpu_count() or 1) + BUSY_PROCESSES
    except OSError:
        return False


def _read(path: Path) -> dict[str, Measurement]:
    """Remembered speeds that still count; a file that cannot be read is as good as none."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict):
        return {}
    found = {key: _measurement(value) for key, value in content.items()}
    now = time.time()
    return {key: known for key, known in found.items() if known is not None and known.is_fresh(now)}


def _measurement(value: object) -> Measurement | None:
    """None for anything else than `_write` writes."""
    if not isinstance(value, dict):
        return None
    speeds, measured = value.get("speeds"), value.get("measured")
    if not isinstance(speeds, list) or not isinstance(measured, int | float):
        return None
    if not all(isinstance(item, int | float) and item >= 0 for item in speeds):
        return None
    return Measurement(tuple(map(float, speeds)), float(measured), value.get("is_busy") is True)


def _write(path: Path, known: Mapping[str, Measurement]) -> None:
    """Remember; without a writable cache the next run measures again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps({key: asdict(value) for key, value in known.items()}, indent=1))
        temporary.replace(path)
    except OSError:
        return
