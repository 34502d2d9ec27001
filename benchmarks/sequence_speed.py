# SPDX-License-Identifier: Apache-2.0
"""int8 of T5-small's and BART-base's shapes: our engine beside ONNX Runtime's dynamic int8.

    python benchmarks/sequence_speed.py [--shapes t5-small bart-base] [--threads 1 2] [--rounds 6] [--json FILE]

Random weights (speed does not depend on them), one process an engine, in turn (interleaved.py). Two tasks: `encode`, a
text of 128 tokens with the keys and values that the decoder will read of it, and `answer`, the same and then 48 tokens
greedily, choosing in Python included. ONNX Runtime has a graph for each: the encoder with fixed shapes, and one step of
the decoder with past keys and values that never leave the runtime. Both are taken as quantize_dynamic leaves the
exported model and after the optimizer for transformers; the better one counts. Needs torch, onnx, onnxruntime.
One JSON line per shape and thread count goes to stdout, a table to stderr.
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
    from transformers import BartForConditionalGeneration, T5ForConditionalGeneration

    Model = BartForConditionalGeneration | T5ForConditionalGeneration

ENGINE = "lilliput engine, int8"
ONNX = {"onnxruntime int8": "plain", "onnxruntime int8, optimized": "optimized"}
TASKS = ("encode", "answer")
SHAPES = ("t5-small", "bart-base")
RUNS = 2


def model_of(shape: str) -> Model:
    """The shape with random weights."""
    import torch
    import transformers

    torch.manual_seed(0)
    if shape == "t5-small":
        t5 = transformers.T5Config(decoder_start_token_id=0)
        assert (t5.vocab_size, t5.d_model, t5.d_ff, t5.num_layers, t5.num_heads) == (32128, 512, 2048, 6, 8)
        return transformers.T5ForConditionalGeneration(t5).eval()
    bart = transformers.BartConfig(
        vocab_size=50265, d_model=768, encoder_layers=6, decoder_layers=6, encoder_attention_heads=12,
        decoder_attention_heads=12, encoder_ffn_dim=3072, decoder_ffn_dim=3072, forced_eos_token_id=None,
    )  # fmt: skip
    return transformers.BartForConditionalGeneration(bart).eval()


def text_of(tokens: int) -> np.ndarray:
    return np.random.default_rng(0).integers(5, 30000, (1, tokens))


def write_engine_model(shape: str, folder: Path) -> None:
    """As a file of int8 a channel; inputs become int8 a token when it runs."""
    from lilliput import workflows

    checkpoint = folder / "checkpoint"
    model_of(shape).save_pretrained(checkpoint)
    workflows.quantize(checkpoint, "INT8_CHANNEL", folder / "model.safetensors")


def write_onnx_models(shape: str, folder: Path, tokens: int) -> None:
    """Encoder and decoder with dynamic int8, as exported and after ONNX Runtime's optimizer for transformers."""
    from onnx import TensorProto
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers.optimizer import optimize_model
    from peers.sequence_onnx import export

    model = model_of(shape)
    export(model, folder, tokens)
    heads, hidden = (8, 512) if shape == "t5-small" else (12, 768)
    for part in ("encoder", "decoder"):
        whole = str(folder / f"{part}.onnx")
        quantize_dynamic(whole, str(folder / f"{part}-plain.onnx"), weight_type=QuantType.QInt8)
        fused = optimize_model(whole, model_type=shape.partition("-")[0], num_heads=heads, hidden_size=hidden)
        fused.save_model_to_file(str(folder / "fused.onnx"))
        # Shape inference does not know the fused operators.
        typed = {"DefaultTensorType": TensorProto.FLOAT}
        optimized = str(folder / f"{part}-optimized.onnx")
        quantize_dynamic(str(folder / "fused.onnx"), optimized, weight_type=QuantType.QInt8, extra_options=typed)


def engine_tasks(path: Path, threads: int, text: np.ndarray, length: int) -> dict[str, Callable[[], object]]:
    from lilliput.containers import open_model
    from lilliput.runtime.answers import AnswerOptions, answer
    from lilliput.runtime.encoder_decoder import EncoderDecoderSession
    from lilliput.runtime.session import EngineOptions

    session = EncoderDecoderSession(open_model(path), EngineOptions(threads=threads, context=text.shape[1]))
    ids = text[0].tolist()
    # Random weights may end an answer at any token.
    options = AnswerOptions(max_length=length + 1, min_length=length + 1)

    def run() -> object:
        tokens = answer(session, ids, options).token_ids
        assert len(tokens) == length + 1
        return tokens

    return {"encode": lambda: session.encode(ids), "answer": run}


def onnx_tasks(folder: Path, kind: str, threads: int, text: np.ndarray, length: int) -> dict[str, Callable[[], object]]:
    import onnxruntime

    def session(part: str) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        path = str(folder / f"{part}-{kind}.onnx")
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    encoder, decoder = session("encoder"), session("decoder")
    memory = [found.name for found in encoder.get_outputs()]
    pasts = [found for found in decoder.get_inputs() if found.name.startswith("past")]
    results = ["logits", *(past.name.replace("past", "present") for past in pasts)]
    as_value = onnxruntime.OrtValue.ortvalue_from_numpy
    heads, head_dim = pasts[0].shape[1], pasts[0].shape[3]
    empty = as_value(np.zeros((1, heads, 0, head_dim), np.float32))

    def encode() -> dict[str, object]:
        return dict(zip(memory, encoder.run_with_ort_values(memory, {"ids": as_value(text)}), strict=True))

    def run() -> object:
        feeds = encode() | {past.name: empty for past in pasts}
        token, tokens = 0, []
        for position in range(length):
            feeds["token"] = as_value(np.array([[token]], np.int64))
            feeds["position"] = as_value(np.array([position], np.int64))
            logits, *present = decoder.run_with_ort_values(results, feeds)
            feeds.update(zip((past.name for past in pasts), present, strict=True))
            token = int(np.argmax(logits.numpy()[0, 0]))
            tokens.append(token)
        return tokens

    return {"encode": encode, "answer": run}


def serve(engine: str, folder: Path, threads: int, tokens: int, length: int) -> None:
    """One engine in this process."""
    text = text_of(tokens)
    if engine in ONNX:
        tasks = onnx_tasks(folder, ONNX[engine], threads, text, length)
    else:
        tasks = engine_tasks(folder / "model.safetensors", threads, text, length)
    interleaved.serve(tasks, RUNS, warm=2)


def summary(shape: str, arguments: argparse.Namespace, threads: int, folder: Path) -> dict[str, object]:
    sizes = [str(number) for number in (threads, arguments.tokens, arguments.length)]
    commands = {engine: [__file__, "--serve", engine, str(folder), *sizes] for engine in (ENGINE, *ONNX)}
    times = interleaved.measure(commands, TASKS, threads, arguments.rounds)
    found: dict[str, object] = {}
    for task in TASKS:
        medians = interleaved.medians(times[task])
        best = min(value for engine, value in medians.items() if engine in ONNX)
        found[task] = {**interleaved.spread(times[task]), "over_onnxruntime": round(best / medians[ENGINE], 3)}
        for engine, value in medians.items():
            print(f"{shape} {threads} threads {task:7} {engine:30} {value:8.1f} ms", file=sys.stderr)
        print(f"{shape} {threads} threads {task:7} {best / medians[ENGINE]:.2f}", file=sys.stderr)
    return {
        "shape": shape,
        "tokens": arguments.tokens,
        "answer_tokens": arguments.length,
        "threads": threads,
        "rounds": arguments.rounds,
        **found,
        "machine": platform.processor() or platform.machine(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=128, help="of the text")
    parser.add_argument("--length", type=int, default=48, help="tokens of the answer")
    parser.add_argument("--keep", type=Path, help="make the models in this folder, or take those that lie there")
    parser.add_argument("--json", type=Path, help="append the JSON lines to this file, too")
    arguments = parser.parse_args()

    def write_models(shape: str, folder: Path) -> None:
        write_engine_model(shape, folder)
        write_onnx_models(shape, folder, arguments.tokens)

    for shape, folder in interleaved.model_folders(arguments.shapes, arguments.keep, write_models):
        for threads in arguments.threads:
            interleaved.record(summary(shape, arguments, threads, folder), arguments.json)


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] == "--serve":
        serve(sys.argv[2], Path(sys.argv[3]), *map(int, sys.argv[4:7]))
    else:
        main()
