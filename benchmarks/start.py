# SPDX-License-Identifier: Apache-2.0
"""From the command to the first token, beside llama.cpp: seconds and memory of a fresh process, file in the page cache.

    python benchmarks/start.py MODEL.gguf [MODEL.gguf …] --llama-completion PATH --rounds 7 [--threads 1,2]
    python benchmarks/random_model.py random-1b-F16.gguf --tokenizer models/ggml-vocab-llama-bpe.gguf   # llama.cpp's

Engines run in turn, each time in a new process, with the same prompt, one greedy token and a cache for no more than
that: `lilliput run` as a user starts it; the library alone (which says what its steps took); llama-completion as it is
and without its warm-up run, without its second look at the file (`-fit off`) and without repacking. Of every process:

    first_token_s       from its start until the first byte of the token is on its stdout; prompts are not echoed
    ready_s             from opening the file until tokens are taken: the library's tokenizer and Session; from
                        llama.cpp's log, "load the model" until "system_info"
    peak_rss_bytes      wait4's ru_maxrss: mapped pages of the file count
    peak_private_bytes  most anonymous memory (RssAnon), looked at every 10 ms and at the first token

`ratio` is ours by theirs, the median over rounds, with the 95 % interval of a median by order statistics, for which six
rounds are the fewest. Ours is `lilliput run`, in ready_s the library. Give a file whose tokenizer is as large as its
vocabulary: reading it is much of a start. One JSON line per file, threads, prompt and engine to stdout, a table to
stderr. Linux only.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import resource
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import comb
from pathlib import Path

import interleaved
from speed import machine

from lilliput import _native

COMMAND, LIBRARY = "lilliput run", "lilliput library"
PEERS: dict[str, tuple[str, ...]] = {
    "llama.cpp": (),
    "llama.cpp --no-warmup": ("--no-warmup",),
    "llama.cpp --no-warmup -fit off": ("--no-warmup", "-fit", "off"),
    "llama.cpp --no-repack": ("--no-repack",),
    "llama.cpp --no-repack --no-warmup -fit off": ("--no-repack", "--no-warmup", "-fit", "off"),
}
METRICS = ("first_token_s", "ready_s", "peak_rss_bytes", "peak_private_bytes")
CONFIDENCE = 0.95
# Between two looks at a process's memory; one costs about 20 microseconds of another processor.
SAMPLE_MILLISECONDS = 10
TEXT = Path(__file__).parent / "data" / "documentation.txt"
# llama-completion wants room for four tokens beside the prompt.
PEER_ROOM = 8
LIBRARY_CODE = """
import json, sys, time
times = [time.perf_counter()]
from lilliput.containers import open_model
from lilliput.runtime.session import EngineOptions, Session
from lilliput.text.tokenizer import Tokenizer
times.append(time.perf_counter())
file, prompt, threads = sys.argv[1:]
source = open_model(file)
times.append(time.perf_counter())
tokenizer = Tokenizer(source.vocabulary())
ids = tokenizer.encode(prompt)
times.append(time.perf_counter())
session = Session(source, EngineOptions(threads=int(threads), context=len(ids) + 1))
times.append(time.perf_counter())
token = int(session.forward(ids)[0].argmax())
sys.stdout.write(tokenizer.decode([token], skip_special=False) or " ")
sys.stdout.flush()
times.append(time.perf_counter())
steps = dict(zip(("imports_s", "open_s", "tokenizer_s", "session_s", "pass_s"), map(float.__sub__, times[1:], times)))
print(json.dumps({"prompt_tokens": len(ids), "steps": steps}), file=sys.stderr)
"""


@dataclass(frozen=True)
class Case:
    """What all engines are given."""

    file: Path
    threads: int
    tokens: int
    prompt: str = field(repr=False)


@dataclass(frozen=True)
class Run:
    """What one process took. steps: of the library alone, in seconds."""

    first_token_s: float
    ready_s: float | None
    peak_rss_bytes: int
    peak_private_bytes: int
    prompt_tokens: int
    steps: dict[str, float]

    def metric(self, name: str) -> float | None:
        """One of METRICS."""
        value: float | None = getattr(self, name)
        return value


def prompt_of(file: Path, tokens: int) -> str:
    """The beginning of a text that is this many tokens, BOS included where the model wants one."""
    from lilliput.containers import open_model
    from lilliput.text.tokenizer import Tokenizer

    tokenizer = Tokenizer(open_model(file).vocabulary())
    ids = tokenizer.encode(TEXT.read_text())
    # A cut inside a word may be spelled in other tokens than the word.
    for end in range(max(tokens - 4, 1), min(tokens + 32, len(ids))):
        prompt = tokenizer.decode(ids[:end])
        if len(tokenizer.encode(prompt)) == tokens:
            return prompt
    raise SystemExit(f"{file}: no beginning of {TEXT.name} is {tokens} tokens")


def commands(case: Case, arguments: argparse.Namespace) -> dict[str, list[str]]:
    """What starts each engine."""
    file, threads = str(case.file), str(case.threads)
    ours = [str(arguments.lilliput), "run", file, "--prompt", case.prompt, "--max-tokens", "1", "--temperature", "0"]
    found = {
        COMMAND: [*ours, "--threads", threads],
        LIBRARY: [sys.executable, "-c", LIBRARY_CODE, file, case.prompt, threads],
    }
    if arguments.llama_completion is not None:
        peer = [
            *(str(arguments.llama_completion), "-m", file, "-p", case.prompt, "--no-escape", "-t", threads, "-n", "1"),
            *("-c", str(case.tokens + PEER_ROOM), "--temp", "0", "-no-cnv", "--no-display-prompt", "--offline"),
            *("--log-prefix", "--log-timestamps"),
        ]
        found |= {name: [*peer, *options] for name, options in PEERS.items()}
    return found


def measured(engine: str, command: Sequence[str]) -> Run:
    """Run a process to its end."""
    # A user's Python keeps the bytecode of what it imports.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, env=environment
        )
        first, private = watched(process, start)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        said = errors.read().decode("utf-8", "replace")
    if process.returncode != 0 or first is None:
        last = "\n".join(said.strip().splitlines()[-5:])
        raise SystemExit(f"{engine} ended with status {process.returncode}; it said last:\n{last}")
    peak = usage.ru_maxrss * 1024
    # The child of a large process begins with that one's peak.
    if peak <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024:
        raise SystemExit(f"{engine}: its peak memory is below that of this script; take a larger file")
    tokens, ready, steps = told(engine, said)
    return Run(first, ready, peak, private, tokens, steps)


def watched(process: subprocess.Popen[bytes], start: float) -> tuple[float | None, int]:
    """(seconds until the first byte, most anonymous memory), once stdout is closed."""
    assert process.stdout is not None
    first, private = None, 0
    output = process.stdout.fileno()
    poll = select.poll()
    poll.register(output, select.POLLIN)
    while True:
        is_readable = poll.poll(SAMPLE_MILLISECONDS)
        now = time.perf_counter()
        private = max(private, anonymous_bytes(process.pid))
        if is_readable:
            if not os.read(output, 1):
                process.stdout.close()
                return first, private
            first = now - start if first is None else first


def anonymous_bytes(pid: int) -> int:
    """RssAnon of a process that may be gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def told(engine: str, said: str) -> tuple[int, float | None, dict[str, float]]:
    """(tokens of the prompt, seconds until ready, steps) from what an engine wrote to stderr."""
    if engine == LIBRARY:
        answer = json.loads(said.splitlines()[-1])
        steps: dict[str, float] = answer["steps"]
        return answer["prompt_tokens"], sum(steps[name] for name in ("open_s", "tokenizer_s", "session_s")), steps
    if engine == COMMAND:
        counted = re.search(r"^(\d+) prompt tokens at", said, re.MULTILINE)
        return int(counted[1]) if counted else 0, None, {}
    counted = re.search(r"prompt eval time =.*?/\s*(\d+) tokens", said)
    begin, end = log_time(said, "load the model"), log_time(said, "system_info")
    if counted is None or begin is None or end is None:
        raise SystemExit(f"{engine}: its log names no prompt eval time, 'load the model' or 'system_info'")
    return int(counted[1]), end - begin, {}


def log_time(said: str, words: str) -> float | None:
    """Seconds at which llama.cpp logged the first line with these words: minutes.seconds.milli.micro before it."""
    found = re.search(rf"^(\d+)\.(\d+)\.(\d+)\.(\d+) .*{re.escape(words)}", said, re.MULTILINE)
    if found is None:
        return None
    minutes, seconds, milli, micro = map(int, found.groups())
    return minutes * 60 + seconds + milli / 1e3 + micro / 1e6


def rounds(cases: Sequence[Case], arguments: argparse.Namespace) -> Iterator[tuple[Case, str, Run]]:
    """Every measured run, engines interleaved within each case, each round beginning with another."""
    for number in range(-1, arguments.rounds):
        for case in cases:
            engines = list(commands(case, arguments).items())
            first = number % len(engines)
            for engine, command in [*engines[first:], *engines[:first]]:
                interleaved.rest()
                run = measured(engine, command)
                if run.prompt_tokens != case.tokens:
                    raise SystemExit(f"{engine}: reads {run.prompt_tokens} tokens where the prompt has {case.tokens}")
                # The first round is not counted: it compiles bytecode and reads programs from disk.
                if number >= 0:
                    yield case, engine, run
        print(f"round {number + 1} of {arguments.rounds} done", file=sys.stderr)


def median_interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """95 % interval of the median: the narrowest pair of order statistics that covers it; None below six values."""
    n, tail, below = len(values), 0.0, -1
    for rank in range(n // 2):
        tail += comb(n, rank) / 2**n
        if 2 * tail > 1 - CONFIDENCE:
            break
        below = rank
    if below < 0:
        return None, None
    ordered = sorted(values)
    return ordered[below], ordered[n - 1 - below]


def summary(case: Case, runs: dict[str, list[Run]]) -> Iterator[dict[str, object]]:
    """One record per engine."""
    for engine in filter(runs.__contains__, (COMMAND, LIBRARY, *PEERS)):
        found = runs[engine]
        record: dict[str, object] = {
            "file": case.file.name,
            "file_bytes": case.file.stat().st_size,
            "threads": case.threads,
            "prompt_tokens": case.tokens,
            "engine": engine,
            "rounds": len(found),
        }
        for metric in METRICS:
            values = [value for run in found if (value := run.metric(metric)) is not None]
            if not values:
                continue
            record[metric] = {
                "median": rounded(statistics.median(values)),
                "min": rounded(min(values)),
                "max": rounded(max(values)),
            }
            if engine in PEERS:
                record[metric] |= compared(runs[LIBRARY if metric == "ready_s" else COMMAND], found, metric)
        if engine == LIBRARY:
            medians = {name: statistics.median(run.steps[name] for run in found) for name in found[0].steps}
            record["steps"] = {name: rounded(value) for name, value in medians.items()}
        yield record


def compared(ours: Sequence[Run], theirs: Sequence[Run], metric: str) -> dict[str, float | None]:
    """The ratio within rounds."""
    pairs = ((our.metric(metric), their.metric(metric)) for our, their in zip(ours, theirs, strict=True))
    ratios = [our / their for our, their in pairs if our is not None and their]
    low, high = median_interval(ratios)
    return {
        "ratio": round(statistics.median(ratios), 3),
        "ratio_low": None if low is None else round(low, 3),
        "ratio_high": None if high is None else round(high, 3),
    }


def rounded(value: float) -> float:
    """Seconds to a tenth of a millisecond, bytes as they are."""
    return int(value) if value >= 1e4 else round(value, 4)


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--llama-completion", type=Path, help="the rival's program")
    parser.add_argument("--lilliput", type=Path, default=Path(sys.executable).with_name("lilliput"), help="our program")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--prompts", default="8,512", help="tokens of each")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    # In a process of its own: what choosing a prompt takes would count as a peak of every engine.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        cases = [
            Case(file, threads, tokens, pool.apply(prompt_of, (file, tokens)))
            for file in arguments.files
            for threads in map(int, arguments.threads.split(","))
            for tokens in map(int, arguments.prompts.split(","))
        ]
    for file in arguments.files:
        with file.open("rb") as data:
            while data.read(1 << 24):
                pass
    runs: dict[Case, dict[str, list[Run]]] = {case: {} for case in cases}
    for case, engine, run in rounds(cases, arguments):
        runs[case].setdefault(engine, []).append(run)
    where = machine(_native.available_instruction_sets()[-1])
    for case in cases:
        for record in summary(case, runs[case]):
            print(json.dumps({**record, **where}), flush=True)
            print(table_line(record), file=sys.stderr)


def table_line(record: dict[str, object]) -> str:
    """Medians, and ratios in brackets."""
    parts = [f"{record['file']} {record['threads']}T {record['prompt_tokens']:>4} tokens {record['engine']!s:44}"]
    for metric in METRICS:
        found = record.get(metric)
        if not isinstance(found, dict):
            parts.append(f"{'':24}")
            continue
        unit = 1.0 if metric.endswith("_s") else 1e6
        median = f"{found['median'] / unit:8.{3 if unit == 1.0 else 0}f} {'s' if unit == 1.0 else 'MB'}"
        ratio = f"({found['ratio']:.2f})" if "ratio" in found else ""
        parts.append(f"{median:11} {ratio:12}")
    return " ".join(parts)


if __name__ == "__main__":
    main()
