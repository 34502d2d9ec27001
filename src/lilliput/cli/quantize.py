# SPDX-License-Identifier: Apache-2.0
"""`lilliput quantize`: a model goes in, a smaller file and its ledger come out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lilliput.cli import options
from lilliput.cli.output import human_bytes, print_json, progress, say, warn


def command(
    model: options.Model,
    to: options.To = "Q4_K_M",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Default: <Model>-<QUANT>.gguf here.")] = None,
    text: options.Text = None,
    statistics: options.StatisticsFile = None,
    imatrix: options.ImatrixFile = None,
    method: options.Method = None,
    split_max_size: Annotated[str | None, typer.Option("--split-max-size", help="Split files, e.g. 5GB.")] = None,
    threads: options.Threads = None,
    revision: options.Revision = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Quantize a model into one file (or a split set), verified and published atomically."""
    from lilliput import workflows

    with progress("quantizing") as advance:
        result = workflows.quantize(
            model, to, output, text=text, statistics=statistics, imatrix=imatrix, method=method, force=force,
            split_max_size=split_max_size, threads=threads, revision=revision, progress=advance,
        )  # fmt: skip
    for warning in result.warnings:
        warn(warning)
    if json:
        print_json(result.to_json())
    elif result.is_up_to_date:
        say(f"{result.output[0]}: up to date")
    else:
        say(
            f"{result.output[0]}: {human_bytes(result.bytes)}, {result.bits_per_weight:.3f} bits per weight; "
            f"ledger {result.ledger}"
        )
