# SPDX-License-Identifier: Apache-2.0
"""The lines of benchmarks/results/quality.jsonl: one for each model, text, type and method."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import lilliput
from lilliput.evaluation.paired import PairedRatio

RESULTS = Path(__file__).parent / "results" / "quality.jsonl"


@dataclass(frozen=True, slots=True)
class Measured:
    """What one line is about; two lines that agree in this measure the same thing, the later one counts.

    domain: "in-domain" text is of the kind that was calibrated on, "off-domain" is not; neither was calibrated on.
    type: a number format that every matrix has (is_pure), or a preset's mixture.  method: a method or an effort.
    peer: whose file it is held against.
    """

    model: str
    domain: str
    text: str
    type: str
    method: str
    is_pure: bool
    peer: str = "llama-quantize --imatrix"


def result_line(
    measured: Measured, pair: PairedRatio, mean_kld: float, peer_mean_kld: float, **more: object
) -> dict[str, object]:
    """The line: KL of both in nats, their ratio with its paired 95 % interval, and whatever else is known."""
    return {
        **asdict(measured),
        "mean_kld": _rounded(mean_kld),
        "peer_mean_kld": _rounded(peer_mean_kld),
        "ratio": _rounded(pair.kld_ratio),
        "low": _rounded(pair.low),
        "high": _rounded(pair.high),
        "resampled": pair.chunks,
        **{name: _rounded(value) if isinstance(value, float) else value for name, value in more.items()},
        "version": lilliput.__version__,
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def keep(lines: Iterable[dict[str, object]], path: Path | None) -> None:
    """Print each line as it comes, one for the eye on stderr; append to the file if there is one."""
    for line in lines:
        print(json.dumps(line), flush=True)
        name = f"{line['model']} {line['domain']} {line['type']}{'' if line['is_pure'] else ' (mixture)'}"
        print(
            f"{name:44} {line['method']:18} {line['mean_kld']:.6f} / {line['peer_mean_kld']:.6f} "
            f"= {line['ratio']:.3f} [{line['low']:.3f}, {line['high']:.3f}]",
            file=sys.stderr,
        )
        if path is not None:
            with path.open("a", encoding="utf-8") as out:
                out.write(json.dumps(line) + "\n")


def read(path: Path) -> list[dict[str, object]]:
    """Lines of a results file; of those that measure the same thing only the last."""
    latest: dict[tuple[object, ...], dict[str, object]] = {}
    fields = Measured.__dataclass_fields__
    for text in path.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        latest[tuple(line.get(field) for field in fields)] = line
    return list(latest.values())


def commit() -> str:
    """Of this repository, short."""
    words = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()


def _rounded(value: float) -> float | None:
    """Six significant digits; None where it is no number, as JSON has none for that."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
