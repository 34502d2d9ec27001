# SPDX-License-Identifier: Apache-2.0
"""Quality at equal bytes: our files against llama-quantize's, same text, same type map, paired on the same tokens.

    python benchmarks/against_llama_quantize.py MODEL --llama-cpp DIR --calibrate TEXT --measure TEXT --types Q4_K_M

Each side calibrates with its own tool. Prints one JSON line a type: bytes, mean KL of both, and the ratio ours/theirs
with its paired 95 % interval. Fails when the two files' tensor types differ.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

LILLIPUT = Path(sys.executable).parent / "lilliput"


def run(*words: str | Path) -> str:
    """Run one command; raise with its error output if it fails."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, words[:2]))} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def tensor_types(file: Path) -> dict[str, str]:
    """Format of each tensor."""
    found = json.loads(run(LILLIPUT, "inspect", file, "--json"))
    return {tensor["name"]: tensor["format"] for tensor in found["tensors"]}


def main() -> None:
    """Make both files of each type, measure them in one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=str)
    parser.add_argument("--llama-cpp", type=Path, required=True, help="folder of llama-quantize and llama-imatrix")
    parser.add_argument("--calibrate", type=Path, required=True, help="plain text")
    parser.add_argument("--measure", type=Path, required=True)
    parser.add_argument("--types", default="Q4_K_M")
    parser.add_argument("--tokens", default="100000", help="tokens of the measured text")
    parser.add_argument("--out", type=Path, help="append the JSON lines here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = folder / "base-BF16.gguf"
        imatrix = folder / "theirs.imatrix.gguf"
        statistics = folder / "ours.safetensors"
        run(LILLIPUT, "quantize", options.model, "--to", "BF16", "-o", base)
        run(options.llama_cpp / "llama-imatrix", "-m", base, "-f", options.calibrate, "-o", imatrix, "-c", "512")
        run(LILLIPUT, "calibrate", options.model, "--text", options.calibrate, "-o", statistics)
        for preset in options.types.split(","):
            ours, theirs = folder / f"ours-{preset}.gguf", folder / f"theirs-{preset}.gguf"
            run(LILLIPUT, "quantize", options.model, "--to", preset, "--statistics", statistics, "-o", ours)
            run(options.llama_cpp / "llama-quantize", "--imatrix", imatrix, base, theirs, preset)
            if tensor_types(ours) != tensor_types(theirs):
                raise SystemExit(f"{preset}: the type maps differ; the comparison would not be at equal bytes")
            command = (
                "eval",
                options.model,
                ours,
                theirs,
                "--text",
                options.measure,
                "--tokens",
                options.tokens,
                "--json",
            )
            report = json.loads(run(LILLIPUT, *command))
            line = {
                "type": preset, "model": Path(options.model).name, "text": options.measure.name,
                "calibration": options.calibrate.name, "peer": "llama-quantize --imatrix",
                "files": [{**item, "path": Path(item["path"]).name} for item in report["files"]],
                "ratio": {key: report["paired"][0][key] for key in ("kld_ratio", "low", "high")},
            }  # fmt: skip
            print(json.dumps(line))
            if options.out:
                with options.out.open("a", encoding="utf-8") as out:
                    out.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
