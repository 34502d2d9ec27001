# SPDX-License-Identifier: Apache-2.0
"""Engines timed in turn: each has a process of its own, so that no thread pool disturbs another.

A process builds its model once, then waits for the name of a task on each line of stdin, and answers with what a few
runs of it took. Rounds go over all processes, so that a machine's slow minutes hit all of them alike.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

# (milliseconds by the clock, of processor time) of every run.
Times = list[tuple[float, float]]
_READY = "ready"
# ONNX Runtime's threads spin for some time after a run, on processors that the next engine needs.
_REST_SECONDS = 0.15


def serve(tasks: Mapping[str, Callable[[], object]], runs: int, warm: int = 3, rehearsals: int = 1) -> None:
    """Be such a process: until stdin ends, run the task that each line names.

    rehearsals: untimed runs before the timed ones of a round.
    """
    for _ in range(warm):
        for task in tasks.values():
            task()
    print(_READY, flush=True)
    for line in sys.stdin:
        task = tasks[line.strip()]
        for _ in range(rehearsals):
            task()
        times = []
        for _ in range(runs):
            start, busy = time.perf_counter(), time.process_time()
            task()
            times.append(((time.perf_counter() - start) * 1e3, (time.process_time() - busy) * 1e3))
        print(json.dumps(times), flush=True)


class Worker:
    """An engine in its process. greeting: the lines that it printed before it served."""

    def __init__(self, arguments: Sequence[str], threads: int, python: str = sys.executable) -> None:
        """Start python with these arguments and wait until it serves."""
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([python, *arguments], stdin=pipe, stdout=pipe, text=True, env=environment)
        self.greeting: list[str] = []
        while (line := self._line()) != _READY:
            self.greeting.append(line)

    def times(self, task: str) -> Times:
        """Of one round."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{task}\n")
        self.process.stdin.flush()
        return [(wall, busy) for wall, busy in json.loads(self._line())]

    def peak_resident_bytes(self) -> int | None:
        """The process's highest resident size so far, where the system tells it."""
        status = Path(f"/proc/{self.process.pid}/status")
        lines = status.read_text().splitlines() if status.is_file() else []
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"an engine ended with status {self.process.wait()}")
        return line.strip()


def measure(
    commands: Mapping[str, Sequence[str]], tasks: Sequence[str], threads: int, rounds: int
) -> dict[str, dict[str, Times]]:
    """Task -> engine -> times. commands: python's arguments that serve an engine."""
    workers = {engine: Worker(arguments, threads) for engine, arguments in commands.items()}
    times = take_turns(workers, tasks, rounds)
    for worker in workers.values():
        worker.close()
    return times


def take_turns(workers: Mapping[str, Worker], tasks: Sequence[str], rounds: int) -> dict[str, dict[str, Times]]:
    """Task -> engine -> times, of workers that are left running."""
    times: dict[str, dict[str, Times]] = {task: {engine: [] for engine in workers} for task in tasks}
    for number in range(rounds):
        for task in tasks:
            for engine, worker in workers.items():
                rest()
                times[task][engine] += worker.times(task)
        print(f"round {number + 1} of {rounds} done", file=sys.stderr)
    return times


def model_folders(
    shapes: Sequence[str], keep: Path | None, write: Callable[[str, Path], None]
) -> Iterator[tuple[str, Path]]:
    """(shape, folder of its models), written unless they lie in `keep` already; without `keep` gone afterwards."""
    with tempfile.TemporaryDirectory() as name:
        for shape in shapes:
            folder = (keep or Path(name)) / shape
            if not folder.is_dir():
                folder.mkdir(parents=True)
                write(shape, folder)
            yield shape, folder


def record(result: Mapping[str, object], file: Path | None) -> None:
    """One JSON line to stdout, and to the end of a file where there is one."""
    line = json.dumps(result)
    print(line, flush=True)
    if file:
        with file.open("a") as lines:
            lines.write(line + "\n")


def rest() -> None:
    """Between two engines."""
    time.sleep(_REST_SECONDS)


def medians(times: Mapping[str, Times]) -> dict[str, float]:
    """Milliseconds by the clock."""
    return {engine: statistics.median(wall for wall, _ in found) for engine, found in times.items()}


def spread(times: Mapping[str, Times]) -> dict[str, dict[str, object]]:
    """Medians, quartiles and least, in milliseconds.

    least_cpu_ms is what a busy machine falsifies least, for one thread; a thread that waits may be busy, too.
    """
    walls = {engine: [wall for wall, _ in found] for engine, found in times.items()}
    quartiles = {engine: statistics.quantiles(found, n=4) for engine, found in walls.items()}
    return {
        "median_ms": {engine: round(value, 2) for engine, value in medians(times).items()},
        "quartiles_ms": {engine: [round(part[0], 2), round(part[2], 2)] for engine, part in quartiles.items()},
        "least_ms": {engine: round(min(found), 2) for engine, found in walls.items()},
        "least_cpu_ms": {engine: round(min(busy for _, busy in found), 2) for engine, found in times.items()},
    }
