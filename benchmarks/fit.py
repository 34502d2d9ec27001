# SPDX-License-Identifier: Apache-2.0
"""`lilliput fit` beside the presets: KL at the preset's own size, by the same rounding method.

    python benchmarks/fit.py --text CALIBRATION --test TEXT --work DIR [--model gulliver] [--presets Q4_K_M,Q3_K_M,Q2_K]
                             [--method feedback] [--searches none,evolution,agent] [--evaluations 60] [--tokens 30000]
                             [--share 1.0] [--llama-cpp DIR]

Each preset is quantized with the tokens that `fit` calibrates on; each search gets the preset's bytes as --size, or
with --share 0.85 that part of them. KL is measured on the test text, which neither saw, with the paired interval of the
ratio. One JSON line a preset and search, appended to benchmarks/results/fit.jsonl; the searches share one work folder,
so that candidates are made once.
With llama.cpp's programs in DIR the same preset is also made by llama-quantize, with the imatrix of the same text.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import cast

from peers.llama_cpp import LlamaCpp

import lilliput
from lilliput import workflows
from lilliput.evaluation.compare import EvaluationResult, FileResult
from lilliput.evaluation.model_logits import EvaluationOptions, compare_models
from lilliput.evaluation.paired import PairedRatio, paired_ratio
from lilliput.fitting import FitOptions, Goal, SearchKind, fit
from lilliput.fitting.texts import cut_texts
from lilliput.text.documents import read_text

RESULTS = Path(__file__).parent / "results" / "fit.jsonl"


def main() -> None:
    """Measure and append."""
    arguments = parsed()
    for preset in arguments.presets.split(","):
        for line in measured(arguments, preset):
            print(json.dumps(line))
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gulliver")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--presets", default="Q4_K_M,Q3_K_M,Q2_K")
    parser.add_argument("--method", default="feedback")
    parser.add_argument("--searches", default="none,evolution,agent")
    parser.add_argument("--formats", default="")
    parser.add_argument("--evaluations", type=int, default=60)
    parser.add_argument("--tokens", type=int, default=30_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--llama-cpp", type=Path)
    return parser.parse_args()


def measured(arguments: argparse.Namespace, preset: str) -> list[dict[str, object]]:
    """The preset and the fits of its size, on the test text."""
    folder = arguments.work / f"{preset}-{arguments.method}"
    formats = tuple(name.lower() for name in arguments.formats.split(",") if name)
    options = FitOptions(
        method=arguments.method, formats=formats, evaluations=arguments.evaluations, threads=arguments.threads,
        work=arguments.work / f"search-{arguments.method}",
    )  # fmt: skip
    baseline = folder / "preset.gguf"
    with workflows.opened(arguments.model) as source:
        calibration = cut_texts(source, (arguments.text,), options).calibration
    chosen = workflows.QuantizeOptions(
        method=arguments.method, tokens=int(calibration.size), threads=arguments.threads, force=True
    )
    if not baseline.exists():
        workflows.quantize(
            arguments.model, preset, baseline, guidance=workflows.Guidance(text=(arguments.text,)), options=chosen
        )
    size = baseline.stat().st_size
    fits, seconds = {}, {}
    for search in arguments.searches.split(","):
        start = time.perf_counter()
        own = FitOptions(**{**{name: getattr(options, name) for name in options.__slots__}, "search": search})
        goal, share = Goal(size=int(arguments.share * size)), f"-{arguments.share:g}" if arguments.share != 1 else ""
        fits[search] = fit(arguments.model, goal, folder / f"{search}{share}.gguf", text=[arguments.text], options=own)
        seconds[search] = time.perf_counter() - start
    peers = [peer(arguments, preset, folder)] if arguments.llama_cpp else []
    found = compared(arguments, [baseline, *(result.output for result in fits.values()), *peers])
    base = found.files[0]
    lines = []
    for (search, result), file in zip(fits.items(), found.files[1 : 1 + len(fits)], strict=True):
        pair = ratio(found, file, base)
        lines.append(
            {
                "model": Path(arguments.model).name, "preset": preset, "method": arguments.method,
                "search": cast("SearchKind", search), "evaluations": arguments.evaluations,
                "bytes": file.bytes, "preset_bytes": base.bytes,
                "kld": file.divergence.mean_kld.value, "preset_kld": base.divergence.mean_kld.value,
                "ratio": pair.kld_ratio, "low": pair.low, "high": pair.high,
                "ppl": file.divergence.ppl.value, "preset_ppl": base.divergence.ppl.value,
                "base_ppl": found.base_ppl.value, "tokens": file.divergence.tokens, "text": arguments.test.name,
                "selection_kld": result.selection.value, "predicted_kld": result.predicted,
                "agreement": asdict(result.agreement), "history": result.history,
                "seconds": round(seconds[search], 1), "version": lilliput.__version__, "commit": commit(),
            }
        )  # fmt: skip
        if peers:
            lines[-1] |= beside_peer(found, file)
    return lines


def peer(arguments: argparse.Namespace, preset: str, folder: Path) -> Path:
    """The preset by llama-quantize, with an imatrix of the whole calibration text."""
    base, imatrix, output = folder / "float.gguf", folder / "imatrix.gguf", folder / "peer.gguf"
    if not output.exists():
        workflows.quantize(arguments.model, "F32", base, options=workflows.QuantizeOptions(force=True))
        chosen = workflows.CalibrateOptions(threads=arguments.threads, force=True)
        workflows.calibrate(arguments.model, [arguments.text], imatrix, options=chosen)
        tools = LlamaCpp(arguments.llama_cpp, arguments.threads)
        tools.quantize(base, output, preset, imatrix=imatrix, is_pure=False)
    return output


def beside_peer(found: EvaluationResult, file: FileResult) -> dict[str, object]:
    """What a line says about the peer, which is the last file."""
    other = found.files[-1]
    pair = ratio(found, file, other)
    return {
        "peer": "llama-quantize --imatrix", "peer_bytes": other.bytes, "peer_kld": other.divergence.mean_kld.value,
        "peer_ratio": pair.kld_ratio, "peer_low": pair.low, "peer_high": pair.high,
    }  # fmt: skip


def ratio(found: EvaluationResult, file: FileResult, other: FileResult) -> PairedRatio:
    """KL of one file over another's, drawn window by window."""
    one, two = (result.scores.kld.reshape(found.chunks, -1) for result in (file, other))
    return paired_ratio(Path(file.name).stem, Path(other.name).stem, one, two)


def compared(arguments: argparse.Namespace, files: list[Path]) -> EvaluationResult:
    with ExitStack() as stack:
        named = [(str(name), stack.enter_context(workflows.opened(name))) for name in (arguments.model, *files)]
        options = EvaluationOptions(tokens=arguments.tokens, threads=arguments.threads, measure_floor=False)
        return compare_models(named[0], named[1:], read_text(arguments.test), options)


def commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    main()
