# SPDX-License-Identifier: Apache-2.0
"""int8 of BERT's shape: our engine and lilliput.torch beside quantize_dynamic, ONNX Runtime's int8 and float32.

    python benchmarks/torch_int8.py [--threads 1 2] [--rounds 10] [--tokens 128] [--layers 12] [--compile] [--json FILE]

A BERT of random weights (speed does not depend on them). Every engine has a process of its own, so that no thread pool
disturbs another; in each round each runs a few forward passes in turn. ONNX Runtime takes part where `onnx` and
`onnxruntime` can be imported: as quantize_dynamic leaves the exported model, and after its optimizer for transformers.
One JSON line per thread count goes to stdout (medians, spread from quartile to quartile, ratios), a table to stderr.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import interleaved
from interleaved import Times

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from transformers import BertModel

OURS, FLOAT, DYNAMIC = "lilliput", "torch float32", "torch quantize_dynamic"
COMPILED = "lilliput, torch.compile"
ENGINE = "lilliput engine, int8"
ENGINES = {ENGINE: ("INT8_CHANNEL", "bert.safetensors"), "lilliput engine, Q8_0": ("Q8_0", "bert.gguf")}
ONNX = {"onnxruntime int8": "plain.onnx", "onnxruntime int8, optimized": "optimized.onnx"}
INT8_PEERS = (DYNAMIC, *ONNX)
VOCABULARY = 30522
PASSES = 3


def bert(layers: int) -> BertModel:
    """BERT-base's shape."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    return BertModel(BertConfig(num_hidden_layers=layers)).eval()


def token_ids(tokens: int) -> np.ndarray:
    import numpy as np

    return np.random.default_rng(0).integers(0, VOCABULARY, (1, tokens))


def write_onnx_models(folder: Path, layers: int, tokens: int) -> None:
    """The exported model with dynamic int8, as it is and after ONNX Runtime's optimizer for transformers."""
    import torch
    from onnx import TensorProto
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers.optimizer import optimize_model

    class Plain(torch.nn.Module):
        # One tensor in, one out: all that the exporter should see.

        def __init__(self) -> None:
            super().__init__()
            self.model = bert(layers)
            self.model.set_attn_implementation("eager")

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.model(ids).last_hidden_state

    model = Plain()
    ids = torch.from_numpy(token_ids(tokens))
    whole = folder / "float.onnx"
    torch.onnx.export(model, (ids,), str(whole), input_names=["ids"], dynamo=False, opset_version=17)
    quantize_dynamic(str(whole), str(folder / "plain.onnx"), weight_type=QuantType.QInt8)
    fused = optimize_model(str(whole), model_type="bert", num_heads=12, hidden_size=768)
    fused.save_model_to_file(str(folder / "fused.onnx"))
    # Shape inference does not know the fused operators.
    typed = {"DefaultTensorType": TensorProto.FLOAT}
    fused_path, optimized = str(folder / "fused.onnx"), str(folder / "optimized.onnx")
    quantize_dynamic(fused_path, optimized, weight_type=QuantType.QInt8, extra_options=typed)


def write_engine_model(folder: Path, layers: int) -> None:
    """The same model as files: int8 a channel with inputs int8 a token, and Q8_0."""
    from lilliput import workflows

    checkpoint = folder / "checkpoint"
    bert(layers).save_pretrained(checkpoint)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*special, *(f"word{number}" for number in range(VOCABULARY - len(special)))]
    (checkpoint / "vocab.txt").write_text("\n".join(words) + "\n")
    (checkpoint / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    for preset, file_name in ENGINES.values():
        workflows.quantize(checkpoint, preset, folder / file_name)


def engine_pass(path: Path, threads: int, ids: np.ndarray) -> Callable[[], object]:
    from lilliput.containers import open_model
    from lilliput.runtime.encoder_session import EncoderSession
    from lilliput.runtime.session import EngineOptions

    session = EncoderSession(open_model(path), EngineOptions(threads=threads, context=ids.shape[1]))
    tokens = ids[0].astype("int32")
    return lambda: session.run(tokens)


def onnx_pass(path: Path, threads: int, ids: np.ndarray) -> Callable[[], object]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"ids": ids})


def torch_pass(engine: str, layers: int, threads: int, ids: np.ndarray) -> Callable[[], object]:
    import torch

    torch.set_num_threads(threads)
    model = bert(layers)
    if engine == DYNAMIC:
        warnings.simplefilter("ignore")
        model = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    elif engine in (OURS, COMPILED):
        import lilliput.torch

        lilliput.torch.quantize_(model, "W8A8-dynamic")
        if engine == COMPILED:
            model = torch.compile(model, dynamic=False)
    tokens = torch.from_numpy(ids)

    def run() -> object:
        with torch.inference_mode():
            return model(tokens)

    return run


def serve(engine: str, folder: Path, layers: int, threads: int, tokens: int) -> None:
    """One engine in this process."""
    ids = token_ids(tokens)
    if engine in ONNX:
        run = onnx_pass(folder / ONNX[engine], threads, ids)
    elif engine in ENGINES:
        run = engine_pass(folder / ENGINES[engine][1], threads, ids)
    else:
        run = torch_pass(engine, layers, threads, ids)
    interleaved.serve({"pass": run}, PASSES)


def measure(engines: list[str], folder: Path, arguments: argparse.Namespace, threads: int) -> dict[str, Times]:
    """Times of every pass."""
    sizes = [str(number) for number in (arguments.layers, threads, arguments.tokens)]
    commands = {engine: [__file__, "--serve", engine, str(folder), *sizes] for engine in engines}
    return interleaved.measure(commands, ["pass"], threads, arguments.rounds)["pass"]


def summary(times: dict[str, Times], arguments: argparse.Namespace, threads: int) -> dict[str, object]:
    medians = interleaved.medians(times)
    best_peer = min((medians[engine], engine) for engine in INT8_PEERS if engine in medians)
    return {
        "shape": f"bert-base, {arguments.layers} layers",
        "tokens": arguments.tokens,
        "threads": threads,
        "rounds": arguments.rounds,
        **interleaved.spread(times),
        "best_int8_peer": best_peer[1],
        "speedup_over_best_int8_peer": round(best_peer[0] / medians[OURS], 3),
        "engine_over_best_int8_peer": round(best_peer[0] / medians[ENGINE], 3),
        "speedup_over_float32": round(medians[FLOAT] / medians[OURS], 3),
        "engine_over_float32": round(medians[FLOAT] / medians[ENGINE], 3),
        "compiled_over_best_int8_peer": round(best_peer[0] / medians[COMPILED], 3) if COMPILED in medians else None,
        "machine": platform.processor() or platform.machine(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--compile", action="store_true", help="measure our model under torch.compile, too")
    parser.add_argument("--keep", type=Path, help="make the models in this folder, or take those that lie there")
    parser.add_argument("--json", type=Path, help="append the JSON lines to this file, too")
    arguments = parser.parse_args()
    engines = [FLOAT, DYNAMIC, OURS, *ENGINES, *([COMPILED] if arguments.compile else [])]
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.keep or Path(name)
        is_made = arguments.keep is not None and folder.is_dir()
        folder.mkdir(parents=True, exist_ok=True)
        if not is_made:
            write_engine_model(folder, arguments.layers)
        if find_spec("onnx") and find_spec("onnxruntime"):
            if not is_made:
                write_onnx_models(folder, arguments.layers, arguments.tokens)
            engines += ONNX
        else:
            print("onnx and onnxruntime are not installed: measured without them", file=sys.stderr)
        for threads in arguments.threads:
            result = summary(measure(engines, folder, arguments, threads), arguments, threads)
            interleaved.record(result, arguments.json)
            medians = result["median_ms"]
            assert isinstance(medians, dict)
            for engine, value in medians.items():
                print(f"{threads} threads  {engine:30} {value:8.1f} ms", file=sys.stderr)


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] == "--serve":
        serve(sys.argv[2], Path(sys.argv[3]), *map(int, sys.argv[4:7]))
    else:
        main()
