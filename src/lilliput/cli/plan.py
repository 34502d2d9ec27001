# SPDX-License-Identifier: Apache-2.0
"""`lilliput plan`: what will happen, from headers only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from lilliput.cli import options, values
from lilliput.cli.output import (
    human_bytes,
    human_seconds,
    measured_speeds,
    print_assumptions,
    print_json,
    print_table,
    tell,
    warn,
)

if TYPE_CHECKING:
    from lilliput.fitting import FitPlan, Goal
    from lilliput.recipes.estimate import CostEstimate
    from lilliput.workflows import PlanReport


# What `plan` without a target does not look at, and what it does not look at with one.
SEARCH_ONLY = ("context", "kv", "runtime", "formats")
PRESET_ONLY = ("output", "statistics", "imatrix", "transform", "activations")
# Stages of `quantize` and of `fit`, in words.
QUANTIZE_STAGES = {
    "start": "loading torch",
    "read": "reading and fingerprinting the model",
    "calibrate": "running the text through the model",
    "quantize": "choosing codes",
    "tune": "tuning scales and norms end to end",
    "write": "writing the file",
    "verify": "reading it back and comparing",
}
FIT_STAGES = {
    "start": "loading torch and reading the model",
    "candidates": "every tensor in every format, in the work folder",
    "sensitivity": "how much each tensor matters: forward and backward over the text",
    "measuring": "the KL of trial mixes",
    "quantize": "the file itself, and its KL on the texts set aside",
}


def command(
    call: typer.Context,
    model: options.Model,
    to: Annotated[str | None, typer.Option("--to", help="As for quantize; default Q4_K_M.")] = None,
    output: options.Output = None,
    text: options.Text = None,
    statistics: options.StatisticsFile = None,
    imatrix: options.ImatrixFile = None,
    effort: options.Effort = None,
    method: options.Method = None,
    transform: options.Transforms = None,
    activations: options.StaticActivations = None,
    size: options.Size = None,
    ram: options.Ram = None,
    context: options.Context = None,
    kv: options.KvCache = "f16",
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
    """Show the per-tensor plan, exact size, RAM, disk and time. Reads headers only.

    With a target (--size, --ram, --bpw, --max-kld, --min-speed): what `fit` will take.
    """
    from lilliput import fitting, workflows
    from lilliput.errors import RecipeError

    targets = (size, ram, bpw, max_kld, min_speed)
    if any(target is not None for target in targets):
        if to is not None:
            raise RecipeError("--to names a preset, and a target asks for a search: give one of them")
        options.refuse(call, PRESET_ONLY, "with a target, which plans a search (`fit`); leave it out, or the target")
        options.refuse_for_search(call)
        if not text:
            raise RecipeError("a search measures on text: give --text FILE, or --text builtin")
        goal = replace(options.goal(size, ram, context, bpw, max_kld, min_speed), kv_format=values.kv_format(kv))
        search = fitting.FitOptions(
            runtime=runtime, formats=options.candidate_names(formats), effort=effort, method=method, tokens=tokens,
            threads=threads, revision=revision,
        )  # fmt: skip
        with measured_speeds() as measuring:
            planned = fitting.plan_fit(model, goal, text=text, options=search, measuring=measuring)
        _tell_search(planned, goal, as_json=json)
        return
    options.refuse(call, SEARCH_ONLY, "without a target of a search; add one, such as --size 5GB, or leave it out")
    options.refuse_for_quantize(call, effort=effort)
    to = to or "Q4_K_M"
    guidance = workflows.Guidance(tuple(text or ()), statistics, imatrix)
    chosen = workflows.QuantizeOptions(
        effort=effort,
        method=method,
        transforms=tuple(transform or ()),
        activations=activations,
        tokens=tokens,
        threads=threads,
        revision=revision,
    )
    with measured_speeds() as measuring:
        report = workflows.plan(model, to, output, guidance=guidance, options=chosen, measuring=measuring)
    if json:
        print_json(report.to_json())
        return
    _tell_plan(report, f"{model} -> {to}", model)


def _tell_plan(report: PlanReport, title: str, model: str) -> None:
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
    print_table(title, ("tensor", "shape", "format", "size", "reason"), rows, numeric=(1, 3), is_prose=True)
    print_assumptions(model, report.plan.assumed)
    for item in report.plan.transforms:
        strength = "" if item.strength is None else f" at strength {item.strength:g}"
        skipped = "".join(f"; not at {edge}: {reason}" for edge, reason in item.skipped.items())
        tell(f"\n{item.name}{strength} at {', '.join(item.edges)}{skipped}")
    tell(
        f"\nfile {human_bytes(report.bytes)}: tensors {human_bytes(report.plan.tensor_bytes)} "
        f"({report.plan.bits_per_weight:.3f} bits per weight), the rest tokenizer and metadata\n"
        f"takes {human_bytes(report.cost.peak_ram_bytes)} of RAM, {human_bytes(report.cost.disk_bytes)} of free disk\n"
    )
    _tell_times(report.cost, QUANTIZE_STAGES)
    for warning in report.plan.warnings:
        warn(warning)


def _tell_times(cost: CostEstimate, words: Mapping[str, str]) -> None:
    stages = [(stage, human_seconds(seconds), words.get(stage, "")) for stage, seconds in cost.seconds.items()]
    stages.append(("all", human_seconds(sum(cost.seconds.values())), ""))
    print_table("time", ("stage", "takes", "what it does"), stages, numeric=(1,), is_prose=True)
    tell(_speeds_words(cost))


def _speeds_words(cost: CostEstimate) -> str:
    """Where times come from, and when they are measured anew."""
    from lilliput.recipes.machine import KEPT_BUSY_SECONDS, KEPT_SECONDS, cache_folder

    when = f"{human_seconds(cost.speeds_age)} ago" if cost.speeds_age >= 60 else "now"
    kept = f"{KEPT_SECONDS / 86_400:.0f} days"
    if cost.is_busy:
        when += " beside other work, so rather too long"
        kept = f"{KEPT_BUSY_SECONDS / 3600:.0f} hour"
    return f"at speeds of this machine measured {when}; kept {kept} in {cache_folder() / 'machine.json'}"


def _tell_search(plan: FitPlan, goal: Goal, *, as_json: bool) -> None:
    if as_json:
        print_json(plan.to_json())
        return
    _tell_times(plan.cost, FIT_STAGES)
    tell(
        f"\n{plan.tensors} tensors in {plan.candidates} candidates, {plan.configurations} trial mixes measured\n"
        f"takes {human_bytes(plan.cost.peak_ram_bytes)} of RAM, {human_bytes(plan.cost.disk_bytes)} of free disk\n"
        f"these formats make files of {human_bytes(plan.smallest)} to {human_bytes(plan.largest)}; {_reach(plan, goal)}"
    )


def _reach(plan: FitPlan, goal: Goal) -> str:
    """Whether the targets can be met. Those of bytes can, or there were no plan."""
    if goal.max_kld is not None or goal.min_speed is not None:
        return "whether KL or speed are within reach is known only when they are measured"
    if plan.limit >= plan.largest:
        return "the target leaves room for the largest"
    return f"the target is within reach: the file will have at most {human_bytes(plan.limit)}"
