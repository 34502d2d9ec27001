# SPDX-License-Identifier: Apache-2.0
"""`lilliput bench`: how fast the native engine runs a file on this machine."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from lilliput.cli import options, values
from lilliput.cli.output import human_bytes, print_json, print_table, progress


def command(
    file: Annotated[str, typer.Argument(help="Model to run.")],
    threads: Annotated[str, typer.Option("--threads", help="Comma list, e.g. 1,2; default all cores.")] = "",
    prefill: Annotated[int, typer.Option("--prefill", metavar="<number>", min=0, help="Prompt tokens; 0 skips.")] = 512,
    decode: Annotated[
        int, typer.Option("--decode", metavar="<number>", min=0, help="Generated tokens; 0 skips.")
    ] = 128,
    batch: Annotated[
        str, typer.Option("--batch", help="Tokens of one pass when decoding, comma list, as when guesses are verified.")
    ] = "1",
    depth: Annotated[int, typer.Option("--depth", metavar="<number>", min=0, help="Tokens already in the cache.")] = 0,
    kv: options.KvCache = "f16",
    repack: options.Repack = True,
    instruction_set: Annotated[
        str,
        typer.Option(
            "--instruction-set", help="Kernels: scalar, avx2, avx_vnni, avx512_vnni, neon_dotprod; default the best."
        ),
    ] = "",
    repeat: Annotated[int, typer.Option("--repeat", metavar="<number>", min=1, help="Timed repetitions.")] = 5,
    json: options.Json = False,
) -> None:
    """Measure prefill and decode, one process per row.

    Medians, their spread, and their share of what the machine allows: the int8 peak of its vector units, or for few
    tokens a pass the time to read weights and cache, both probed in the same process. Ready and first token count from
    the start of the process.
    """
    from lilliput import workflows
    from lilliput.errors import RuntimeModelError
    from lilliput.runtime.speed import speed_tests

    if prefill == 0 and decode == 0:
        raise RuntimeModelError("nothing to measure: --prefill and --decode are both 0; give one of them tokens")
    tests = speed_tests(
        values.thread_counts(threads), prefill=prefill, decode=decode, depth=depth, repeat=repeat,
        batches=values.positive_integers(batch, "--batch"),
    )  # fmt: skip
    isa = values.instruction_set(instruction_set)
    tests = [replace(test, kv_format=values.kv_format(kv), repack=repack, instruction_set=isa) for test in tests]
    with progress("measuring") as advance:
        rows = workflows.bench(file, tests, progress=advance)
    if json:
        print_json({"rows": [row.to_json() for row in rows]})
        return
    table = []
    for row in rows:
        test = row.test if row.batch == 1 else f"{row.test} by {row.batch}"
        spread = f"{row.tok_s_min:.1f} to {row.tok_s_max:.1f}"
        share = f"{row.tok_s_median / row.limit_tok_s:.0%}"
        rates = (f"{row.tok_s_median:.1f}", share, spread, f"{row.ready_s:.2f} s", f"{row.first_token_s:.2f} s")
        table.append((str(row.threads), test, str(row.n), str(row.depth), *rates, human_bytes(row.peak_rss_bytes)))
    headings = ("threads", "test", "tokens", "depth", "tok/s", "of limit", "spread", "ready", "first token", "memory")
    print_table(file, headings, table, numeric=(0, 2, 3, 4, 5, 6, 7, 8, 9))
