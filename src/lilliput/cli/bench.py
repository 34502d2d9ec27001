# SPDX-License-Identifier: Apache-2.0
"""`lilliput bench`: how fast the native engine runs a file on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from lilliput.cli import options, values
from lilliput.cli.output import human_bytes, print_json, print_table, progress


def command(
    file: Annotated[str, typer.Argument(help="Model to run.")],
    threads: Annotated[str, typer.Option("--threads", help="Comma list, e.g. 1,2; default all cores.")] = "",
    prefill: Annotated[int, typer.Option("--prefill", min=0, help="Prompt tokens; 0 skips.")] = 512,
    decode: Annotated[int, typer.Option("--decode", min=0, help="Generated tokens; 0 skips.")] = 128,
    depth: Annotated[int, typer.Option("--depth", min=0, help="Tokens already in the cache.")] = 0,
    kv: options.KvCache = "f16",
    repeat: Annotated[int, typer.Option("--repeat", min=1, help="Timed repetitions.")] = 5,
    json: options.Json = False,
) -> None:
    """Measure prefill and decode, one process per row, medians with their spread."""
    from lilliput import workflows
    from lilliput.errors import RuntimeModelError
    from lilliput.runtime.speed import speed_tests

    if prefill == 0 and decode == 0:
        raise RuntimeModelError("nothing to measure: --prefill and --decode are both 0; give one of them tokens")
    tests = speed_tests(
        values.thread_counts(threads), prefill=prefill, decode=decode, depth=depth, repeat=repeat,
        kv_format=values.kv_format(kv),
    )  # fmt: skip
    with progress("measuring") as advance:
        rows = workflows.bench(file, tests, progress=advance)
    if json:
        print_json({"rows": [row.to_json() for row in rows]})
        return
    table = [
        (str(row.threads), row.test, str(row.n), str(row.depth), f"{row.tok_s_median:.1f}",
         f"{row.tok_s_min:.1f} to {row.tok_s_max:.1f}", human_bytes(row.peak_rss_bytes))
        for row in rows
    ]  # fmt: skip
    headings = ("threads", "test", "tokens", "depth", "tok/s", "spread", "peak memory")
    print_table(file, headings, table, numeric=(0, 2, 3, 4, 5, 6))
