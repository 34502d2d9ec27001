# SPDX-License-Identifier: Apache-2.0
"""Speed beside openvino-genai, onnxruntime-genai and torch: one model, interleaved rounds, a process each.

    python tools/external_environment.py language-runtimes
    python benchmarks/runtimes.py [--shape tiny] [--layers 2] [--threads 1 2] [--rounds 5] [--keep DIR] [--json FILE]

A random model (random_model.py), from which lilliput writes what each runtime reads: the same GGUF for us and
openvino-genai, the same integers for us and onnxruntime-genai, the BF16 folder for torch, which quantizes it when it
starts. `prefill` reads a prompt of 512 tokens and chooses one; `decode` reads one token and chooses 64, a pass each: as
many tokens as passes give logits of a last token. Every run has a prompt of its own, so that no runtime finds it in a
cache. A runtime is taken from the environment where it was made, else from this python; what is not found, or does not
start, is named in a line of its own. All processes are there at once: where memory is short, measure parts of the list
with --runtimes, each with the rows of ours that stand beside them. Needs `onnx` to set up the folders of
onnxruntime-genai, and torch wants a C++ compiler.

One JSON line per runtime, thread count and test goes to stdout, a table to stderr. median, min, max: tokens a second.
ratio: median over rounds of ours, of the row `beside`, divided by theirs.  processors: busy ones, on average.
ready_s, first_token_s: from the start of the process until the model can take tokens, and until the first came out of
a prompt of one, compilation included.  peak_rss_bytes: of the process, over both tests, mapped files included.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import interleaved
from peers.language_runtimes import RUNTIMES, Generate, installed

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = "language-runtimes"
SHAPES = ("llama-1b", "qwen2.5-0.5b", "tiny")
# torch.compile compiles a second time when a cache is used again.
WARM = 2


@dataclass(frozen=True)
class Found:
    """Where a runtime is installed, and which versions."""

    python: Path
    versions: dict[str, str]


@dataclass(frozen=True)
class Measured:
    """What one process took: `seconds` and `busy` (of processors) by test, over rounds."""

    found: Found
    ready_s: float
    first_token_s: float
    peak_rss_bytes: int | None
    seconds: dict[str, list[float]]
    busy: dict[str, list[float]]


def find(packages: Sequence[str], pythons: Sequence[Path]) -> Found | None:
    """The first python that has them all."""
    script = Path(__file__).parent / "peers" / "language_runtimes.py"
    for python in pythons:
        command = [str(python), str(script), *packages]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return Found(python, json.loads(done.stdout))
    return None


def serve(name: str, folder: Path, threads: int, sizes: Mapping[str, int]) -> None:
    """One runtime in this process; its first line says when it was ready."""
    # Runtimes print what they like; the answers have the pipe for themselves.
    sys.stdout = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import numpy as np

    runtime = RUNTIMES[name]
    random = np.random.default_rng(0)
    vocabulary = json.loads((folder / "BF16" / "config.json").read_text())["vocab_size"]
    generate = runtime.start(folder / runtime.file, threads, max(sizes.values()) + 1)
    ready_at = time.time()
    generate([1], 1)
    moments = {"ready_at": ready_at, "first_token_at": time.time(), "versions": installed(runtime.packages)}
    print(json.dumps(moments), flush=True)

    def task(prompt: int, count: int) -> Callable[[], Sequence[int]]:
        return lambda: checked(generate, random.integers(2, vocabulary, prompt).tolist(), count)

    tasks = {"prefill": task(sizes["prefill"], 1), "decode": task(1, sizes["decode"])}
    interleaved.serve({test: tasks[test] for test in sizes if sizes[test]}, 1, WARM, rehearsals=0)


def checked(generate: Generate, ids: Sequence[int], count: int) -> Sequence[int]:
    tokens = generate(ids, count)
    if len(tokens) != count:
        raise SystemExit(f"{len(tokens)} tokens came instead of {count}")
    return tokens


def measure(
    found: Mapping[str, Found], folder: Path, threads: int, arguments: argparse.Namespace
) -> tuple[dict[str, Measured], list[str]]:
    """Runtime -> what was measured, and the names of those that did not start."""
    tests = {"prefill": arguments.prefill, "decode": arguments.decode}
    workers, moments, failed = {}, {}, []
    for name, place in found.items():
        command = [__file__, "--serve", name, str(folder), str(threads), *map(str, tests.values())]
        started_at = time.time()
        try:
            workers[name] = interleaved.Worker(command, threads, str(place.python))
        except SystemExit as ended:
            print(f"{name}: {ended}", file=sys.stderr)
            failed.append(name)
            continue
        said = json.loads(workers[name].greeting[0])
        moments[name] = (said["ready_at"] - started_at, said["first_token_at"] - started_at)
        print(f"{name} is ready", file=sys.stderr)
    times = interleaved.take_turns(workers, [test for test, n in tests.items() if n], arguments.rounds)
    measured = {}
    for name, worker in workers.items():
        peak = worker.peak_resident_bytes()
        worker.close()
        seconds = {test: [wall / 1e3 for wall, _ in times[test][name]] for test in times}
        busy = {test: [busy / 1e3 for _, busy in times[test][name]] for test in times}
        measured[name] = Measured(found[name], *moments[name], peak, seconds, busy)
    return measured, failed


def summary(measured: Mapping[str, Measured], sizes: Mapping[str, int]) -> Iterator[dict[str, object]]:
    """One record per test and runtime."""
    for test in (test for test, n in sizes.items() if n):
        for name, one in measured.items():
            runtime, seconds = RUNTIMES[name], one.seconds[test]
            rates = [sizes[test] / value for value in seconds]
            record: dict[str, object] = {
                "runtime": name,
                "file": runtime.file,
                "settings": runtime.settings,
                "test": test,
                "n": sizes[test],
                "median": round(statistics.median(rates), 3),
                "min": round(min(rates), 3),
                "max": round(max(rates), 3),
                "rounds": len(rates),
            }
            if runtime.beside in measured:
                ours = measured[runtime.beside].seconds[test]
                ratios = [theirs / our for our, theirs in zip(ours, seconds, strict=True)]
                record |= {"ratio": round(statistics.median(ratios), 3), "beside": runtime.beside}
            shares = [busy / wall for busy, wall in zip(one.busy[test], seconds, strict=True)]
            yield record | {
                "processors": round(statistics.median(shares), 2),
                "ready_s": round(one.ready_s, 2),
                "first_token_s": round(one.first_token_s, 2),
                "peak_rss_bytes": one.peak_rss_bytes,
                "versions": one.found.versions,
            }


def table_line(record: Mapping[str, object]) -> str:
    ratio = f"ours / theirs {record['ratio']:>6}" if "ratio" in record else ""
    peak = record["peak_rss_bytes"]
    memory = f"{peak / 2**30:5.2f} GiB" if isinstance(peak, int) else ""
    first = f"first token {record['first_token_s']:>7} s"
    label = f"{record['threads']}T {record['test']} {record['n']}"
    return f"{label:16} {record['runtime']!s:28} {record['median']:>9} {ratio:22} {first} {memory}"


def chosen_runtimes(arguments: argparse.Namespace) -> tuple[dict[str, Found], list[str]]:
    """The runtimes that take part, and those that are not installed."""
    own = Path(sys.executable)
    python = arguments.environments / ENVIRONMENT / "bin" / "python"
    places = [python, own] if python.exists() else [own]
    found, missing = {}, []
    for name, runtime in RUNTIMES.items():
        if arguments.runtimes and not any(part in name for part in arguments.runtimes):
            continue
        place = find(runtime.packages, [own] if runtime.beside is None else places)
        if place is None:
            missing.append(name)
        else:
            found[name] = place
    return found, missing


def run(arguments: argparse.Namespace, folder: Path) -> None:
    """Write the models into the folder, measure, print."""
    import random_model
    import speed
    from peers import runtime_models

    from lilliput import _native

    found, missing = chosen_runtimes(arguments)
    where = speed.machine(_native.available_instruction_sets()[-1])
    for name in missing:
        reason = f"not found: {', '.join(RUNTIMES[name].packages)}"
        print(f"{name}: {reason}", file=sys.stderr)
        interleaved.record({"runtime": name, "left_out": reason, **where}, arguments.json)
    shape = random_model.SHAPES[arguments.shape]
    if arguments.layers:
        shape = replace(shape, layers=arguments.layers)
    folder = folder / f"{arguments.shape}-{shape.layers}"
    runtime_models.write([RUNTIMES[name].file for name in found], folder, shape)
    sizes = {"prefill": arguments.prefill, "decode": arguments.decode}
    for threads in arguments.threads:
        about = {"shape": arguments.shape, "layers": shape.layers, "threads": threads}
        measured, failed = measure(found, folder, threads, arguments)
        for name in failed:
            interleaved.record({"runtime": name, "left_out": "did not start", **about, **where}, arguments.json)
        for record in summary(measured, sizes):
            interleaved.record({**about, **record, **where}, arguments.json)
            print(table_line({**about, **record}), file=sys.stderr)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default=SHAPES[0])
    parser.add_argument("--layers", type=int, help="fewer than the shape's, to try something out")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--prefill", type=int, default=512, help="tokens; 0 leaves the test out")
    parser.add_argument("--decode", type=int, default=64, help="tokens; 0 leaves the test out")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runtimes", nargs="+", help="only those whose names hold one of these; default: all")
    parser.add_argument("--environments", type=Path, default=ROOT / ".environments")
    parser.add_argument("--keep", type=Path, help="make the models in this folder, or take those that lie there")
    parser.add_argument("--json", type=Path, help="append the JSON lines to this file, too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        run(arguments, arguments.keep or Path(name))


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] == "--serve":
        prefill, decode = map(int, sys.argv[5:7])
        serve(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), {"prefill": prefill, "decode": decode})
    else:
        main()
