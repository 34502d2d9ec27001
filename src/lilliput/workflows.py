# SPDX-License-Identifier: Apache-2.0
"""The documented Python API: plan, calibrate, quantize, evaluate, inspect, generate, bench. Joins the rooms."""

from __future__ import annotations

import os
import re
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


def activation_kind(name: str) -> Literal["f32", "engine"]:
    """Parse --activations. Raises RecipeError."""
    if name == "f32" or name == "engine":
        return name
    raise RecipeError(f"unknown --activations '{name}'; known: f32, engine")


def thread_counts(words: str) -> tuple[int, ...]:
    """Parse a comma list of thread counts; empty means all cores. Raises RecipeError."""
    if not words:
        return (default_threads(),)
    counts = [word.strip() for word in words.split(",")]
    if not all(word.isdigit() and int(word) > 0 for word in counts):
        raise RecipeError(f"--threads '{words}' is not a comma list of positive whole numbers such as 1,2")
    return tuple(int(word) for word in counts)


def parse_bytes(text: str) -> int:
    """'5GB' -> 5 * 10^9, '2GiB' -> 2 * 2^30, '1000' -> 1000. Raises RecipeError."""
    units = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    unit = units.get(found[2].upper()) if found else None
    if found is None or unit is None:
        raise RecipeError(f"'{text}' is not a size; write a number and B, kB, MB, GB, KiB, MiB or GiB, such as 5GB")
    return int(float(found[1]) * unit)


@contextmanager
def opened(model: PathLike, revision: str | None = None) -> Iterator[ModelSource]:
    """Open a model by path, hub id, or the built-in name 'gulliver'; release its maps at the end."""
    name = str(model)
    # A folder of that name in the working directory is what its owner means.
    target = gulliver() if name == BUILT_IN and not Path(name).exists() else name
    with closing(open_model(target, revision=revision)) as source:
        yield source
