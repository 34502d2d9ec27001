# SPDX-License-Identifier: Apache-2.0
"""What each format costs in time on this machine: the model itself, wholly in that format, in the native engine.

Others may use the machine at the same time. Beside each measurement an array that fits no cache is read: the best rate
seen so far over the rate now says how much slower everything is than it will be, and times are divided by that.

A token's time is the sum over tensors of weights times the time a weight takes in its format. The rate of a format is
measured on the model with every matrix in it, so that caches, threads and everything beside the matrices count as they
will; a matrix that cannot have the format stays in one whose rate is known already.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lilliput import _native
from lilliput.checkpoints.model_source import ModelSource
from lilliput.containers.publish import write_text
from lilliput.progress import Progress
from lilliput.records import Role
from lilliput.runtime.session import EngineOptions, Session
from lilliput.search.choices import Choice, Picks

TOKENS = 24
REPETITIONS = 5
DEPTH = 32
PROBE_BYTES = 64_000_000
# The engine runs every row length in it, so that it can stand in for the others.
REFERENCE = "q8_0"


@dataclass(frozen=True, slots=True)
class SpeedTable:
    """by_choice: for each choice the seconds that each of its formats takes of one generated token."""

    by_choice: tuple[tuple[float, ...], ...]

    def seconds(self, picks: Picks) -> float:
        """Of one token."""
        return sum(seconds[pick] for seconds, pick in zip(self.by_choice, picks, strict=True))


class MemoryProbe:
    """How fast memory is read now, beside the best rate that was ever seen here.

    known: file that keeps the best one.
    """

    def __init__(self, known: Path) -> None:
        self._known = known
        self._array = np.ones(PROBE_BYTES, dtype=np.uint8)
        self._isa = _native.available_instruction_sets()[-1]
        self._best = _read(known).get("bytes_per_second", 0.0)

    def slowdown(self) -> float:
        """Best rate over the rate now; 1 on a machine that does nothing else."""
        start = time.perf_counter()
        _native.probe_read(self._isa, self._array)
        rate = PROBE_BYTES / max(time.perf_counter() - start, 1e-9)
        if rate > self._best:
            self._best = rate
            write_text(self._known, json.dumps({"bytes_per_second": rate}))
        return self._best / rate


def decode_seconds(source: ModelSource, probe: MemoryProbe, threads: int | None = None) -> float:
    """Median time of one generated token after a short prompt, on a machine that does nothing else."""
    context = min(DEPTH + TOKENS, source.config.context_length)
    depth = min(DEPTH, context // 2)
    session = Session(source, EngineOptions(threads=threads, context=context))
    session.forward([1] * depth, "none")
    found = []
    slower = probe.slowdown()
    for repetition in range(REPETITIONS + 1):
        session.truncate(depth)
        start = time.perf_counter()
        for _ in range(context - depth):
            session.forward([1])
        seconds = (time.perf_counter() - start) / (context - depth)
        before, slower = slower, probe.slowdown()
        if repetition:  # the first one warms up
            found.append(seconds / ((before + slower) / 2))
    return statistics.median(found)


def speed_table(
    source: ModelSource,
    choices: Sequence[Choice],
    seconds_of: Callable[[Mapping[str, str]], float],
    known: Path,
    *,
    progress: Progress | None = None,
) -> SpeedTable:
    """Measure the rate of every candidate format, or read what an earlier run measured.

    seconds_of: time of a token of the model with these formats (tensor name -> format name).
    known: file of earlier rates.
    """
    rates = _read(known)
    names = list(dict.fromkeys(item.name for choice in choices for item in choice.formats))
    names.sort(key=lambda name: name != REFERENCE)
    weights = [_weights(source, choice) for choice in choices]
    for place, name in enumerate(names):
        if name not in rates:
            rates[name] = _rate(choices, weights, seconds_of, name, rates)
            write_text(known, json.dumps(rates, indent=1))
        if progress is not None:
            progress(place + 1, len(names))
    return SpeedTable(
        tuple(
            tuple(rates[item.name] * count for item in choice.formats)
            for choice, count in zip(choices, weights, strict=True)
        )
    )


def _rate(
    choices: Sequence[Choice],
    weights: Sequence[int],
    seconds_of: Callable[[Mapping[str, str]], float],
    name: str,
    rates: Mapping[str, float],
) -> float:
    """Seconds a weight in one format."""
    formats: dict[str, str] = {}
    own, others = 0, 0.0
    for choice, count in zip(choices, weights, strict=True):
        able = [item.name for item in choice.formats]
        chosen = name if name in able else REFERENCE if REFERENCE in able else able[0]
        formats |= dict.fromkeys(choice.names, chosen)
        if chosen == name:
            own += count
        else:
            others += rates.get(chosen, 0.0) * count
    seconds = seconds_of(formats)
    return max(seconds - others, 0.0) / max(own, 1)


def _weights(source: ModelSource, choice: Choice) -> int:
    """Weights that a token is multiplied with; rows that are only looked up cost nothing."""
    table = {entry.name: entry.role for entry in source.architecture.tensor_table(source.config)}
    return sum(
        source.headers[name].rows * source.headers[name].columns
        for name in choice.names
        if table[name] is not Role.TOKEN_EMBEDDING or source.config.tied
    )


def _read(path: Path) -> dict[str, float]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {name: float(rate) for name, rate in content.items()} if isinstance(content, dict) else {}
