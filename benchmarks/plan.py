# SPDX-License-Identifier: Apache-2.0
"""What `lilliput plan` says a job will take, beside what it then takes: seconds, memory, bytes of the file.

    python benchmarks/plan.py --model gulliver --text TEXT --job fast,balanced,best,fit [--to Q4_K_M] [--size 5MB]
                              [--effort fast] [--formats q2_k,q4_k,q8_0] [--tokens N] [--threads 2]

The first three jobs are `quantize --effort`; `fit` takes --size, --effort and --formats. The plan measures the machine
anew. Memory is the highest anonymous resident size of the process: pages of mapped files are the system's to take back.
Times mean something on an idle machine only; the processor seconds beside them show how idle it was. One JSON line a
job, appended to benchmarks/results/plan.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "plan.jsonl"
SAMPLING_SECONDS = 0.02


def main() -> None:
    arguments = parsed()
    for job in arguments.job.split(","):
        line = measured(arguments, job)
        print(json.dumps(line))
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gulliver")
    parser.add_argument("--text", required=True)
    parser.add_argument("--job", default="fast,balanced,fit")
    parser.add_argument("--to", default="Q4_K_M")
    parser.add_argument("--size", default="5MB")
    parser.add_argument("--effort")
    parser.add_argument("--formats")
    parser.add_argument("--tokens")
    parser.add_argument("--threads", default=str(os.cpu_count() or 1))
    return parser.parse_args()


def measured(arguments: argparse.Namespace, job: str) -> dict[str, object]:
    common = ["--text", arguments.text, "--threads", arguments.threads, "--json"]
    common += ["--tokens", arguments.tokens] if arguments.tokens else []
    if job == "fit":
        chosen = ["--size", arguments.size]
        chosen += ["--effort", arguments.effort] if arguments.effort else []
        chosen += ["--formats", arguments.formats] if arguments.formats else []
        command = "fit"
    else:
        chosen, command = ["--to", arguments.to, "--effort", job], "quantize"
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "LILLIPUT_CACHE": folder}
        start = time.perf_counter()
        planned = run(["plan", arguments.model, *chosen, *common], environment)
        planning = time.perf_counter() - start
        output = Path(folder) / "model.gguf"
        done = run([command, arguments.model, *chosen, *common, "-o", str(output)], environment)
        size = output.stat().st_size
    expected = json.loads(planned.stdout)
    cost = expected.get("cost", expected)
    stages = {name: value for name, value in cost["seconds"].items() if name != "total"}
    total = sum(stages.values())
    return {
        "measured": time.strftime("%Y-%m-%d"), "model": Path(arguments.model).name, "job": job,
        "what": " ".join(chosen), "threads": int(arguments.threads),
        "planning_seconds": round(planning, 2),
        "seconds": {"planned": round(total, 1), "taken": round(done.seconds, 1),
                    "processors": round(done.processor_seconds, 1), "ratio": round(total / done.seconds, 3)},
        "stages": {name: round(value, 2) for name, value in stages.items()},
        "ram_bytes": {"planned": cost["peak_ram_bytes"], "taken": done.anonymous_bytes,
                      "ratio": round(cost["peak_ram_bytes"] / done.anonymous_bytes, 3)},
        "file_bytes": {"planned": expected.get("bytes"), "taken": size},
    }  # fmt: skip


@dataclass(frozen=True)
class Done:
    """What one command printed and took."""

    stdout: str
    seconds: float
    processor_seconds: float
    anonymous_bytes: int


def run(words: list[str], environment: dict[str, str]) -> Done:
    """One command of lilliput: its output, seconds, processor seconds, and highest anonymous memory in bytes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile() as captured:
        process = subprocess.Popen(
            [sys.executable, "-c", "from lilliput.cli import main; raise SystemExit(main())", *words],
            stdout=captured, env=environment, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            try:
                peak = max(peak, anonymous(status.read_text()))
            except OSError:
                break
            time.sleep(SAMPLING_SECONDS)
        if process.wait():
            raise SystemExit(f"lilliput {' '.join(words)}: exit code {process.returncode}")
        seconds = time.perf_counter() - start
        captured.seek(0)
        text = captured.read().decode()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Done(text, seconds, spent, peak)


def anonymous(status: str) -> int:
    for line in status.splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    main()
