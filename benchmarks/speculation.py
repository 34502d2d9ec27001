# SPDX-License-Identifier: Apache-2.0
"""Guessed tokens against one token a pass, on a model that fits no cache: the same text, sooner or not.

    python benchmarks/speculation.py --text TEXT --work DIR [--threads 1,2] [--rounds 5] [--tokens 96]

The model is Gulliver with a feed-forward width of 196,608: the added channels have random gates and zero columns in
`ffn_down`, so that it says what Gulliver says and costs what a model of 900 million weights costs. It runs as Q4_K_M;
drafts are itself as Q2_K and Gulliver itself in Q8_0 (which no user has: the ceiling of a tiny draft). Where the text
repeats itself, guesses are the text's, draft or not.
Natural text: continuing passages at temperature 0.8. Copies: a passage, its first words again, greedy; Gulliver has not
learned to copy, and continues with phrases that it repeats. Dictated copies: a passage, its first words again, and what
is chosen is the rest of the passage whatever the model says: what a model that does copy would gain.
In each round all ways run one after another on the same prompt, seed and weights in memory; the ratio of a way is the
median over rounds and prompts of its tokens a second over plain decode. One JSON line for each text, way and thread
count.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from lilliput import workflows
from lilliput.arrays import FloatArray
from lilliput.containers import open_model
from lilliput.models import gulliver
from lilliput.runtime.generate import Generation
from lilliput.runtime.sampler import Sampler, SamplingOptions
from lilliput.runtime.session import EngineOptions, Session
from lilliput.text.documents import read_text
from lilliput.text.tokenizer import Tokenizer, end_of_generation_ids

RESULTS = Path(__file__).parent / "results" / "speculation.jsonl"
WIDTH = 196_608
KINDS = ("natural", "copies", "dictated copies")
PROMPTS = 3
PASSAGE = 600  # characters


@dataclass(frozen=True)
class Way:
    """How guesses are made."""

    name: str
    guesses: int = 0
    draft: Session | None = None


@dataclass(frozen=True)
class Prompt:
    """A text's tokens.  dictated: those that follow, whatever the model says.  is_natural: goes on as it likes."""

    token_ids: list[int]
    dictated: list[int]
    is_natural: bool


class Dictated(Sampler):
    """Chooses what it was told to."""

    def __init__(self, prompt: Prompt) -> None:
        super().__init__(SamplingOptions())
        self._prompt = prompt

    def choose(self, logits: FloatArray, previous: Sequence[int] = ()) -> int:
        """The next token of the text. A draft asks the twin, which is an ordinary sampler."""
        del logits
        return self._prompt.dictated[len(previous) - len(self._prompt.token_ids)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--kinds", default=",".join(KINDS))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    model, draft = made(arguments.work, "Q4_K_M"), made(arguments.work, "Q2_K")
    tiny = arguments.work / "gulliver-Q8_0.gguf"
    if not tiny.exists():
        workflows.quantize("gulliver", "Q8_0", tiny)
    text = read_text(arguments.text)
    for threads in map(int, arguments.threads.split(",")):
        session, draft_session, tiny_session = (
            Session(open_model(file), EngineOptions(threads=threads, context=512)) for file in (model, draft, tiny)
        )
        ways = (Way("plain"), Way("text", 15), Way("draft Q2_K", 7, draft_session), Way("draft tiny", 7, tiny_session))
        vocabulary = open_model(model).vocabulary()
        for kind in arguments.kinds.split(","):
            prompts = prompts_of(text, kind, Tokenizer(vocabulary), arguments.tokens)
            stop_ids = frozenset() if kind == "dictated copies" else end_of_generation_ids(vocabulary)
            for line in compared(session, ways, prompts, stop_ids, arguments):
                record = {"measured": time.strftime("%Y-%m-%d"), "text": kind, "threads": threads, **line}
                print(json.dumps(record))
                with RESULTS.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(record) + "\n")


def compared(
    session: Session,
    ways: tuple[Way, ...],
    prompts: list[Prompt],
    stop_ids: frozenset[int],
    arguments: argparse.Namespace,
) -> list[dict[str, object]]:
    rates: dict[str, list[float]] = {way.name: [] for way in ways}
    passes: dict[str, list[float]] = {way.name: [] for way in ways}
    for round_number in range(arguments.rounds):
        for prompt in prompts:
            temperature = 0.8 if prompt.is_natural else 0.0
            for way in ways:
                chooses = (
                    Dictated(prompt)
                    if prompt.dictated
                    else Sampler(SamplingOptions(temperature=temperature, seed=round_number))
                )
                session.truncate(0)
                generation = Generation(
                    session, prompt.token_ids, chooses, max_tokens=arguments.tokens, stop_ids=stop_ids,
                    guesses=way.guesses, draft=way.draft,
                )  # fmt: skip
                for _ in generation:
                    pass
                timings = generation.timings
                if timings.decode_tok_s:
                    rates[way.name].append(timings.decode_tok_s)
                    passes[way.name].append(timings.decoded / max(timings.passes, 1))
    return [
        {
            "way": way.name,
            "tokens_per_second": round(statistics.median(rates[way.name]), 2),
            "ratio": round(statistics.median(a / b for a, b in zip(rates[way.name], rates["plain"], strict=True)), 3),
            "tokens_per_pass": round(statistics.mean(passes[way.name]), 2),
            "generations": len(rates[way.name]),
        }
        for way in ways
    ]


def prompts_of(text: str, kind: str, tokenizer: Tokenizer, tokens: int) -> list[Prompt]:
    """Passages from all over the text; for copies each with its own beginning after it."""
    step = len(text) // (PROMPTS + 1)
    prompts = []
    for place in range(1, PROMPTS + 1):
        passage = text[place * step : place * step + PASSAGE]
        if kind == "dictated copies":
            known = tokenizer.encode(passage, add_special=True)
            begun = known[1 : len(known) // 4]
            rest = known[len(known) // 4 :] + known[1:] * (tokens // len(known) + 1)
            prompts.append(Prompt(known + begun, rest[:tokens], is_natural=False))
        elif kind == "copies":
            ids = tokenizer.encode(f"{passage}\n\n{passage[: PASSAGE // 4]}", add_special=True)
            prompts.append(Prompt(ids, [], is_natural=False))
        else:
            prompts.append(Prompt(tokenizer.encode(passage, add_special=True), [], is_natural=True))
    return prompts


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
