# SPDX-License-Identifier: Apache-2.0
"""`lilliput quantize`: a model goes in, a smaller file and its ledger come out."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

import typer

from lilliput.cli import options, values
from lilliput.cli.output import human_bytes, print_assumptions, print_json, progress, say, tell, warn


def command(
    call: typer.Context,
    model: options.Model,
    to: options.To = "Q4_K_M",
    outputs: options.Outputs = None,
    text: options.Text = None,
    statistics: options.StatisticsFile = None,
    imatrix: options.ImatrixFile = None,
    effort: options.Effort = None,
    method: options.Method = None,
    transform: options.Transforms = None,
    activations: options.StaticActivations = None,
    tokens: options.Tokens = None,
    inputs: options.Inputs = None,
    precision: options.Precision = "float32",
    device: options.Device = "cpu",
    split_max_size: Annotated[
        str | None, typer.Option("--split-max-size", help="Split into files of at most, e.g. 5GB; default: one file.")
    ] = None,
    threads: options.Threads = None,
    revision: options.Revision = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Quantize a model into a file, or with several -o into several.

    What is written is reopened, compared and only then renamed into place.
    """
    from lilliput import workflows
    from lilliput.cli.outputs import tell_outputs
    from lilliput.containers.container import Split
    from lilliput.recipes.plan import Plan

    def announce(plan: Plan) -> None:
        if not json:
            print_assumptions(model, plan.assumed)
        counts = Counter(row.format.name.upper() for row in plan.rows)
        mix = ", ".join(f"{count} {name}" for name, count in counts.most_common())
        mix = "".join(f"{item.name}, then " for item in plan.transforms) + mix
        size = f"tensors {human_bytes(plan.tensor_bytes)}, {plan.bits_per_weight:.3f} bits per weight"
        say(f"plan {plan.recipe}: {mix}; {size}")

    options.refuse_for_quantize(call, effort=effort)
    guidance = workflows.Guidance(tuple(text or ()), statistics, imatrix)
    split = Split(max_bytes=values.parse_bytes(split_max_size, "--split-max-size")) if split_max_size else Split()
    chosen = workflows.QuantizeOptions(
        force=force, split=split, effort=effort, method=method, transforms=tuple(transform or ()), tokens=tokens,
        device=device, threads=threads, revision=revision, announce=announce, inputs=values.stream_inputs(inputs),
        precision=values.forward_precision(precision), activations=activations,
    )  # fmt: skip
    if outputs is not None and len(outputs) > 1:
        from lilliput.exporting import quantize_all

        with progress("quantizing") as advance:
            made = quantize_all(model, to, outputs, guidance=guidance, options=chosen, progress=advance)
        for warning in dict.fromkeys((*made.warnings, *(note for output in made.outputs for note in output.notes))):
            warn(warning)
        tell_outputs(made.outputs, reference=f"{model} in {to}", as_json=json)
        return
    output = outputs[0] if outputs else None
    with progress("quantizing") as advance:
        result = workflows.quantize(model, to, output, guidance=guidance, options=chosen, progress=advance)
    over = max(path.stat().st_size for path in result.output)
    if split.max_bytes is not None and over > split.max_bytes:
        warn(f"--split-max-size {split_max_size}: a tensor is never cut, and the largest part has {human_bytes(over)}")
    for warning in result.warnings:
        warn(warning)
    if json:
        print_json(result.to_json())
    elif result.is_up_to_date:
        tell(f"{result.output[0]}: up to date")
    else:
        tell(
            f"{result.output[0]}: file {human_bytes(result.bytes)} with tokenizer and metadata, tensors at "
            f"{result.bits_per_weight:.3f} bits per weight; ledger {result.ledger}"
        )
