# SPDX-License-Identifier: Apache-2.0
"""What a plan will cost: RAM, disk and time, from headers and a short measurement of this machine.

Each speed is measured once, for a fraction of a second, and kept in `machine.json` in the cache folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from lilliput.arrays import FloatArray
from lilliput.methods import METHODS
from lilliput.recipes.plan import Plan, weights_of
from lilliput.records import NO_INPUTS, LayerInputs, Role, TensorHeader, TensorPlan
from lilliput.transforms import TRANSFORMS

# Everything but tensors: 81 MB resident after the imports, 91 MB at the peak of runs on models of 9 and 49 million
# weights (2026-11, x86-64, CPython 3.11), rounded up.
PROCESS_BYTES = 95_000_000
# Weights of one slab of the quantize loop, and float32 arrays of that size alive at once in it.
SLAB_WEIGHTS = 1 << 22
SLAB_ARRAYS = 4
# JSON of one ledger entry: 443 bytes on average for Q4_K_M of stories260K, rounded up for longer names.
LEDGER_ENTRY_BYTES = 600
# A random matrix this large shows a method's speed; smaller ones show the cost of starting it.
SAMPLE_ROWS, SAMPLE_COLUMNS = 64, 1024
HESSIAN_COLUMNS = 256
# torch and transformers loaded, over the rest of the process.
TORCH_BYTES = 450_000_000
SECONDS_PER_PROBE = 0.2
WRITE_SAMPLE_BYTES = 16_000_000
HASH_SAMPLE_BYTES = 4_000_000
FLOAT32_BYTES = 4
# Of the linears that share an input, the one whose plan row stands for it.
FIRST_READERS = (Role.ATTENTION_Q, Role.ATTENTION_OUTPUT, Role.FFN_GATE, Role.FFN_DOWN, Role.OUTPUT)


@dataclass(frozen=True, slots=True)
class TextWork:
    """What a run does with its text.

    tokens: 0 when it does not calibrate.  follows_float: whether Hessian methods see the float model's inputs as well.
    tuned_epochs: passes of end-to-end tuning.  tuned_bytes_per_weight: memory that this takes.
    """

    tokens: int = 0
    follows_float: bool = False
    tuned_epochs: int = 0
    tuned_bytes_per_weight: int = 0


@dataclass(frozen=True, slots=True)
class CostEstimate:
    """What a run will take.

    peak_ram_bytes: of the process, without pages of mapped files: the system takes those back when it needs them.
    disk_bytes: free space needed where the output goes.  seconds: by stage, in order.
    """

    peak_ram_bytes: int
    disk_bytes: int
    seconds: Mapping[str, float]


def estimate(
    plan: Plan,
    headers: Mapping[str, TensorHeader],
    *,
    file_bytes: int,
    speeds: MachineSpeeds,
    text: TextWork | None = None,
) -> CostEstimate:
    """Predict what quantizing will take.

    headers: of the input.  file_bytes: of all output files.  text: None when the run does not calibrate.
    """
    weights = plan.weights
    text = text or TextWork()
    seconds = {"read": sum(header.nbytes for header in headers.values()) / speeds.bytes_hashed_per_second()}
    if text.tokens:
        # A forward pass multiplies and adds once per weight and token; norms and attention are small beside it.
        # Methods that see Hessians run the model twice, or thrice beside the float model, and sum the products of all
        # pairs of each distinct input.
        # A transform that looks at inputs runs it before; other methods share what it finds.
        streams = any(_sees_hessian(row) for row in plan.rows)
        passes = 2 + text.follows_float + _looks_before(plan) if streams else 1
        pairs = sum(row.shape[-1] ** 2 for row in plan.rows if _sees_hessian(row) and row.role in FIRST_READERS)
        seconds["calibrate"] = 2.0 * (passes * weights + pairs) * text.tokens / speeds.flops()
    # Every slab is decoded once to float32, and its codes once more to measure their error.
    seconds["quantize"] = 2 * weights / speeds.weights_decoded_per_second()
    seconds["quantize"] += sum(weights_of(row) / speeds.weights_per_second(row, headers[row.name]) for row in plan.rows)
    if text.tuned_epochs:
        # The original forward, the quantized model forward and, twice as much, backward.
        seconds["tune"] = 8.0 * weights * text.tokens * text.tuned_epochs / speeds.flops()
    seconds["write"] = file_bytes / speeds.bytes_written_per_second()
    seconds["verify"] = weights / speeds.weights_decoded_per_second()
    ram = PROCESS_BYTES + max((_tensor_bytes(row, headers[row.name]) for row in plan.rows), default=0)
    if any(_sees_hessian(row) for row in plan.rows):
        ram += max(_block_bytes(plan), TORCH_BYTES + weights * text.tuned_bytes_per_weight)
    disk = file_bytes + LEDGER_ENTRY_BYTES * len(plan.rows)
    return CostEstimate(ram, disk, seconds)


def _block_bytes(plan: Plan) -> int:
    """Memory of the block loop: torch, the largest block in float32, its Hessians, and one factorization in float64."""
    blocks: dict[str, int] = {}
    hessians: dict[str, int] = {}
    for row in plan.rows:
        block = row.name.rpartition(".weight")[0].rpartition(".")[0]
        blocks[block] = blocks.get(block, 0) + weights_of(row)
        if _sees_hessian(row) and row.role in FIRST_READERS:
            hessians[block] = hessians.get(block, 0) + row.shape[-1] ** 2
    floats = max((size for name, size in blocks.items() if name.startswith("blk.")), default=0)
    # One Hessian for the methods and one held out; Cholesky's input and output in float64, the result in float32.
    largest = max((row.shape[-1] ** 2 for row in plan.rows if _sees_hessian(row)), default=0)
    return TORCH_BYTES + FLOAT32_BYTES * (floats + 2 * max(hessians.values(), default=0)) + 28 * largest


def _sees_hessian(row: TensorPlan) -> bool:
    return METHODS[row.method].needs == "hessian"


def _looks_before(plan: Plan) -> bool:
    return any(TRANSFORMS[item.name].needs == "statistics" for item in plan.transforms)


def _tensor_bytes(row: TensorPlan, header: TensorHeader) -> int:
    """Memory while one tensor is done: its slabs in float32, its finished blocks twice while slabs are joined."""
    if row.format.name == header.format.name:
        return header.nbytes
    shares_over_rows = row.format.row_step is None or header.format.row_step is None
    slab = weights_of(row) if shares_over_rows else min(weights_of(row), SLAB_WEIGHTS)
    # The input's own pages, or a copy of them where rows are reordered on the way.
    return slab * FLOAT32_BYTES * SLAB_ARRAYS + 2 * row.nbytes + header.nbytes


class MachineSpeeds:
    """Speeds of this machine, measured when first asked for and remembered in a file."""

    def __init__(self, threads: int, *, guided: bool, cache: Path | None = None) -> None:
        """Prepare to measure.

        guided: methods will have importance.  cache: the file, None means `machine.json` in the cache folder.
        """
        self._threads = threads
        self._guided = guided
        self._cache = cache or cache_folder() / "machine.json"
        self._known = _read(self._cache)

    def weights_per_second(self, row: TensorPlan, header: TensorHeader) -> float:
        """How fast one tensor's method runs; a tensor that is kept is read as fast as it is decoded."""
        if row.format.name == header.format.name:
            return self.weights_decoded_per_second()
        name = f"{row.format.name} {row.method} {'guided' if self._guided else 'unguided'}"
        return self._speed(name, lambda: _quantize_speed(row, self._guided, self._threads))

    def weights_decoded_per_second(self) -> float:
        """How fast stored weights become float32 and are compared."""
        return self._speed("decode", _decode_speed)

    def bytes_hashed_per_second(self) -> float:
        """How fast a file is read and fingerprinted."""
        block = bytes(HASH_SAMPLE_BYTES)
        return self._speed("hash", lambda: _rate(HASH_SAMPLE_BYTES, lambda: hashlib.sha256(block).digest()))

    def flops(self) -> float:
        """Float32 multiplications and additions a second in a large product."""
        return self._speed("flops", _matmul_speed)

    def bytes_written_per_second(self) -> float:
        """To disk, flushed."""
        return self._speed("write", lambda: _write_speed(self._cache.parent))

    def _speed(self, name: str, measure: Callable[[], float]) -> float:
        key = f"{_machine()} threads {self._threads}: {name}"
        if key not in self._known:
            self._known[key] = measure()
            _write(self._cache, self._known)
        return self._known[key]


def cache_folder() -> Path:
    """LILLIPUT_CACHE, or ~/.cache/lilliput."""
    return Path(os.environ.get("LILLIPUT_CACHE") or Path.home() / ".cache" / "lilliput")


def _quantize_speed(row: TensorPlan, guided: bool, threads: int) -> float:
    weight = _sample(row.format.block_size)
    inputs = LayerInputs(1, np.ones(weight.shape[1], dtype=np.float32)) if guided else NO_INPUTS
    if _sees_hessian(row):
        # These work column by column: few columns and many rows show what a weight costs.
        weight = np.ascontiguousarray(weight.reshape(-1, HESSIAN_COLUMNS))
        ones = np.ones(HESSIAN_COLUMNS, dtype=np.float32)
        inputs = LayerInputs(weight.size, ones, np.diag(ones))
    return _rate(weight.size, lambda: METHODS[row.method].quantize(row.format, weight, inputs, threads=threads))


def _decode_speed() -> float:
    weight = _sample(1).astype(np.float16)
    return _rate(weight.size, lambda: np.array_equal(weight.astype(np.float32), weight))


def _matmul_speed() -> float:
    matrix = _sample(1)[:, :512]
    square = np.ascontiguousarray(matrix.T) @ matrix
    return _rate(2 * square.shape[0] ** 3, lambda: square @ square)


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


def _sample(block_size: int) -> FloatArray:
    columns = max(SAMPLE_COLUMNS // block_size, 1) * block_size
    return np.random.default_rng(0).standard_normal((SAMPLE_ROWS, columns)).astype(np.float32)


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


def _read(path: Path) -> dict[str, float]:
    """Remembered speeds; a file that cannot be read is as good as none."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {key: float(value) for key, value in content.items() if isinstance(value, int | float) and value > 0}


def _write(path: Path, known: Mapping[str, float]) -> None:
    """Remember; without a writable cache the next run measures again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(known, indent=1))
        temporary.replace(path)
    except OSError:
        return
