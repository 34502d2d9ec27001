# SPDX-License-Identifier: Apache-2.0
"""`lilliput eval`: what quantization cost, measured against the original on the same tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lilliput.cli import options, values
from lilliput.cli.output import print_json, progress, tell, warn


def command(
    base: Annotated[str, typer.Argument(help="The original: Hugging Face folder or any file that runs here.")],
    files: Annotated[list[str], typer.Argument(help="Quantized files.")],
    text: Annotated[
        Path, typer.Option("--text", help="Text, JSONL or gzip, never the calibration text; 'builtin' for ours.")
    ],
    context: Annotated[
        int, typer.Option("--context", metavar="<number>", min=16, help="Tokens per chunk; the second half is scored.")
    ] = 512,
    tokens: Annotated[
        int | None,
        typer.Option("--tokens", metavar="<number>", min=1, help="Use at most this many tokens of text; default: all."),
    ] = None,
    activations: Annotated[
        str,
        typer.Option(
            "--activations",
            help="file measures the file, with static inputs where it holds their range; f32 without them; engine adds "
            "the engine's own rounding.",
        ),
    ] = "file",
    kv: Annotated[
        str | None,
        typer.Option("--kv", help="KV cache of the files, as for run; default f32, or f16 with --activations engine."),
    ] = None,
    threads: options.Threads = None,
    json: options.Json = False,
) -> None:
    """Measure quantized files by what the model is for.

    Next tokens: perplexity and KL divergence, paired, over the full vocabulary. Sentence vectors: cosine and rank
    agreement. Classes: agreement, KL divergence, accuracy. Answers: exact ones, and KL divergence per token.
    """
    from lilliput import sequences, workflows
    from lilliput.evaluation.model_logits import EvaluationOptions
    from lilliput.opening import task_of

    chosen = EvaluationOptions(
        context, tokens, values.activation_kind(activations), threads=threads,
        kv_format=None if kv is None else values.kv_format(kv),
    )  # fmt: skip
    flattered = workflows.calibrated_on(files, text)
    if flattered:
        warn(
            f"{', '.join(flattered)}: calibrated on a text of this name ({text}); on other text expect more divergence"
        )
    with progress("evaluating") as advance:
        is_decoder = task_of(base) == "next_token"
        result = (workflows if is_decoder else sequences).evaluate(base, files, text, options=chosen, progress=advance)
    if json:
        print_json(result.to_json())
    else:
        tell(result.to_text())
