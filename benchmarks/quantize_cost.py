# SPDX-License-Identifier: Apache-2.0
"""What `--effort balanced` costs, part by part, on a random model of Llama-3.2-1B's shape, and what a whole one would.

    python benchmarks/random_model.py random-1b-1-F16.gguf --layers 1
    python benchmarks/quantize_cost.py random-1b-1-F16.gguf --tokens 65536

Time does not depend on the values. Text is random tokens, because the model has no tokenizer. Blocks cost alike; passes
of text and sums grow with the tokens, the rest does not: the estimate for LAYERS blocks and TOKENS tokens takes the
mean block accordingly, and the head once. Prints one JSON line. Seconds are told twice, as they passed and as all
threads' processor time: on a machine that others use, the second over the threads is what an idle one would need.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lilliput.calibration.block_stream import BlockStream
from lilliput.calibration.input_sums import HessianSums
from lilliput.methods import descent, feedback
from lilliput.methods.searched_scales import SearchedScales
from lilliput.methods.torch_format import TorchFormat
from lilliput.pipeline import quantize_tensors
from lilliput.pipeline.quantize_blocks import StreamOptions, quantize_blocks
from lilliput.pipeline.work_folder import WorkFolder
from lilliput.recipes.plan import resolve
from lilliput.workflows import opened

# Who does what: (part, object, attribute). A part inside another counts for itself alone.
PARTS: tuple[tuple[str, object, str], ...] = (
    ("passes", BlockStream, "forward"),
    ("sums", HessianSums, "add"),
    ("factor", feedback, "factor_of"),
    ("feedback", feedback._Feedback, "decide_panel"),
    ("scales", TorchFormat, "fit_block"),
    ("descent", feedback, "descend"),
    ("refit", descent._Descent, "_refit"),
    ("baseline", SearchedScales, "quantize"),
    ("judging", quantize_tensors, "quadratic_loss"),
)
PER_TOKEN = ("passes", "sums")
# What the estimate is for.
LAYERS, TOKENS = 16, 65536


class Meter:
    """Seconds of each part, exclusive of the parts inside it: [as they passed, of all threads]."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._running = ["other"]
        self._since = self._now()

    def watch(self, part: str, owner: object, attribute: str) -> None:
        """Count what `owner.attribute` takes as `part`."""
        function: Callable[..., object] = getattr(owner, attribute)

        def counted(*given: object, **named: object) -> object:
            self._switch()
            self._running.append(part)
            try:
                return function(*given, **named)
            finally:
                self._switch()
                self._running.pop()

        setattr(owner, attribute, counted)

    def taken(self) -> dict[str, list[float]]:
        """Seconds since the last call."""
        self._switch()
        found = dict(self.seconds)
        self.seconds.clear()
        return found

    def _now(self) -> tuple[float, float]:
        return time.perf_counter(), time.process_time()

    def _switch(self) -> None:
        now = self._now()
        for index in (0, 1):
            self.seconds[self._running[-1]][index] += now[index] - self._since[index]
        self._since = now


def estimate(steps: dict[str, dict[str, list[float]]], tokens: int, clock: int) -> float:
    """Seconds for LAYERS blocks, the head and TOKENS tokens, by one of the two clocks."""
    blocks = [parts for name, parts in steps.items() if name.startswith("blk.")]
    heads = [parts for name, parts in steps.items() if not name.startswith("blk.")]
    total = 0.0
    for share, group in ((LAYERS / max(len(blocks), 1), blocks), (1.0, heads)):
        for parts in group:
            for part, seconds in parts.items():
                total += seconds[clock] * share * (TOKENS / tokens if part in PER_TOKEN else 1.0)
    return total


def main() -> None:
    """Run the block loop and note what each step took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--to", default="Q4_K_M")
    parser.add_argument("--tokens", type=int, default=65536)
    parser.add_argument("--chunk-size", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of the passes")
    parser.add_argument("--folder", type=Path, help="where the hidden states go")
    options = parser.parse_args()
    meter = Meter()
    for part, owner, attribute in PARTS:
        meter.watch(part, owner, attribute)
    steps: dict[str, dict[str, list[float]]] = {}
    with opened(options.model) as source, tempfile.TemporaryDirectory(dir=options.folder) as folder:
        plan = resolve(source, options.to, statistics_present=True, method="feedback")
        chunks = np.random.default_rng(0).integers(
            0, source.config.vocab_size, (options.tokens // options.chunk_size, options.chunk_size), dtype=np.int32
        )
        with WorkFolder(Path(folder) / "work", "benchmark") as work:
            finish = work.finish

            def marked(step: str, *given: object) -> None:
                finish(step, *given)  # type: ignore[arg-type]
                steps[step] = meter.taken()

            work.finish = marked  # type: ignore[method-assign, assignment]
            meter.taken()
            stream = StreamOptions(precision=options.precision, threads=options.threads)
            quantize_blocks(source, plan, chunks, work, stream)
    line = {
        "model": options.model.name,
        "to": options.to,
        "tokens": int(chunks.size),
        "threads": options.threads,
        "precision": options.precision,
        "seconds": {
            step: {part: [round(s, 1) for s in seconds] for part, seconds in sorted(parts.items())}
            for step, parts in steps.items()
        },
        "estimate": {
            "layers": LAYERS,
            "tokens": TOKENS,
            "minutes": round(estimate(steps, chunks.size, 0) / 60, 1),
            "minutes_of_processors": round(estimate(steps, chunks.size, 1) / 60 / options.threads, 1),
        },
        "peak_ram_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
