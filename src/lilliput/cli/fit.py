# SPDX-License-Identifier: Apache-2.0
"""`lilliput fit`: a budget goes in, the best model within it comes out."""

from __future__ import annotations

from dataclasses import replace
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from lilliput.cli import options, values
from lilliput.cli.output import human_bytes, print_json, progress, tell, warn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lilliput.fitting import FitOptions, FitResult, Interval


# What a finished search has decided already.
SEARCHED = (
    *("text", "selection", "runtime", "formats", "sensitivity", "search", "evaluations", "seed", "effort", "method"),
    *("tokens", "work", "revision"),
)

Outputs = Annotated[
    list[Path] | None,
    typer.Option(
        "--output", "-o", metavar="<path>",
        help="What --for loads, such as a .gguf file; default: named here. Repeatable: the same codes in each.",
    ),
]  # fmt: skip

Work = Annotated[Path | None, typer.Option("--work", help="Folder that keeps the search; default OUTPUT.fit.")]


def command(
    call: typer.Context,
    model: Annotated[str | None, typer.Argument(help="As for quantize; left out with --from.")] = None,
    size: options.Size = None,
    ram: options.Ram = None,
    context: options.Context = None,
    kv: options.KvCache = "f16",
    bpw: options.Bpw = None,
    max_kld: options.MaxKld = None,
    min_speed: options.MinSpeed = None,
    outputs: Outputs = None,
    text: options.Text = None,
    selection: Annotated[
        Path | None, typer.Option("--selection", help="Text to compare on, not a part of --text; 'builtin' for ours.")
    ] = None,
    held_out: Annotated[
        Path | None, typer.Option("--held-out", help="Text to measure on, not a part of --text; 'builtin' for ours.")
    ] = None,
    runtime: options.Runtime = "llama.cpp",
    formats: options.Candidates = "",
    sensitivity: Annotated[
        str, typer.Option("--sensitivity", help="gradient (one backward pass) or measured (each tensor alone).")
    ] = "gradient",
    search: Annotated[str, typer.Option("--search", help="evolution, agent or none: refine by real KL.")] = "none",
    evaluations: Annotated[
        int, typer.Option("--evaluations", metavar="<number>", min=0, help="Mixes that --search may measure.")
    ] = 60,
    seed: Annotated[int, typer.Option("--seed", help="Of --search.")] = 0,
    effort: options.Effort = None,
    method: options.Method = None,
    tokens: options.Tokens = None,
    work: Work = None,
    from_: Annotated[Path | None, typer.Option("--from", help="Work folder of a search: another point of it.")] = None,
    threads: options.Threads = None,
    revision: options.Revision = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Find the best mix of formats within a budget by measuring.

    Then quantize with it, and measure what was written on text that the search has not seen.
    """
    from lilliput import fitting
    from lilliput.errors import RecipeError

    _refuse_useless(call, search)
    goal = replace(options.goal(size, ram, context, bpw, max_kld, min_speed), kv_format=values.kv_format(kv))
    chosen = fitting.FitOptions(
        runtime=runtime, formats=options.candidate_names(formats),
        effort=effort, method=method, sensitivity=cast("fitting.SensitivityKind", sensitivity),
        search=cast("fitting.SearchKind", search), evaluations=evaluations, seed=seed,
        tokens=tokens, threads=threads, revision=revision, work=work, selection=selection, held_out=held_out,
        force=force,
    )  # fmt: skip
    output = outputs[0] if outputs else None
    several = outputs is not None and len(outputs) > 1
    if outputs is not None and several:
        from lilliput import exporting

        chosen = replace(chosen, formats=exporting.shared_formats(outputs, chosen))
    if from_ is not None:
        if model is not None or output is None:
            raise RecipeError("--from WORK knows its model: leave MODEL out, and say where to write with -o")
        result = fitting.fit_again(from_, goal, output, options=chosen, stages=progress)
    elif model is None:
        raise RecipeError("fit needs a MODEL, or --from with the work folder of an earlier search")
    elif not text:
        raise RecipeError("fit measures on text: give --text FILE, or --text builtin")
    else:
        result = fitting.fit(model, goal, output, text=text, options=chosen, stages=progress)
    for note in result.notes:
        warn(note)
    if json and not several:
        print_json(result.to_json())
        return
    if not json:
        _tell(result)
    if outputs is not None and several:
        _convert(result, outputs[1:], model, chosen, as_json=json)


def _convert(
    result: FitResult, outputs: Sequence[Path], model: str | None, chosen: FitOptions, *, as_json: bool
) -> None:
    """The same codes in the other outputs."""
    from lilliput import exporting
    from lilliput.cli.outputs import tell_outputs

    with progress("converting") as advance:
        others = exporting.move_all(result.output, outputs, model, chosen, advance)
    for note in dict.fromkeys(note for other in others for note in other.notes):
        warn(note)
    tell_outputs(others, reference=str(result.output), as_json=as_json, earlier=result.to_json())


def _refuse_useless(call: typer.Context, search: str) -> None:
    """Refuse options that would have no effect. Raises RecipeError."""
    given = options.given(call)
    if "from_" in given:
        options.refuse(call, SEARCHED, "with --from, whose search has decided it; leave it out, or search anew")
    options.refuse_for_search(call)
    if search == "none":
        options.refuse(call, ("evaluations", "seed"), "without a search by real KL; add --search evolution or agent")
    elif "max_kld" in given:
        options.refuse(call, ("search",), "with --max-kld, which measures its own way to the KL; leave it out")


def _bounds(interval: Interval) -> str:
    if isnan(interval.low):
        return "(no interval: fewer than 5 windows of text)"
    return f"[{interval.low:.5f}, {interval.high:.5f}]"


def _tell(result: object) -> None:
    from lilliput.fitting import FitResult

    assert isinstance(result, FitResult)
    held, chosen = result.held_out, result.selection
    tell(f"{result.output}: file {human_bytes(result.bytes)}, tensors at {result.bits_per_weight:.3f} bits per weight"
         + (" (up to date)" if result.is_up_to_date else ""))  # fmt: skip
    tell(f"KL on held-out text {held.value:.5f} nats a token {_bounds(held)}; "
         f"on the text it was chosen by {chosen.value:.5f}")  # fmt: skip
    if result.tokens_per_second is not None:
        tell(f"{result.tokens_per_second:.1f} tokens a second, measured")
    if result.ram_bytes is not None:
        tell(f"{human_bytes(result.ram_bytes)} of weights in memory and KV cache")
    tell(f"found by: {result.search}; predictions against measurements: R² {result.agreement.r_squared:.3f} "
         f"of {result.agreement.configurations} random configurations")  # fmt: skip
    tell(f"other sizes without searching again: lilliput fit --from {result.work} --size SIZE -o NAME.gguf")
