# SPDX-License-Identifier: Apache-2.0
"""`lilliput push`: a finished file or folder to the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lilliput.cli import options
from lilliput.cli.output import human_bytes, print_json, print_table, progress, tell


def command(
    call: typer.Context,
    path: Annotated[Path, typer.Argument(help="A GGUF (any part of a split), our own file, or a model folder.")],
    repository: Annotated[str, typer.Argument(help="organization/name; made where it is missing.")],
    private: Annotated[bool, typer.Option("--private", help="A new repository is private.")] = False,
    revision: Annotated[
        str | None, typer.Option("--revision", help="Branch, made where it is missing; default: main.")
    ] = None,
    card: Annotated[
        Path | None, typer.Option("--card", help="A finished README.md, as `report --card` makes it.")
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", help="The original: measure against it now, for the card.")
    ] = None,
    text: Annotated[Path | None, typer.Option("--text", help="Text to measure on; default: 'builtin'.")] = None,
    message: Annotated[
        str | None, typer.Option("--message", help="Of the commit; default: says what is uploaded.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be uploaded; upload nothing.")] = False,
    threads: options.Threads = None,
    json: options.Json = False,
) -> None:
    """Upload a model with its card and ledger, in one commit. HF_TOKEN says who you are."""
    from lilliput.pushing import PushOptions, push

    if card is not None:
        options.refuse(call, ("base", "text", "threads"), "with --card, which is finished; give one of them")
    if base is None:
        options.refuse(
            call, ("text", "threads"), "without --base, the original to measure against; give it or leave this out"
        )
    if dry_run:
        options.refuse(call, ("message", "private"), "with --dry-run, which uploads nothing; leave it out")
    chosen = PushOptions(private, revision, card, base, text, message, dry_run, threads)
    with progress("measuring") as advance:
        result = push(path, repository, chosen, progress=advance)
    if json:
        print_json(result.to_json())
        return
    if dry_run:
        rows = [(upload.path, human_bytes(upload.bytes)) for upload in result.files]
        print_table(f"would upload to {repository} ({result.revision}):", ("file", "size"), rows)
    else:
        tell(f"{result.commit}: {len(result.files)} files, {human_bytes(result.bytes)}")
