# SPDX-License-Identifier: Apache-2.0
"""`lilliput calibrate`: statistics once, for every later run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lilliput.cli import options, values
from lilliput.cli.output import print_json, progress, tell, warn


def command(
    model: options.Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="STATS.safetensors, or imatrix.gguf for llama.cpp.")],
    text: options.Text = None,
    context: Annotated[int, typer.Option("--context", metavar="<number>", min=16, help="Tokens per chunk.")] = 512,
    tokens: Annotated[
        int | None,
        typer.Option("--tokens", metavar="<number>", min=1, help="Stop after this many tokens; default: all."),
    ] = None,
    merge: Annotated[
        list[Path] | None,
        typer.Option("--merge", metavar="<path>", help="Add the sums of earlier statistics; repeatable."),
    ] = None,
    outputs: Annotated[
        bool, typer.Option("--outputs", help="Also ranges of what every operation gives, for files of integers alone.")
    ] = False,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
    memory_limit: Annotated[
        str | None, typer.Option("--memory-limit", help="Working memory, e.g. 4GB; default: no limit.")
    ] = None,
    threads: options.Threads = None,
    revision: options.Revision = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Collect what enters every linear layer on a text. Reads and writes imatrix.gguf too."""
    from lilliput import workflows
    from lilliput.calibration.enough_text import few_tokens_notes

    chosen = workflows.CalibrateOptions(
        chunk_size=context, tokens=tokens, merge=tuple(merge or ()), device=device, threads=threads,
        memory_limit=values.parse_bytes(memory_limit, "--memory-limit") if memory_limit else None,
        revision=revision, force=force, outputs=outputs,
    )  # fmt: skip
    with progress("calibrating") as advance:
        statistics = workflows.calibrate(model, text or (), output, options=chosen, progress=advance)
    seen = statistics.chunks * statistics.chunk_size
    for note in few_tokens_notes(seen, max(len(item.sum_of_squares) for item in statistics.inputs.values())):
        warn(note)
    if json:
        print_json(
            {"output": str(output), "chunks": statistics.chunks, "tokens": seen, "layers": len(statistics.inputs)}
        )
    else:
        tell(f"{output}: {len(statistics.inputs)} linear layers, {seen} tokens in {statistics.chunks} chunks")
