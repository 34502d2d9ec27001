# SPDX-License-Identifier: Apache-2.0
"""An evaluation as text (llama-perplexity's blocks, labels and order, so that scripts parse both) and as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from lilliput.evaluation.divergence import FEWEST_FOR_ERROR, Divergence
from lilliput.evaluation.paired import PairedRatio

if TYPE_CHECKING:
    from lilliput.evaluation.compare import EvaluationResult, FileResult

JsonRow = dict[str, float | int | str | None]
JsonReport = dict[str, JsonRow | list[JsonRow] | None]
# Below this multiple of the engine's own floor a file's KL says more about the engine than about the file.
FLOOR_MARGIN = 3.0


def as_json(result: EvaluationResult) -> JsonReport:
    """The object of `lilliput eval --json`; numbers that are not finite are null."""
    return {
        "base": {"path": result.base_name, "ppl": _finite(result.base_ppl.value)},
        "files": [_file_json(file) for file in result.files],
        "paired": [
            {
                "a": pair.a,
                "b": pair.b,
                "kld_ratio": _finite(pair.kld_ratio),
                "low": _finite(pair.low),
                "high": _finite(pair.high),
                "verdict": pair.verdict,
            }
            for pair in result.paired
        ],
        "floor": _file_json(result.floor) if result.floor is not None else None,
    }


def _file_json(file: FileResult) -> JsonRow:
    found = file.divergence
    return {
        "path": file.name,
        "bytes": file.bytes,
        "bits_per_weight": _finite(file.bits_per_weight),
        "tokens": found.tokens,
        "ppl": _finite(found.ppl.value),
        "ppl_stderr": _finite(found.ppl.stderr),
        "mean_kld": _finite(found.mean_kld.value),
        "mean_kld_stderr": _finite(found.mean_kld.stderr),
        "median_kld": _finite(found.kld_percentiles[50.0]),
        "kld_99_9": _finite(found.kld_percentiles[99.9]),
        "max_kld": _finite(found.kld_percentiles[100.0]),
        "same_top": _finite(found.same_top.value),
        "rms_dp": _finite(found.rms_dp.value),
    }


def as_text(result: EvaluationResult) -> str:
    """Every file's statistics, then one table, the pairs and the floor."""
    lines = [f"base {result.base_name}: {result.chunks} chunks of {result.context} tokens", ""]
    if result.base_nll.size < FEWEST_FOR_ERROR:
        lines[1:1] = [f"{result.base_nll.size} scored tokens are too few for a standard error: each is given as 0"]
    for file in result.files:
        lines += [f"{file.name} ({file.bytes:,} bytes, {file.bits_per_weight:.2f} bits per weight)", ""]
        lines += [*_statistics(file.divergence), ""]
    if len(result.files) > 1:
        lines += [*_table(result), ""]
    lines += [_pair_line(pair) for pair in result.paired]
    if result.floor is not None:
        lines += _floor_lines(result, result.floor)
    return "\n".join(lines).rstrip() + "\n"


def _statistics(found: Divergence) -> Iterator[str]:
    """llama-perplexity's three blocks."""
    yield "====== Perplexity statistics ======"
    yield f"Mean PPL(Q)                   : {found.ppl.value:10.6f} ± {found.ppl.stderr:10.6f}"
    yield f"Mean PPL(base)                : {found.base_ppl.value:10.6f} ± {found.base_ppl.stderr:10.6f}"
    yield f"Cor(ln(PPL(Q)), ln(PPL(base))): {100.0 * found.correlation:6.2f}%"
    yield f"Mean ln(PPL(Q)/PPL(base))     : {found.log_ratio.value:10.6f} ± {found.log_ratio.stderr:10.6f}"
    yield f"Mean PPL(Q)/PPL(base)         : {found.ratio.value:10.6f} ± {found.ratio.stderr:10.6f}"
    yield f"Mean PPL(Q)-PPL(base)         : {found.difference.value:10.6f} ± {found.difference.stderr:10.6f}"
    yield ""
    yield "====== KL divergence statistics ======"
    yield f"Mean    KLD: {found.mean_kld.value:10.6f} ± {found.mean_kld.stderr:10.6f}"
    for percent, value in sorted(found.kld_percentiles.items(), reverse=True):
        yield f"{_percent_label(percent)} KLD: {value:10.6f}"
    yield ""
    yield "====== Token probability statistics ======"
    yield f"Mean    Δp: {100.0 * found.mean_dp.value:6.3f} ± {100.0 * found.mean_dp.stderr:5.3f} %"
    for percent, value in sorted(found.dp_percentiles.items(), reverse=True):
        yield f"{_percent_label(percent)} Δp: {100.0 * value:6.3f}%"
    yield f"RMS Δp    : {100.0 * found.rms_dp.value:6.3f} ± {100.0 * found.rms_dp.stderr:5.3f} %"
    yield f"Same top p: {100.0 * found.same_top.value:6.3f} ± {100.0 * found.same_top.stderr:5.3f} %"


def _percent_label(percent: float) -> str:
    """Seven columns, as llama-perplexity pads them."""
    named = {0.0: "Minimum", 50.0: "Median ", 100.0: "Maximum"}
    return named.get(percent) or f"{percent:4.1f}%  "


def _table(result: EvaluationResult) -> Iterator[str]:
    width = max(len(file.name) for file in result.files)
    heads = (("bytes", 15), ("bpw", 6), ("PPL", 10), ("mean KLD", 10), ("±", 9), ("99.9%", 9), ("same top", 9))
    yield f"{'file':{width}} " + " ".join(f"{head:>{columns}}" for head, columns in heads)
    for file in result.files:
        found = file.divergence
        yield (
            f"{file.name:{width}} {file.bytes:15,} {file.bits_per_weight:6.2f} {found.ppl.value:10.4f} "
            f"{found.mean_kld.value:10.6f} {found.mean_kld.stderr:9.6f} {found.kld_percentiles[99.9]:9.5f} "
            f"{100.0 * found.same_top.value:8.3f}%"
        )


def _pair_line(pair: PairedRatio) -> str:
    interval = f"95 % {pair.low:.4f} to {pair.high:.4f}" if pair.has_interval else "no interval"
    return f"KL of {pair.a} / {pair.b}: {pair.kld_ratio:.4f}, {interval}: {pair.verdict}"


def _floor_lines(result: EvaluationResult, floor: FileResult) -> Iterator[str]:
    kld = floor.divergence.mean_kld
    yield f"engine floor: {floor.name} in its other arithmetic has KLD {kld.value:.6f} ± {kld.stderr:.6f} to itself"
    for file in result.files:
        if file.divergence.mean_kld.value < FLOOR_MARGIN * kld.value:
            yield f"{file.name}: within {FLOOR_MARGIN:.0f} times the floor of the engine with int8 activations"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
