# SPDX-License-Identifier: Apache-2.0
"""`lilliput report`: one page, and a model card, that show what quantization cost."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from lilliput.cli import options, values
from lilliput.cli.output import human_bytes, print_json, progress, tell


def command(
    base: Annotated[str, typer.Argument(help="The original: Hugging Face folder or any file that runs here.")],
    files: Annotated[list[str], typer.Argument(help="Quantized files.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="report.html: one page, works offline.")] = None,
    card: Annotated[Path | None, typer.Option("--card", help="README.md: a model card for the files.")] = None,
    text: Annotated[
        Path | None, typer.Option("--text", help="Text, JSONL or gzip to measure on; default: 'builtin'.")
    ] = None,
    frontier: Annotated[
        Path | None, typer.Option("--frontier", help="Points of a search (JSON), drawn beside the files.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="What both models continue; default: out of the text.")
    ] = None,
    context: Annotated[
        int, typer.Option("--context", metavar="<number>", min=16, help="Tokens per chunk; the second half is scored.")
    ] = 512,
    tokens: Annotated[
        int, typer.Option("--tokens", metavar="<number>", min=1, help="Use at most this many tokens of text.")
    ] = 16_384,
    activations: Annotated[
        str,
        typer.Option(
            "--activations",
            help="file measures the file, with static inputs where it holds their range; f32 without them; engine adds "
            "the engine's own rounding.",
        ),
    ] = "file",
    threads: options.Threads = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Show what quantized files cost, on a page and a model card.

    Sizes, KL with intervals, tensors, weights, and the text where they differ.
    """
    from lilliput import reporting
    from lilliput.errors import PublishError
    from lilliput.evaluation.model_logits import EvaluationOptions
    from lilliput.reports.card import card as card_text
    from lilliput.reports.page import page
    from lilliput.reports.summary import headline_text
    from lilliput.reports.writing import check_outputs, write_all

    targets = tuple(path for path in (output, card) if path is not None)
    if not targets and not json:
        raise PublishError("nothing to write: give -o report.html, --card README.md or --json")
    check_outputs(targets, overwrite=force)
    measuring = EvaluationOptions(context, tokens, values.activation_kind(activations), threads=threads)
    words = ["lilliput", "report", *(Path(name).name for name in (base, *files))]
    words += [word for option, path in (("--text", text), ("-o", output)) if path for word in (option, path.name)]
    chosen = reporting.ReportOptions(text, frontier, prompt, measuring, command=shlex.join(words))
    with progress("measuring") as advance:
        found = reporting.report(base, files, chosen, progress=advance)
    contents: dict[Path, str] = {}
    if output is not None:
        contents[output] = page(found)
    if card is not None:
        contents[card] = card_text(found)
    write_all(contents, overwrite=force)
    if json:
        print_json(found.to_json())
        return
    tell(headline_text(found))
    for path, content in contents.items():
        tell(f"{path}: {human_bytes(len(content.encode()))}")
