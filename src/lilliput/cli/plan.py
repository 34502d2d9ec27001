# SPDX-License-Identifier: Apache-2.0
"""`lilliput plan`: what will happen, from headers only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from lilliput.cli import options
from lilliput.cli.output import human_bytes, human_seconds, print_assumptions, print_json, print_table, tell, warn

if TYPE_CHECKING:
    from lilliput.fitting import FitPlan


def command(
    model: options.Model,
    to: Annotated[str | None, typer.Option("--to", help="As for quantize; default Q4_K_M.")] = None,
    output: options.Output = None,
    text: options.Text = None,
    statistics: options.StatisticsFile = None,
    imatrix: options.ImatrixFile = None,
    effort: options.Effort = None,
    method: options.Method = None,
    transform: options.Transforms = None,
    size: options.Size = None,
    ram: options.Ram = None,
    context: options.Context = None,
    bpw: options.Bpw = None,
    max_kld: options.MaxKld = None,
    min_speed: options.MinSpeed = None,
    runtime: options.Runtime = "llama.cpp",
    formats: options.Candidates = "",
    tokens: options.Tokens = None,
    threads: options.Threads = None,
    revision: options.Revision = None,
    json: options.Json = False,
) -> None:
    """Show the per-tensor plan, the exact size, peak RAM, disk and time. Reads headers only.

    With a target (--size, --ram, --bpw, --max-kld, --min-speed): what `fit` will take.
    """
    from lilliput import fitting, workflows
    from lilliput.errors import RecipeError

    targets = (size, ram, bpw, max_kld, min_speed)
    if any(target is not None for target in targets):
        if to is not None:
            raise RecipeError("--to names a preset, and a target asks for a search: give one of them")
        if not text:
            raise RecipeError("a search measures on text: give --text FILE, or --text builtin")
        goal = options.goal(size, ram, context, bpw, max_kld, min_speed)
        search = fitting.FitOptions(
            runtime=runtime, formats=options.candidate_names(formats), effort=effort, method=method, tokens=tokens,
            threads=threads, revision=revision,
        )  # fmt: skip
        _tell_search(fitting.plan_fit(model, goal, text=text, options=search), as_json=json)
        return
    to = to or "Q4_K_M"
    guidance = workflows.Guidance(tuple(text or ()), statistics, imatrix)
    chosen = workflows.QuantizeOptions(
        effort=effort,
        method=method,
        transforms=tuple(transform or ()),
        tokens=tokens,
        threads=threads,
        revision=revision,
    )
    report = workflows.plan(model, to, output, guidance=guidance, options=chosen)
    if json:
        print_json(report.to_json())
        return
    rows = [
        (
            row.source_name.removeprefix("model."),
            "x".join(map(str, row.shape)),
            row.format.name.upper(),
            human_bytes(row.nbytes),
            row.reason if row.method in ("copy", "searched_scales") else f"{row.method}; {row.reason}",
        )
        for row in report.plan.rows
    ]
    print_table(f"{model} -> {to}", ("tensor", "shape", "format", "size", "reason"), rows, numeric=(1, 3))
    print_assumptions(model, report.plan.assumed)
    for item in report.plan.transforms:
        strength = "" if item.strength is None else f" at strength {item.strength:g}"
        skipped = "".join(f"; not at {edge}: {reason}" for edge, reason in item.skipped.items())
        tell(f"\n{item.name}{strength} at {', '.join(item.edges)}{skipped}")
    tell(
        f"\nfile {human_bytes(report.bytes)} ({report.plan.bits_per_weight:.3f} bits per weight), "
        f"peak RAM {human_bytes(report.cost.peak_ram_bytes)}, disk {human_bytes(report.cost.disk_bytes)}, "
        + ", ".join(f"{stage} {human_seconds(seconds)}" for stage, seconds in report.cost.seconds.items())
    )
    for warning in report.plan.warnings:
        warn(warning)


def _tell_search(plan: FitPlan, *, as_json: bool) -> None:
    if as_json:
        print_json(plan.to_json())
        return
    stages = [(stage, human_seconds(seconds)) for stage, seconds in plan.cost.seconds.items()]
    stages.append(("all", human_seconds(sum(plan.cost.seconds.values()))))
    print_table("what fit will take", ("stage", "time"), stages, numeric=(1,))
    tell(
        f"\n{plan.tensors} tensors in {plan.candidates} candidates, {plan.configurations} configurations measured\n"
        f"files from {human_bytes(plan.smallest)} to {human_bytes(plan.largest)}, "
        f"peak RAM {human_bytes(plan.cost.peak_ram_bytes)}, disk {human_bytes(plan.cost.disk_bytes)}"
    )
