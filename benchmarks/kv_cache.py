# SPDX-License-Identifier: Apache-2.0
"""What smaller caches of keys and values cost: KL from the F16 cache, the same file and tokens, at full context.

    python benchmarks/kv_cache.py MODEL TEXT [--tokens 60000] [--threads 1] >> benchmarks/results/kv_cache.jsonl

The weights are as the file has them and inputs stay float32, so that nothing but the cache differs. The second half of
each window is scored: tokens with at least half a context behind them. The interval is that of 95 % over windows. One
JSON line per cache on stdout; F32 says what F16 itself rounds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

from lilliput.containers import open_model
from lilliput.evaluation.compare import evaluate
from lilliput.evaluation.model_logits import EvaluationOptions, ModelLogits, tokenize
from lilliput.models import BUILT_IN, gulliver
from lilliput.runtime.session import KV_FORMATS, KvFormat
from lilliput.search.problem import cache_bytes
from lilliput.text.documents import read_text

REFERENCE: KvFormat = "f16"


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("text", type=Path)
    parser.add_argument("--tokens", type=int, default=60_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--activations", choices=("f32", "engine"), default="f32")
    arguments = parser.parse_args()
    source = open_model(str(gulliver()) if arguments.model == BUILT_IN else arguments.model)
    config = source.config
    options = EvaluationOptions(
        config.context_length, arguments.tokens, arguments.activations, measure_floor=False, threads=arguments.threads
    )

    def model(kv_format: KvFormat) -> ModelLogits:
        chosen = EvaluationOptions(
            options.context, options.tokens, options.activations, threads=options.threads, kv_format=kv_format
        )
        return ModelLogits(source, kv_format, chosen)

    names = [name for name in KV_FORMATS if name != REFERENCE]
    chunks = tokenize(source, read_text(arguments.text), options)
    show = lambda done, windows: print(f"window {done} of {windows}", file=sys.stderr)  # noqa: E731
    result = evaluate(model(REFERENCE), [model(name) for name in names], chunks, progress=show)
    for name, file in zip(names, result.files, strict=True):
        by_window = file.scores.kld.reshape(len(chunks), -1)
        means = by_window.mean(axis=1)
        # Tokens of a window belong together: windows are the sample.
        margin = 1.96 * float(means.std(ddof=1)) / len(means) ** 0.5
        mean = float(means.mean())
        record = {
            "model": arguments.model,
            "text": arguments.text.name,
            "context": config.context_length,
            "head_dim": config.head_dim,
            "scored_tokens": int(by_window.size),
            "kv_format": name,
            "bytes_per_token": cache_bytes(config, 16, name) // 16,
            "kl_to_f16": mean,
            "kl_95": [mean - margin, mean + margin],
            "kl_last_quarter": float(by_window[:, by_window.shape[1] // 2 :].mean()),
            "kl_99_percentile": float(np.quantile(by_window, 0.99)),
            "date": time.strftime("%Y-%m-%d"),
        }
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
