# SPDX-License-Identifier: Apache-2.0
"""`lilliput run`: raw completion through the native engine."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from lilliput.cli import options, values
from lilliput.cli.output import print_json, say, tell

if TYPE_CHECKING:
    from lilliput.checkpoints.model_source import ModelSource
    from lilliput.runtime.answers import AnswerOptions
    from lilliput.runtime.session import EngineOptions

# Where a draft is given and nothing else.
DRAFT_GUESSES = 7


# What the next token is drawn by, and what a search for an answer takes instead.
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "guesses", "draft")
ANSWERING = ("beams",)

Guesses = Annotated[
    int,
    typer.Option(
        "--guesses",
        metavar="<number>",
        min=0,
        help="Most tokens guessed and verified in one pass; same text, faster; 0 turns it off.",
    ),
]
Draft = Annotated[
    str | None,
    typer.Option(
        "--draft",
        help="A smaller file of the same vocabulary that guesses, 7 tokens a pass at most or --guesses.",
    ),
]
Context = Annotated[
    int | None,
    typer.Option("--context", metavar="<number>", min=1, help="Tokens of KV cache; default: prompt and answer."),
]


def command(
    call: typer.Context,
    file: Annotated[str, typer.Argument(help="Model to run: GGUF, lilliput safetensors or Hugging Face folder.")],
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="Text to continue; may be empty.")] = "",
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", "-n", metavar="<number>", min=0, help="Most tokens to generate.")
    ] = 128,
    temperature: Annotated[
        float, typer.Option("--temperature", metavar="<number>", min=0.0, help="0 is greedy.")
    ] = 0.8,
    top_k: Annotated[int, typer.Option("--top-k", metavar="<number>", min=0, help="0 turns it off.")] = 40,
    top_p: Annotated[
        float, typer.Option("--top-p", metavar="<number>", min=0.0, max=1.0, help="1 turns it off.")
    ] = 0.95,
    min_p: Annotated[
        float, typer.Option("--min-p", metavar="<number>", min=0.0, max=1.0, help="0 turns it off.")
    ] = 0.05,
    repetition_penalty: Annotated[
        float, typer.Option("--repetition-penalty", metavar="<number>", min=0.0, help="1 turns it off.")
    ] = 1.0,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Same seed, same text; default: drawn and printed.")
    ] = None,
    beams: Annotated[
        int, typer.Option("--beams", metavar="<number>", min=1, help="Of an encoder-decoder's answers; 1 is greedy.")
    ] = 1,
    guesses: Guesses = 0,
    draft: Draft = None,
    context: Context = None,
    kv: options.KvCache = "f16",
    repack: options.Repack = True,
    threads: options.Threads = None,
    revision: options.Revision = None,
    json: options.Json = False,
) -> None:
    """Continue a prompt: no chat template, BOS as the metadata says.

    An encoder-decoder answers it instead, a classifier says its class, any other encoder gives its vector.
    """
    from lilliput import generating
    from lilliput.opening import opened
    from lilliput.runtime.answers import AnswerOptions
    from lilliput.runtime.sampler import SamplingOptions
    from lilliput.runtime.session import EngineOptions

    # Once, for the headers of a large vocabulary take a third of a second.
    source = call.with_resource(opened(file, revision))
    if source.config.task != "next_token":
        options.refuse(call, SAMPLING, "on a model that does not predict the next token; leave it out")
        engine = EngineOptions(threads, context, kv_format=values.kv_format(kv), repack=repack)
        _answer(source, prompt, AnswerOptions(beams=beams, max_length=max_tokens + 1), engine, json=json)
        return
    options.refuse(call, ANSWERING, "on a model that predicts the next token; leave it out")
    sampling = SamplingOptions(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
        repetition_penalty=repetition_penalty, seed=values.chosen_seed(seed),
    )  # fmt: skip

    def show(piece: str) -> None:
        sys.stdout.write(piece)
        sys.stdout.flush()

    guesses = guesses or (DRAFT_GUESSES if draft else 0)
    chosen = generating.GenerateOptions(
        max_tokens, sampling, context, threads, revision, guesses, draft, values.kv_format(kv), repack
    )
    result = generating.generate(source, prompt, options=chosen, on_text=None if json else show)
    if json:
        print_json(result.to_json())
        return
    sys.stdout.write("\n")
    say(
        f"{result.prompt_tokens} prompt tokens at {result.prefill_tok_s or 0:.1f} tok/s, "
        f"{len(result.token_ids)} generated at {result.decode_tok_s or 0:.1f} tok/s"
        + (f" in {result.passes} passes" if guesses else "")
        + (f", seed {sampling.seed}" if temperature > 0 else "")
    )


def _answer(source: ModelSource, text: str, answers: AnswerOptions, engine: EngineOptions, *, json: bool) -> None:
    """Print what a model makes of a text that it does not continue."""
    from lilliput import sequences

    found = sequences.run(source, text, answers=answers, engine=engine)
    if json:
        print_json(found.to_json())
    else:
        tell(found.to_text())
