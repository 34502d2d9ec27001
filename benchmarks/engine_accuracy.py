# SPDX-License-Identifier: Apache-2.0
"""What the engine's own rounding costs, beside llama.cpp's: KL of running a file from its exact float32 forward.

    python benchmarks/engine_accuracy.py ORIGINAL FILE.gguf [FILE.gguf …] --text TEXT --llama-cpp FOLDER

The weights of FILE, decoded to float32, are run in float32 by each engine itself; then FILE as it is, each engine with
its usual rounding of inputs and an F16 cache. `file_kld` is what the file costs against ORIGINAL, in exact arithmetic:
an engine should stay far below it. One JSON line per file on stdout.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from lilliput.containers import open_model
from lilliput.converting import ConvertOptions, convert
from lilliput.evaluation.compare import FileResult, evaluate
from lilliput.evaluation.model_logits import EvaluationOptions, ModelLogits, tokenize
from lilliput.text.documents import read_text

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
from peers.llama_cpp import LlamaCpp

CONTEXT = 512


def divergence(base: str, file: str, text: Path, exact: EvaluationOptions, usual: EvaluationOptions) -> FileResult:
    """KL of `file`, run as `usual` says, from `base`, run as `exact` says."""
    opened = open_model(base)
    chunks = tokenize(opened, read_text(text), exact)
    return evaluate(ModelLogits(opened, base, exact), [ModelLogits(open_model(file), file, usual)], chunks).files[0]


def measure(arguments: argparse.Namespace, file: Path, folder: Path) -> dict[str, object]:
    """One record. folder: for the float32 file and llama.cpp's logits."""
    exact_file, logits = folder / "exact.gguf", folder / "logits.bin"
    convert(file, exact_file, ConvertOptions(format="F32", force=True))
    exact = EvaluationOptions(CONTEXT, arguments.tokens, "f32", measure_floor=False, threads=arguments.threads)
    usual = EvaluationOptions(CONTEXT, arguments.tokens, "engine", measure_floor=False, threads=arguments.threads)
    ours = divergence(str(exact_file), str(file), arguments.text, exact, usual)
    itself = divergence(arguments.original, str(file), arguments.text, exact, exact)
    rival = LlamaCpp(arguments.llama_cpp, arguments.threads)
    size = {"context": CONTEXT, "chunks": arguments.tokens // CONTEXT}
    rival.keep_logits(exact_file, arguments.text, logits, **size)
    theirs = rival.divergence(file, arguments.text, logits, **size)
    return {
        "measured": time.strftime("%Y-%m-%d"),
        "file": file.name,
        "tokens": int(ours.scores.kld.size),
        "lilliput_kld": float(f"{ours.divergence.mean_kld.value:.4g}"),
        "lilliput_kld_stderr": float(f"{ours.divergence.mean_kld.stderr:.2g}"),
        "llama_cpp_kld": theirs,
        "file_kld": float(f"{itself.divergence.mean_kld.value:.4g}"),
        "share_of_file": round(ours.divergence.mean_kld.value / itself.divergence.mean_kld.value, 4),
    }


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("original")
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--llama-cpp", type=Path, required=True, help="folder with llama.cpp's programs")
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    for file in arguments.files:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(arguments, file, Path(folder))), flush=True)


if __name__ == "__main__":
    main()
