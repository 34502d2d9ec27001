# SPDX-License-Identifier: Apache-2.0
"""`lilliput inspect`: what a file holds."""

from __future__ import annotations

from typing import Annotated

import typer

from lilliput.cli import options
from lilliput.cli.output import human_bytes, print_json, print_table

LONGEST_VALUE = 96


def command(
    file: Annotated[str, typer.Argument(help="GGUF file, Hugging Face folder or id, or lilliput safetensors.")],
    revision: options.Revision = None,
    json: options.Json = False,
) -> None:
    """Print metadata and tensors. Reads headers only; needs neither torch nor a known architecture."""
    from lilliput import workflows

    found = workflows.inspect(file, revision=revision)
    if json:
        print_json(found.to_json())
        return
    print_table(file, ("key", "value"), [(key, _short(value)) for key, value in found.metadata.items()])
    rows = [
        (
            tensor.name,
            "x".join(map(str, tensor.shape)),
            tensor.format.upper(),
            human_bytes(tensor.nbytes),
            tensor.assumed,
        )
        for tensor in found.tensors
    ]
    headings = ("tensor", "shape", "format", "size", "taken for")
    width = 5 if any(tensor.assumed for tensor in found.tensors) else 4
    print_table(f"\n{len(rows)} tensors", headings[:width], [row[:width] for row in rows], numeric=(1, 3))


def _short(value: object) -> str:
    text = " ".join(str(value).split())
    if isinstance(value, list) and len(value) > 8:
        text = f"[{len(value)} values] {text}"
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + "…"
