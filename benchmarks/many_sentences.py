# SPDX-License-Identifier: Apache-2.0
"""Sentence vectors of many short texts: one at a time, several a pass, and ONNX Runtime's int8 with padded batches.

    python benchmarks/many_sentences.py [--shapes minilm bert-base] [--threads 1 2] [--rounds 5] [--json FILE]

Random weights (speed does not depend on them), 64 sentences of 6 to 32 tokens, drawn evenly. Ours has no padding and
takes them in the order given. ONNX Runtime gets them sorted by length, in batches of 1, 8 and 32 that are filled up to
their longest with a mask, from the exported graph and from the one of its optimizer for transformers; the best of all
these counts. One process an engine, in turn (interleaved.py). Needs torch, onnx, onnxruntime. One JSON line per shape
and thread count goes to stdout, a table to stderr.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import interleaved
import numpy as np

if TYPE_CHECKING:
    from transformers import BertModel

ENGINE = "lilliput engine, int8"
ONNX = {"onnxruntime int8": "plain.onnx", "onnxruntime int8, optimized": "optimized.onnx"}
BATCHES = (1, 8, 32)
VOCABULARY = 30522
SENTENCES = 64
SHAPES: dict[str, dict[str, int]] = {
    "minilm": {
        "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536
    },
    "bert-base": {},
}  # fmt: skip


def bert(shape: str) -> BertModel:
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    return BertModel(BertConfig(**SHAPES[shape]), add_pooling_layer=False).eval()


def sentences() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(5, VOCABULARY, length) for length in rng.integers(6, 33, SENTENCES)]


def write_engine_model(shape: str, folder: Path) -> None:
    from lilliput import workflows

    checkpoint = folder / "checkpoint"
    bert(shape).save_pretrained(checkpoint)
    workflows.quantize(checkpoint, "INT8_CHANNEL", folder / "model.safetensors")


def write_onnx_models(shape: str, folder: Path) -> None:
    """The exported model with dynamic int8, as it is and after ONNX Runtime's optimizer for transformers."""
    import torch
    from onnx import TensorProto
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers.optimizer import optimize_model

    class Plain(torch.nn.Module):
        # Tensors in and out: all that the exporter should see.

        def __init__(self) -> None:
            super().__init__()
            self.model = bert(shape)
            self.model.set_attn_implementation("eager")

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return self.model(ids, mask).last_hidden_state

    model = Plain()
    ids = torch.ones((2, 16), dtype=torch.int64)
    whole = str(folder / "float.onnx")
    axes = {name: {0: "batch", 1: "tokens"} for name in ("ids", "mask", "hidden")}
    torch.onnx.export(
        model, (ids, ids), whole, input_names=["ids", "mask"], output_names=["hidden"], dynamic_axes=axes,
        dynamo=False, opset_version=17,
    )  # fmt: skip
    quantize_dynamic(whole, str(folder / "plain.onnx"), weight_type=QuantType.QInt8)
    config = model.model.config
    fused = optimize_model(
        whole, model_type="bert", num_heads=config.num_attention_heads, hidden_size=config.hidden_size
    )
    fused_path = str(folder / "fused.onnx")
    fused.save_model_to_file(fused_path)
    # Shape inference does not know the fused operators.
    typed = {"DefaultTensorType": TensorProto.FLOAT}
    optimized = str(folder / "optimized.onnx")
    quantize_dynamic(fused_path, optimized, weight_type=QuantType.QInt8, extra_options=typed)


def engine_tasks(path: Path, threads: int) -> dict[str, Callable[[], object]]:
    from lilliput.containers import open_model
    from lilliput.runtime.encoder_session import EncoderSession
    from lilliput.runtime.session import EngineOptions

    session = EncoderSession(open_model(path), EngineOptions(threads=threads))
    texts = [text.astype(np.int32) for text in sentences()]
    assert np.array_equal(session.embed_each(texts), np.stack([session.embed(text) for text in texts]))
    return {"together": lambda: session.embed_each(texts), "alone": lambda: [session.embed(text) for text in texts]}


def onnx_tasks(path: Path, threads: int) -> dict[str, Callable[[], object]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    texts = sorted(sentences(), key=len)

    def run(batch: int) -> object:
        vectors = []
        for first in range(0, len(texts), batch):
            part = texts[first : first + batch]
            ids = np.zeros((len(part), len(part[-1])), np.int64)
            for row, text in zip(ids, part, strict=True):
                row[: len(text)] = text
            mask = (np.arange(ids.shape[1]) < np.array([len(text) for text in part])[:, None]).astype(np.int64)
            (hidden,) = session.run(None, {"ids": ids, "mask": mask})
            vectors.append((hidden * mask[:, :, None]).sum(1) / mask.sum(1)[:, None])
        return np.concatenate(vectors)

    return {f"batches of {batch}": lambda batch=batch: run(batch) for batch in BATCHES}


def serve(engine: str, folder: Path, threads: int) -> None:
    """One engine in this process."""
    if engine in ONNX:
        tasks = onnx_tasks(folder / ONNX[engine], threads)
    else:
        tasks = engine_tasks(folder / "model.safetensors", threads)
    interleaved.serve(tasks, 1, warm=1)


def summary(shape: str, arguments: argparse.Namespace, threads: int, folder: Path) -> dict[str, object]:
    ours = {ENGINE: ["together", "alone"]}
    peers = {engine: [f"batches of {batch}" for batch in BATCHES] for engine in ONNX}
    workers = {
        engine: interleaved.Worker([__file__, "--serve", engine, str(folder), str(threads)], threads)
        for engine in ours | peers
    }
    times: dict[str, interleaved.Times] = {}
    for _ in range(arguments.rounds):
        for engine, tasks in (ours | peers).items():
            for task in tasks:
                interleaved.rest()
                times.setdefault(f"{engine}, {task}", []).extend(workers[engine].times(task))
    for worker in workers.values():
        worker.close()
    rates = {name: SENTENCES / value * 1e3 for name, value in interleaved.medians(times).items()}
    for name, rate in rates.items():
        print(f"{shape} {threads} threads  {name:45} {rate:8.1f} sentences a second", file=sys.stderr)
    best = max((rate, name) for name, rate in rates.items() if not name.startswith(ENGINE))
    together = rates[f"{ENGINE}, together"]
    return {
        "shape": shape,
        "sentences": SENTENCES,
        "tokens": int(sum(map(len, sentences()))),
        "threads": threads,
        "rounds": arguments.rounds,
        "sentences_per_second": {name: round(rate, 1) for name, rate in rates.items()},
        **interleaved.spread(times),
        "best_peer": best[1],
        "over_best_peer": round(together / best[0], 3),
        "over_one_at_a_time": round(together / rates[f"{ENGINE}, alone"], 3),
        "machine": platform.processor() or platform.machine(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="make the models in this folder, or take those that lie there")
    parser.add_argument("--json", type=Path, help="append the JSON lines to this file, too")
    arguments = parser.parse_args()

    def write_models(shape: str, folder: Path) -> None:
        write_engine_model(shape, folder)
        write_onnx_models(shape, folder)

    for shape, folder in interleaved.model_folders(arguments.shapes, arguments.keep, write_models):
        for threads in arguments.threads:
            interleaved.record(summary(shape, arguments, threads, folder), arguments.json)


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] == "--serve":
        serve(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
