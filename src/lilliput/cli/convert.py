# SPDX-License-Identifier: Apache-2.0
"""`lilliput convert`: a quantized model into the file of another runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lilliput.cli import options, values
from lilliput.cli.output import human_bytes, print_json, progress, say, tell, warn


def command(
    model: options.Model,
    outputs: Annotated[
        list[Path],
        typer.Argument(help="Files or folders to write, as many as wanted; each ending decides a container."),
    ],
    to: Annotated[
        str | None,
        typer.Option("--to", help="A container by name (gguf, gptq, awq …), whatever the ending."),
    ] = None,
    number_format: Annotated[
        str | None,
        typer.Option("--format", help="Of quantized layers, e.g. Q4_1 or F16; default: the smallest that is exact."),
    ] = None,
    requantize: Annotated[
        bool, typer.Option("--requantize", help="Choose codes anew where none can be kept; this loses quality.")
    ] = False,
    statistics: options.StatisticsFile = None,
    imatrix: options.ImatrixFile = None,
    text: Annotated[
        Path | None, typer.Option("--text", help="Measure the KL from the input on this text, or 'builtin'.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", help="Hugging Face folder or id that a folder takes config and tokenizer files from."),
    ] = None,
    split_max_size: Annotated[
        str | None, typer.Option("--split-max-size", help="Split into files of at most, e.g. 5GB; default: one file.")
    ] = None,
    threads: options.Threads = None,
    revision: options.Revision = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Move a quantized model into other containers.

    Codes and scales stay what they are wherever the number formats agree; where they do not, it says what is lost.
    """
    from lilliput import workflows
    from lilliput.cli.outputs import tell_outputs
    from lilliput.containers.container import Split
    from lilliput.converting import ConvertOptions, convert_all

    split = Split(max_bytes=values.parse_bytes(split_max_size, "--split-max-size")) if split_max_size else Split()
    chosen = ConvertOptions(
        to=to, format=number_format, requantize=requantize, base=base, text=text, force=force, split=split,
        guidance=workflows.Guidance((), statistics, imatrix), threads=threads, revision=revision, announce=say,
    )  # fmt: skip
    with progress("converting") as advance:
        results = convert_all(model, outputs, chosen, progress=advance)
    for note in dict.fromkeys(note for result in results for note in result.notes):
        warn(note)
    if len(results) > 1:
        tell_outputs(results, reference=model, as_json=json)
        return
    (result,) = results
    if json:
        print_json(result.to_json())
        return
    changed = [tensor for tensor in result.tensors if not tensor.is_exact]
    for tensor in changed:
        say(
            f"{tensor.name}: {tensor.source_format.upper()} -> {tensor.format.upper()}, {tensor.move.value}; "
            f"largest error {tensor.max_error:.2e} of the largest weight, RMS {tensor.rms_error:.2e} of the weights'"
        )
    exact = "every value is the same" if result.is_exact else f"{len(changed)} tensors differ"
    kl = f"; mean KL {result.mean_kl[0]:.3g} ± {result.mean_kl[1]:.2g} nats" if result.mean_kl else ""
    tell(f"{result.output[0]}: file {human_bytes(result.bytes)}, {exact}{kl}; ledger {result.ledger}")
