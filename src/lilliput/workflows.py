# SPDX-License-Identifier: Apache-2.0
"""The documented Python API: plan, calibrate, quantize, evaluate, inspect, bench. Joins the rooms."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from lilliput.calibration.builtin_mix import BUILT_IN_DATASET
from lilliput.containers.inspection import Inspection
from lilliput.containers.inspection import inspect as inspect_file
from lilliput.errors import CalibrationError
from lilliput.evaluation.compare import EvaluationResult
from lilliput.evaluation.model_logits import EvaluationOptions, compare_models
from lilliput.opening import PathLike, is_builtin, located, opened, text_files
from lilliput.planning import (
    CHUNK,
    STREAM_TOKENS,
    Guidance,
    PlanReport,
    QuantizeOptions,
    chosen_method,
    plan,
    planned_bytes,
)
from lilliput.progress import Progress
from lilliput.quantizing import QuantizeResult, quantize
from lilliput.records import Statistics
from lilliput.runtime.speed import SpeedRow, SpeedTest, measure_speed
from lilliput.text.documents import read_text

__all__ = [
    "STREAM_TOKENS",
    "CalibrateOptions",
    "EvaluationOptions",
    "Guidance",
    "PathLike",
    "PlanReport",
    "Progress",
    "QuantizeOptions",
    "QuantizeResult",
    "bench",
    "calibrate",
    "calibrated_on",
    "chosen_method",
    "evaluate",
    "inspect",
    "is_builtin",
    "located",
    "opened",
    "plan",
    "planned_bytes",
    "quantize",
    "text_files",
]


def calibrate(
    model: PathLike,
    text: Sequence[PathLike] = (),
    output: PathLike | None = None,
    *,
    options: CalibrateOptions | None = None,
    progress: Progress | None = None,
) -> Statistics:
    """Collect what enters every linear layer; write it to `output` (.safetensors, or .gguf for llama.cpp).

    text: files; none or "builtin" means the built-in mix.  progress: called with (steps done, steps in all).
    """
    from lilliput.calibration.collect import CalibrationOptions
    from lilliput.calibration.collect import calibrate as collect_statistics
    from lilliput.calibration.statistics_file import check_ending, merge, read_statistics, write_statistics

    options = options or CalibrateOptions()
    target = Path(output) if output is not None else None
    if target is not None:
        check_ending(target)
    if target is not None and target.exists() and not options.force:
        raise CalibrationError(f"{target} exists already; pass --force to replace it or choose another name with -o")
    earlier = [read_statistics(path) for path in options.merge]
    with opened(model, options.revision) as source:
        chosen = CalibrationOptions(
            chunk_size=options.chunk_size, tokens=options.tokens, device=options.device, threads=options.threads,
            memory_limit=options.memory_limit, outputs=options.outputs,
        )  # fmt: skip
        statistics = collect_statistics(source, text_files([Path(path) for path in text]), chosen, progress)
    for other in earlier:
        statistics = merge(statistics, other)
    if target is not None:
        write_statistics(target, statistics)
    return statistics


@dataclass(frozen=True, slots=True)
class CalibrateOptions:
    """How to collect statistics.

    chunk_size: tokens a sequence.  tokens: at most this many, None means all.  merge: statistics files whose sums are
    added.  memory_limit: bytes; hidden states beyond it wait in a temporary file.
    outputs: whether ranges of what every operation gives are collected, for files of integers alone.
    """

    chunk_size: int = CHUNK
    tokens: int | None = None
    merge: tuple[Path, ...] = ()
    device: str = "cpu"
    threads: int | None = None
    memory_limit: int | None = None
    revision: str | None = None
    force: bool = False
    outputs: bool = False


def evaluate(
    base: PathLike,
    files: Sequence[PathLike],
    text: PathLike,
    *,
    options: EvaluationOptions | None = None,
    progress: Progress | None = None,
) -> EvaluationResult:
    """Measure quantized files against the original, on the same tokens, over the full vocabulary.

    text: plain, JSON Lines or gzip, or "builtin".  progress: called with (windows done, windows in all).
    Raises EvaluationError for text shorter than one window or models that cannot be compared.
    """
    with ExitStack() as stack:
        named = [(str(name), stack.enter_context(opened(name))) for name in (base, *files)]
        words = None if is_builtin(text) else read_text(Path(text))
        return compare_models(named[0], named[1:], words, options, progress=progress)


def inspect(file: PathLike, *, revision: str | None = None) -> Inspection:
    """Metadata and tensors of a file, folder or hub id, from headers alone; a hub id's files are fetched."""
    path = Path(located(file))
    if revision is not None or not path.exists():
        with opened(file, revision) as source:
            path = source.path
    return inspect_file(path)


def bench(model: PathLike, tests: Sequence[SpeedTest], *, progress: Progress | None = None) -> list[SpeedRow]:
    """Prefill and decode speed of a file on this machine, one process per row."""
    return measure_speed(located(model), tests, progress=progress)


def calibrated_on(files: Sequence[PathLike], text: PathLike) -> list[str]:
    """Those of the files that name this text among what they were calibrated on: measured on it they look too good."""
    name = BUILT_IN_DATASET if is_builtin(text) else Path(text).name
    found = []
    for file in files:
        with opened(file) as source:
            datasets = source.provenance.extra.get("quantize.imatrix.dataset", "")
        if name in str(datasets).split(", "):
            found.append(str(file))
    return found
