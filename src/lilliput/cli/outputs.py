# SPDX-License-Identifier: Apache-2.0
"""Several files of one model, as a table: what each is, how far it is from the reference, and what runs it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import typer

from lilliput.cli.output import human_bytes, print_json, print_table, say
from lilliput.recipes.plan import PLAIN_FLOATS

if TYPE_CHECKING:
    from lilliput.converting import ConvertResult


def tell_outputs(
    results: Sequence[ConvertResult], *, reference: str, as_json: bool, earlier: Mapping[str, object] | None = None
) -> None:
    """Print the table, or one JSON object; leave with code 1 where a file is farther off than its moves allow.

    earlier: other fields of the object.
    """
    if as_json:
        is_within = all(result.is_within_bound for result in results)
        outputs = [result.to_json() for result in results]
        print_json({**(earlier or {}), "reference": reference, "within_bound": is_within, "outputs": outputs})
    else:
        headings = ("output", "container", "size", "layers", "farthest", "bound", "runs in")
        rows = [_row(result) for result in results]
        title = f"every file reopened and compared with {reference}; differences over the largest weight of a tensor"
        print_table(title, headings, rows, numeric=(2, 4, 5))
    outside = [result.target for result in results if not result.is_within_bound]
    if outside:
        say(
            f"error: {outside[0]}: its weights are farther from the model's than rounded scales explain; choose "
            "another format for this output"
        )
        raise typer.Exit(1)


def _row(result: ConvertResult) -> tuple[str, ...]:
    counts = Counter(tensor.format.upper() for tensor in result.tensors if tensor.format not in PLAIN_FLOATS)
    decoded = sum(tensor.move.value == "decoded" for tensor in result.tensors)
    layers = [f"{count} {name}" for name, count in counts.most_common()]
    layers += [f"{decoded} as floats"] if decoded else []
    bound = "none" if result.bound is None else _small(result.bound)
    return (
        result.target.name, result.container, human_bytes(result.bytes), ", ".join(layers), _small(result.max_error),
        bound, ", ".join(result.runtimes) or "not tried here",
    )  # fmt: skip


def _small(value: float) -> str:
    return "0" if value == 0.0 else f"{value:.1e}"
