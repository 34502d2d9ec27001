# SPDX-License-Identifier: Apache-2.0
"""The documented Python API: plan, calibrate, quantize, evaluate, inspect, generate, bench. Joins the rooms."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lilliput.architectures.architecture import Json

Progress = Callable[[int, int], None]
PathLike = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class QuantizeResult:
    """What `quantize` wrote. bytes: all files.  bits_per_weight: tensor bytes only, tied tensors once."""

    output: tuple[Path, ...]
    bytes: int
    bits_per_weight: float
    ledger: Path
    warnings: tuple[str, ...]
    is_up_to_date: bool

    def to_json(self) -> dict[str, Json]:
        """The contract of `lilliput quantize --json`."""
        return {
            "output": [str(path) for path in self.output],
            "bytes": self.bytes,
            "bits_per_weight": self.bits_per_weight,
            "ledger": str(self.ledger),
        }


def default_threads() -> int:
    """LILLIPUT_THREADS, or the processors this process may use."""
    set_by_user = os.environ.get("LILLIPUT_THREADS", "")
    return int(set_by_user) if set_by_user.isdigit() and int(set_by_user) > 0 else len(os.sched_getaffinity(0))


def chosen_seed(seed: int | None) -> int:
    """The given seed, or one drawn from the system that the caller prints."""
    return secrets.randbelow(2**31) if seed is None else seed
