# SPDX-License-Identifier: Apache-2.0
"""`lilliput plan`: what will happen, from headers only."""

from __future__ import annotations

from lilliput.cli import options
from lilliput.cli.output import human_bytes, human_seconds, print_json, print_table, tell, warn


def command(
    model: options.Model,
    to: options.To = "Q4_K_M",
    output: options.Output = None,
    text: options.Text = None,
    statistics: options.StatisticsFile = None,
    imatrix: options.ImatrixFile = None,
    effort: options.Effort = None,
    method: options.Method = None,
    transform: options.Transforms = None,
    threads: options.Threads = None,
    revision: options.Revision = None,
    json: options.Json = False,
) -> None:
    """Show the per-tensor plan, the exact size, peak RAM, disk and time. Reads headers only."""
    from lilliput import workflows

    guidance = workflows.Guidance(tuple(text or ()), statistics, imatrix)
    chosen = workflows.QuantizeOptions(
        effort=effort, method=method, transforms=tuple(transform or ()), threads=threads, revision=revision
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
    headings = ("tensor", "shape", "format", "size", "reason")
    print_table(f"{model} -> {to}", headings, rows, numeric=(1, 3))
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
