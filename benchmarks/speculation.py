# SPDX-License-Identifier: Apache-2.0
"""Guessed tokens against one token a pass, on a model that fits no cache: the same text, sooner or not.

    python benchmarks/speculation.py --text TEXT --work DIR [--threads 1,2] [--rounds 5] [--tokens 96]

The model is Gulliver with a feed-forward width of 196,608: the added channels have random gates and zero columns in
`ffn_down`, so that it says what Gulliver says and costs what a model of 900 million weights costs. It runs as Q4_K_M;
drafts are itself as Q2_K and Gulliver itself in Q8_0 (which no user has: the ceiling of a tiny draft).
Natural text: continuing passages at temperature 0.8. Copies: a passage, its first words again, greedy.
In each round all ways run one after another on the same prompt and seed; the ratio of a way is the median over rounds
and prompts of its tokens a second over plain decode. One JSON line for each text, way and thread count.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from lilliput import workflows
from lilliput.generating import GenerateOptions, generate
from lilliput.models import gulliver
from lilliput.runtime.sampler import SamplingOptions
from lilliput.text.documents import read_text

RESULTS = Path(__file__).parent / "results" / "speculation.jsonl"
WIDTH = 196_608
PROMPTS = 3
PASSAGE = 600  # characters


@dataclass(frozen=True)
class Way:
    """How guesses are made. draft: a file."""

    name: str
    guesses: int = 0
    draft: Path | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=96)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    model, draft = made(arguments.work, "Q4_K_M"), made(arguments.work, "Q2_K")
    tiny = arguments.work / "gulliver-Q8_0.gguf"
    if not tiny.exists():
        workflows.quantize("gulliver", "Q8_0", tiny)
    ways = (Way("plain"), Way("lookup", 7), Way("draft Q2_K", 7, draft), Way("draft tiny", 7, tiny))
    text = read_text(arguments.text)
    for threads in map(int, arguments.threads.split(",")):
        for kind in ("natural", "copies"):
            for line in compared(model, ways, prompts_of(text, kind), kind, threads, arguments):
                print(json.dumps(line))
                with RESULTS.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")


def compared(
    model: Path, ways: tuple[Way, ...], prompts: list[str], kind: str, threads: int, arguments: argparse.Namespace
) -> list[dict[str, object]]:
    rates: dict[str, list[float]] = {way.name: [] for way in ways}
    passes: dict[str, list[float]] = {way.name: [] for way in ways}
    for round_number in range(arguments.rounds):
        for prompt in prompts:
            sampling = SamplingOptions(temperature=0.8 if kind == "natural" else 0.0, seed=round_number)
            for way in ways:
                options = GenerateOptions(
                    arguments.tokens, sampling, 512, threads, guesses=way.guesses, draft=way.draft
                )  # fmt: skip
                done = generate(model, prompt, options=options)
                if done.decode_tok_s and len(done.token_ids) > 1:
                    rates[way.name].append(done.decode_tok_s)
                    passes[way.name].append((len(done.token_ids) - 1) / max(done.passes, 1))
    return [
        {
            "measured": time.strftime("%Y-%m-%d"), "text": kind, "way": way.name, "threads": threads,
            "tokens_per_second": round(statistics.median(rates[way.name]), 2),
            "ratio": round(statistics.median(a / b for a, b in zip(rates[way.name], rates["plain"], strict=True)), 3),
            "tokens_per_pass": round(statistics.mean(passes[way.name]), 2),
            "generations": len(rates[way.name]),
        }
        for way in ways
    ]  # fmt: skip


def prompts_of(text: str, kind: str) -> list[str]:
    """Passages from all over the text; for copies each with its own beginning after it."""
    step = len(text) // (PROMPTS + 1)
    passages = [text[place * step : place * step + PASSAGE] for place in range(1, PROMPTS + 1)]
    return passages if kind == "natural" else [f"{passage}\n\n{passage[: PASSAGE // 4]}" for passage in passages]


def made(work: Path, preset: str) -> Path:
    path = work / f"wide-{preset}.gguf"
    if not path.exists():
        workflows.quantize(widened(work / "wide"), preset, path)
    return path


def widened(folder: Path) -> Path:
    """Gulliver with channels that change nothing."""
    if (folder / "model.safetensors").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    state = load_file(gulliver() / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name, weight in list(state.items()):
        if "mlp.down_proj" in name:
            more = torch.zeros(weight.shape[0], WIDTH - weight.shape[1], dtype=weight.dtype)
            state[name] = torch.cat([weight, more], dim=1).contiguous()
        elif "mlp." in name:
            more = torch.randn(WIDTH - weight.shape[0], weight.shape[1], generator=generator) * weight.float().std()
            state[name] = torch.cat([weight, more.to(weight.dtype)]).contiguous()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    for file in gulliver().iterdir():
        if file.suffix == ".json":
            shutil.copyfile(file, folder / file.name)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": WIDTH}), encoding="utf-8")
    return folder


if __name__ == "__main__":
    main()
