# SPDX-License-Identifier: Apache-2.0
"""What `--effort balanced` costs: seconds of each block and peak memory, on a random model of Llama-3.2-1B's shape.

    python benchmarks/random_model.py random-1b-2-F16.gguf --layers 2
    python benchmarks/quantize_cost.py random-1b-2-F16.gguf --tokens 65536

Time does not depend on the values. Text is random tokens, because the model has no tokenizer. Blocks cost alike, so a
model of 16 takes 16 times the mean block. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from lilliput.pipeline.quantize_blocks import StreamOptions, quantize_blocks
from lilliput.pipeline.work_folder import WorkFolder
from lilliput.recipes.plan import resolve
from lilliput.workflows import opened


def main() -> None:
    """Run the block loop and note when each block was done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--to", default="Q4_K_M")
    parser.add_argument("--tokens", type=int, default=65536)
    parser.add_argument("--chunk-size", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where the hidden states go")
    options = parser.parse_args()
    with opened(options.model) as source, tempfile.TemporaryDirectory(dir=options.folder) as folder:
        plan = resolve(source, options.to, statistics_present=True, method="feedback")
        # The head is done like any other matrix; without it, what is left is blocks.
        names = [row.name for row in plan.rows if row.name.startswith("blk.")]
        chunks = np.random.default_rng(0).integers(
            0, source.config.vocab_size, (options.tokens // options.chunk_size, options.chunk_size), dtype=np.int32
        )
        marks = [time.perf_counter()]
        with WorkFolder(Path(folder) / "work", "benchmark") as work:
            finish = work.finish

            def marked(*given: object) -> None:
                finish(*given)  # type: ignore[arg-type]
                marks.append(time.perf_counter())

            work.finish = marked  # type: ignore[method-assign, assignment]
            quantize_blocks(source, plan, chunks, work, StreamOptions(threads=options.threads))
    line = {
        "model": options.model.name,
        "to": options.to,
        "tokens": int(chunks.size),
        "threads": options.threads,
        "tensors": len(names),
        "seconds": [round(after - before, 1) for before, after in itertools.pairwise(marks)],
        "peak_ram_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
