# SPDX-License-Identifier: Apache-2.0
"""`make demo`: plan, quantize, run and measure the built-in model, exactly as a user would type it."""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from lilliput.models import gulliver

ROOT = Path(__file__).resolve().parent.parent
LILLIPUT = Path(sys.executable).parent / "lilliput"
PRESET = "Q4_K_M"
PROMPT = "# Summary\n\nThis document describes"
# Preset and effort of each file; where both efforts are shown, only the codes differ.
COMPARED = (
    ("Q8_0", "fast"),
    ("Q6_K", "fast"),
    (PRESET, "fast"),
    (PRESET, "balanced"),
    ("Q2_K", "fast"),
    ("Q2_K", "balanced"),
)
HELD_OUT = ROOT / "benchmarks" / "data" / "documentation.txt"


def lilliput(folder: Path, *words: str | Path, quiet: bool = False) -> str:
    """Run one command in `folder`, showing it first; stop the demo if it fails. Returns its stdout."""
    shown = " ".join(str(word) if " " not in str(word) and "\n" not in str(word) else repr(str(word)) for word in words)
    print(f"\n$ lilliput {shown}", flush=True)
    done = subprocess.run([LILLIPUT, *map(str, words)], cwd=folder, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit(f"demo: `lilliput {words[0]}` failed with exit code {done.returncode}")
    if not quiet:
        print(done.stdout.rstrip(), flush=True)
    return done.stdout


def main() -> None:
    """Walk the whole road and say where the files are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "demo", help="folder for the files")
    parser.add_argument("--record", action="store_true", help="append the table to benchmarks/results/demo.jsonl")
    options = parser.parse_args()
    folder: Path = options.output
    folder.mkdir(parents=True, exist_ok=True)
    model = gulliver()
    shutil.copyfile(model / "sample.txt", folder / "sample.txt")
    shutil.copyfile(HELD_OUT, folder / HELD_OUT.name)

    lilliput(folder, "plan", "gulliver", "--to", PRESET, "--text", "sample.txt")
    files = [f"gulliver-{preset}-{effort}.gguf" for preset, effort in COMPARED]
    for (preset, effort), file in zip(COMPARED, files, strict=True):
        lilliput(
            folder,
            "quantize",
            "gulliver",
            "--to",
            preset,
            "--effort",
            effort,
            "--text",
            "sample.txt",
            "-o",
            file,
            "--force",
        )
    words = ("run", f"gulliver-{PRESET}-balanced.gguf", "--prompt", PROMPT, "--max-tokens", "64", "--temperature", "0")
    lilliput(folder, *words)
    report = json.loads(lilliput(folder, "eval", "gulliver", *files, "--text", HELD_OUT.name, "--json", quiet=True))
    print_report(model, report)
    if options.record:
        record(model, report)
    print(f"\nFiles are in {folder}:")
    for path in sorted(folder.iterdir()):
        print(f"  {path.name:42} {path.stat().st_size / 1e6:9.3f} MB")


def print_report(model: Path, report: dict) -> None:
    """The demo's table: every file against the original."""
    weights = (model / "model.safetensors").stat().st_size
    print(f"\n{'file':24} {'MB':>8} {'bits/weight':>12} {'mean KL, nats':>20} {'same top':>9} {'ppl':>9}")
    print(
        f"{'original (BF16)':24} {weights / 1e6:8.2f} {16:12.3f} {0:20.5f} {'100.00 %':>9} {report['base']['ppl']:9.3f}"
    )
    for item in report["files"]:
        kl = f"{item['mean_kld']:.5f} ± {item['mean_kld_stderr']:.5f}"
        print(
            f"{Path(item['path']).stem:24} {item['bytes'] / 1e6:8.2f} {item['bits_per_weight']:12.3f} {kl:>20} "
            f"{item['same_top'] * 100:7.2f} % {item['ppl']:9.3f}"
        )


def record(model: Path, report: dict) -> None:
    """Append the measurement as one JSON line, for the table in README."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    line = {
        "base": {"ppl": report["base"]["ppl"], "bytes": (model / "model.safetensors").stat().st_size},
        "files": [
            {**item, "path": Path(item["path"]).name, "name": Path(item["path"]).stem} for item in report["files"]
        ],
        "paired": [{**pair, "a": Path(pair["a"]).name, "b": Path(pair["b"]).name} for pair in report["paired"]],
        "caption": f"`make demo`: Gulliver, calibrated on text sampled from itself, measured on {HELD_OUT.name} "
        f"({report['files'][0]['tokens']} scored tokens, context 512, float32 activations); ± one standard error.",
        "machine": platform.machine(),
        "commit": commit.stdout.strip(),
    }
    path = ROOT / "benchmarks" / "results" / "demo.jsonl"
    with path.open("a", encoding="utf-8") as out:
        out.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
