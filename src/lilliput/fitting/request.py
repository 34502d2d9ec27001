# SPDX-License-Identifier: Apache-2.0
"""What `fit` is asked for and what it answers: plain records."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, cast

from lilliput.architectures.architecture import Json
from lilliput.errors import RecipeError
from lilliput.runtime.session import KvFormat
from lilliput.search.frontier import FRONTIER
from lilliput.search.predict import Agreement

SearchKind = Literal["evolution", "agent", "none"]
SensitivityKind = Literal["gradient", "measured"]
# What the work folder holds beside the frontier: what it is about, predicted costs, the last result.
IDENTITY, COSTS, RESULT = "identity.json", "costs.json", "result.json"


@dataclass(frozen=True, slots=True)
class Goal:
    """What the model must stay within; at least one.

    size: bytes of the file.  ram: bytes that the runtime keeps of the file, and of the KV cache at `context` tokens in
    `kv_format`.  bits_per_weight: of tensors.
    max_kld: mean KL from the original on the selection text, nats.  min_speed: generated tokens a second, here.
    """

    size: int | None = None
    ram: int | None = None
    context: int | None = None
    bits_per_weight: float | None = None
    max_kld: float | None = None
    min_speed: float | None = None
    kv_format: KvFormat = "f16"

    def __post_init__(self) -> None:
        targets = (self.size, self.ram, self.bits_per_weight, self.max_kld, self.min_speed)
        if all(target is None for target in targets):
            raise RecipeError("fit needs a target: give --size, --ram, --bpw, --max-kld or --min-speed")
        for name, target in zip(("size", "ram", "bpw", "max-kld", "min-speed"), targets, strict=True):
            if target is not None and not target > 0:
                raise RecipeError(f"--{name} is {target}, must be above 0")


@dataclass(frozen=True, slots=True)
class FitOptions:
    """How to search.

    runtime: a name in RUNTIMES.  formats: candidates; empty means the runtime's.  effort, method: how codes are
    chosen, as in `quantize`.  sensitivity: by a backward pass, or by measuring each choice alone.
    search: refines the exact solution by real KL; evaluations: of the selection text, for that, with `seed`.
    tokens: of the text, None means STREAM_TOKENS.  work: folder that keeps everything, None means OUTPUT.fit.
    selection, held_out: texts in place of parts of the calibration text.
    """

    runtime: str = "llama.cpp"
    formats: tuple[str, ...] = ()
    effort: str | None = None
    method: str | None = None
    sensitivity: SensitivityKind = "gradient"
    search: SearchKind = "none"
    evaluations: int = 60
    seed: int = 0
    tokens: int | None = None
    threads: int | None = None
    revision: str | None = None
    work: Path | None = None
    selection: Path | None = None
    held_out: Path | None = None
    force: bool = False


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its 95 % interval; NaN where there is too little text for one."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class FitResult:
    """What `fit` wrote. KL in nats a token, of the written file.

    predicted: of the chosen configuration.  selection, held_out: measured; no part of the search saw the held-out text.
    agreement: of predictions with measurements.  search: which search, and its history of (evaluations, KL).
    tokens_per_second: measured, where speed was asked for.  ram_bytes: as in `Goal`, where that was asked for.
    """

    output: Path
    bytes: int
    bits_per_weight: float
    predicted: float
    selection: Interval
    held_out: Interval
    agreement: Agreement
    search: str
    history: tuple[tuple[float, float], ...]
    tokens_per_second: float | None
    ram_bytes: int | None
    work: Path
    notes: tuple[str, ...] = ()
    is_up_to_date: bool = False

    def to_json(self) -> dict[str, Json]:
        """The contract of `lilliput fit --json`."""
        content = cast("dict[str, Json]", json.loads(json.dumps(asdict(self), default=str)))
        return {**content, "frontier": str(self.work / FRONTIER)}


def result_from_json(content: dict[str, Json], output: Path, work: Path) -> FitResult:
    """The record of an earlier run, as the run gave it."""
    nested = {
        "selection": Interval(**cast("dict[str, float]", content["selection"])),
        "held_out": Interval(**cast("dict[str, float]", content["held_out"])),
        "agreement": Agreement(**cast("dict[str, float]", content["agreement"])),  # type: ignore[arg-type]
        "history": tuple(tuple(pair) for pair in cast("list[list[float]]", content["history"])),
        "notes": tuple(cast("list[str]", content["notes"])),
        "output": output,
        "work": work,
        "is_up_to_date": True,
    }
    plain = {name: value for name, value in content.items() if name not in nested and name != "frontier"}
    return FitResult(**plain, **nested)  # type: ignore[arg-type]
