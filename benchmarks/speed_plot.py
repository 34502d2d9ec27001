# SPDX-License-Identifier: Apache-2.0
"""Draw what `benchmarks/speed.py` stored: our tokens a second over the best peer's, by file, test and threads.

    python benchmarks/speed_plot.py [benchmarks/results/speed.jsonl] [--output benchmarks/results/speed.png]

Of every file, thread count, test, depth and cache the last measurement counts that had both llama.cpp and ik_llama.cpp.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent / "results"
Key = tuple[str, int, str, int, str]


def ratios(lines: list[str]) -> dict[Key, tuple[float, str]]:
    """(file, threads, test, depth, cache) -> ours over the best peer's, and which that is."""
    found: dict[Key, dict[str, float]] = {}
    for line in lines:
        record = json.loads(line)
        key = (record["file"], record["threads"], record["test"], record["depth"], record.get("kv_format", "f16"))
        rates = found.setdefault(key, {})
        if record["engine"] == "read GB/s":
            rates.clear()  # a new measurement begins with the probe
        elif "ratio" in record:
            rates[record["engine"]] = record["ratio"]
    both = ("llama.cpp", "ik_llama.cpp")
    return {
        key: min((ratio, engine) for engine, ratio in rates.items())
        for key, rates in found.items()
        if all(any(engine.startswith(peer) for engine in rates) for peer in both)
    }


def label(key: Key) -> str:
    """How a bar is called."""
    file, _, _, depth, kv_format = key
    return Path(file).stem + (f" at {depth}, {kv_format}" if depth else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="?", type=Path, default=HERE / "speed.jsonl")
    parser.add_argument("--output", type=Path, default=HERE / "speed.png")
    arguments = parser.parse_args()
    found = ratios(arguments.results.read_text().splitlines())
    figure, axes = plt.subplots(1, 2, figsize=(11, 0.32 * len(found) / 2 + 1.6), constrained_layout=True)
    for axis, test in zip(axes, ("prefill", "decode"), strict=True):
        keys = [key for key in found if key[2] == test]
        names = list(dict.fromkeys(label(key) for key in keys))
        for threads, shift, color in ((1, 0.2, "#9db7d5"), (2, -0.2, "#2f5d8a")):
            mine = [key for key in keys if key[1] == threads]
            heights = [names.index(label(key)) + shift for key in mine]
            axis.barh(heights, [found[key][0] for key in mine], 0.38, color=color, label=f"{threads} threads")
            for height, key in zip(heights, mine, strict=True):
                axis.text(found[key][0] + 0.02, height, f"{found[key][0]:.2f}", va="center", fontsize=7)
        axis.axvline(1.0, color="black", linewidth=0.8)
        axis.set_yticks(range(len(names)), names, fontsize=8)
        axis.invert_yaxis()
        axis.set_title(f"{test}: tokens a second over the best peer's", fontsize=10)
        axis.margins(x=0.1)  # room for the figures beside the bars
    axes[1].legend(fontsize=8)
    figure.savefig(arguments.output, dpi=130)


if __name__ == "__main__":
    main()
