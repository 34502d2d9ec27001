# SPDX-License-Identifier: Apache-2.0
"""The command line: one file per subcommand; each parses, calls one workflow and prints."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from typer.main import get_command

import lilliput
from lilliput.cli import bench, calibrate, convert, evaluate, fit, formats, inspect, plan, push, quantize, report, run
from lilliput.cli.output import print_json, report_failure

app = typer.Typer(
    name="lilliput",
    help="Makes big language models small, and proves what it cost.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _say_version(is_asked: bool) -> None:
    if is_asked:
        print(f"lilliput {lilliput.__version__}")
        raise typer.Exit()


@app.callback()
def _before_any_command(
    _version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_say_version, help="Print the version.")
    ] = False,
) -> None:
    return


app.command("plan")(plan.command)
app.command("calibrate")(calibrate.command)
app.command("quantize")(quantize.command)
app.command("fit")(fit.command)
app.command("convert")(convert.command)
app.command("eval")(evaluate.command)
app.command("report")(report.command)
app.command("push")(push.command)
app.command("run")(run.command)
app.command("bench")(bench.command)
app.command("inspect")(inspect.command)
app.command("formats")(formats.command)

INTERRUPTED = 130
USAGE = 2


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. 0 done, 1 a failure with one clear line on stderr, 2 wrong usage, 130 Ctrl-C."""
    words = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        code = get_command(app).main(words, prog_name="lilliput", standalone_mode=False)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:  # every failure leaves through one door, as one line and an exit code
        return report_failure(error, as_json="--json" in words, usage_code=USAGE)
    if code == INTERRUPTED:
        kept = "; the same command goes on from what its work folder holds" if words[0] == "fit" else ""
        print(f"interrupted{kept}", file=sys.stderr)
        if "--json" in words:
            print_json({"error": {"type": "KeyboardInterrupt", "message": "interrupted"}})
    return code if isinstance(code, int) else 0
