# SPDX-License-Identifier: Apache-2.0
"""How every subcommand speaks: progress and words on stderr, one JSON object on stdout with --json."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, TextIO

from lilliput.errors import LilliputError

# Every command imports this module, most print a line at their end: rich is imported when something is printed.
if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

    from lilliput.architectures.architecture import Json
    from lilliput.recipes.assumptions import Assumption

Advance = Callable[[int, int], None]
# Between the columns of a table.
GAP = "  "
# Characters of a line below which prose is cut by the terminal and not wrapped further.
LEAST_PROSE = 16
# Characters of a line below which progress is words and numbers alone.
LEAST_FOR_BAR = 60
MOST_STEPS = 100_000


def console(*, to_stdout: bool = False) -> Console:
    """A console without markup or colour off a terminal."""
    from rich.console import Console

    stream = sys.stdout if to_stdout else sys.stderr
    # Off a terminal rich assumes 80 columns and cuts tensor names; a pipe has no width.
    width = None if stream.isatty() else 200
    return Console(file=stream, highlight=False, markup=False, soft_wrap=not stream.isatty(), width=width)


def print_json(value: Mapping[str, object]) -> None:
    """One JSON object on stdout; non-finite numbers become null."""
    json.dump(finite(value), sys.stdout, ensure_ascii=False, allow_nan=False)
    sys.stdout.write("\n")


def finite(value: object) -> Json:
    """The same value with every NaN or infinity as None and every container as plain JSON."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, str) or value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, Sequence):
        return [finite(item) for item in value]
    return str(value)


def say(message: str) -> None:
    """One line for the user, on stderr."""
    _print(message, sys.stderr)


def tell(message: str) -> None:
    """One line of the result, on stdout."""
    _print(message, sys.stdout)


def warn(message: str) -> None:
    """One warning for the user, on stderr."""
    if sys.stderr.isatty():
        console().print(f"warning: {message}", style="yellow")
    else:
        print(f"warning: {message}", file=sys.stderr)


def _print(message: str, stream: TextIO) -> None:
    # rich breaks long lines between words; what fits waits for no import of it.
    if stream.isatty() and any(len(line) > shutil.get_terminal_size().columns for line in message.split("\n")):
        console(to_stdout=stream is sys.stdout).print(message)
    else:
        print(message, file=stream)


def print_table(
    title: str,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numeric: Sequence[int] = (),
    is_prose: bool = False,
) -> None:
    """A table on stdout. numeric: indices of right-aligned columns.

    On a narrow terminal the last column is cut, or, where is_prose, wrapped; sentences that many rows share become
    numbered notes below the table.
    """
    shown = console(to_stdout=True)
    widths = [max([len(heading), *(len(row[i]) for row in rows)]) for i, heading in enumerate(headings)]
    rest = shown.width - sum(widths[:-1]) - len(GAP) * (len(headings) - 1)
    notes: list[str] = []
    if is_prose and widths[-1] > rest:
        sentences = list(dict.fromkeys(row[-1] for row in rows))
        if len(sentences) <= len(rows) / 2:
            notes = sentences
            rows = [(*row[:-1], f"({sentences.index(row[-1]) + 1})") for row in rows]
            widths[-1] = len(headings[-1])
        else:
            rows = [line for row in rows for line in _wrapped(row, max(rest, LEAST_PROSE))]
    widths[-1] = max(min(widths[-1], rest), len(headings[-1]))
    shown.print(title)
    shown.print(_line(headings, widths, numeric), style="bold")
    for row in rows:
        shown.print(_line(row, widths, numeric))
    for number, note in enumerate(notes, 1):
        shown.print(textwrap.fill(note, shown.width, initial_indent=f"({number}) ", subsequent_indent=" " * 4))


def _wrapped(row: Sequence[str], width: int) -> list[Sequence[str]]:
    """The row as several, its last cell wrapped."""
    first, *more = textwrap.wrap(row[-1], width) or [""]
    return [(*row[:-1], first), *((*[""] * (len(row) - 1), line) for line in more)]


def print_assumptions(model: str, assumed: Sequence[Assumption]) -> None:
    """What the tensors of an unknown architecture were taken for; nothing for a known one."""
    if not assumed:
        return
    rows = [(item.kind, item.tensors, str(item.count), item.shape_text, item.reason) for item in assumed]
    headings = ("taken for", "tensors", "count", "shape", "why")
    title = f"\nno family here knows {model}: what its tensors were taken for, by name and shape (# is a number)"
    print_table(title, headings, rows, numeric=(2, 3), is_prose=True)


def _line(cells: Sequence[str], widths: Sequence[int], numeric: Sequence[int]) -> str:
    padded = []
    for index, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        text = cell if len(cell) <= width else cell[: width - 1] + "…"
        padded.append(text.rjust(width) if index in numeric else text.ljust(width))
    return GAP.join(padded).rstrip()


def human_bytes(count: float) -> str:
    """Decimal units: GB = 10^9."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count:.0f} B"


def human_seconds(seconds: float) -> str:
    """1 h 02 min, 3 min 20 s, 4.1 s."""
    if seconds >= 3600:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"
    return f"{int(seconds // 60)} min {int(seconds % 60):02d} s" if seconds >= 60 else f"{seconds:.1f} s"


@contextmanager
def progress(label: str) -> Iterator[Advance]:
    """A progress bar on stderr with a remaining time; silent off a terminal."""
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

    shown = console()
    columns: list[ProgressColumn] = [TextColumn("{task.description}"), TextColumn("{task.fields[done]}")]
    # rich would cut the numbers to keep a bar of four characters.
    if shown.width >= LEAST_FOR_BAR:
        columns[1:1] = [BarColumn()]
        columns.append(TimeRemainingColumn())
    with Progress(*columns, console=shown, transient=True, disable=not shown.is_terminal) as bar:
        task = bar.add_task(label, total=None, done="")

        def advance(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, done=_share(done, total))

        yield advance


def _share(done: int, total: int) -> str:
    """3/12; a percentage where steps are too many to mean something, such as weights."""
    return f"{done}/{total}" if total < MOST_STEPS else f"{100 * done // total} %"


@contextmanager
def measured_speeds() -> Iterator[Callable[[str], None]]:
    """What says on stderr that speeds of this machine are measured; on a terminal, which one now."""
    with ExitStack() as stack:
        status: Status | None = None
        begun = False

        def measuring(name: str) -> None:
            nonlocal status, begun
            if not begun:
                begun = True
                say("measuring how fast this machine is: seconds, or a minute for a search; then remembered for days")
                status = stack.enter_context(console().status(name)) if sys.stderr.isatty() else None
            elif status is not None:
                status.update(name)

        yield measuring


def report_failure(error: Exception, *, as_json: bool, usage_code: int) -> int:
    """Print one line for the error and return the exit code."""
    exit_code = usage_code if getattr(error, "exit_code", None) == usage_code else 1
    if hasattr(error, "format_message"):
        message = str(error.format_message())
    elif isinstance(error, LilliputError):
        message = str(error)
    elif isinstance(error, OSError):
        message = f"{error.strerror or error}: {error.filename or ''}".rstrip(": ")
    elif isinstance(error, MemoryError):
        message = "out of memory; try a smaller --memory-limit, a shorter --context, or a smaller model"
    else:
        message = (
            f"internal error: {type(error).__name__}: {error} (set LILLIPUT_LOG=debug for the trace, please report it)"
        )
    if os.environ.get("LILLIPUT_LOG", "").lower() == "debug":
        traceback.print_exception(error)
    line = " ".join(message.split())
    print(f"error: {line}", file=sys.stderr)
    if as_json:
        print_json({"error": {"type": type(error).__name__, "message": line}})
    return exit_code
