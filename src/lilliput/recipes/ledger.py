# SPDX-License-Identifier: Apache-2.0
"""The ledger: what was really done to each tensor, beside what was planned. One JSON file next to the output.

It names files by basename only, so that it can be published with the model.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePath

from pydantic import TypeAdapter, ValidationError

from lilliput.errors import ContainerError, PublishError
from lilliput.recipes.plan import Plan
from lilliput.records import AppliedEdge, TensorPlan

SCHEMA = 1
# Packages whose version can change the bytes of an output.
RECORDED_PACKAGES = ("lilliput", "numpy", "gguf", "tokenizers", "torch", "transformers")


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """What happened to one tensor.

    relative_error: sum (w - v)^2 / sum w^2, v the stored values; None where nothing was measured.
    weighted_error: the same with every square weighted by its column's input mean square; None without statistics.
    tokens: inputs that the statistics of this tensor saw, 0 without.
    """

    name: str
    source_name: str
    shape: tuple[int, ...]
    planned_format: str
    format: str
    planned_method: str
    method: str
    reason: str
    bytes: int
    relative_error: float | None = None
    weighted_error: float | None = None
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Ledger:
    """Everything that is needed to say what a file is and to make it again.

    model, datasets: basenames.  fingerprints: "plan", "model", "statistics" ... -> sha256 hex.
    notes: what the user was warned of.  transforms: what was rewritten before anything was rounded.
    """

    recipe: str
    model: str
    output: tuple[str, ...]
    bits_per_weight: float
    bytes: int
    fingerprints: Mapping[str, str]
    entries: tuple[LedgerEntry, ...]
    datasets: tuple[str, ...] = ()
    seed: int | None = None
    versions: Mapping[str, str] = field(default_factory=lambda: versions())
    notes: tuple[str, ...] = ()
    transforms: tuple[AppliedEdge, ...] = ()

    def to_json(self) -> str:
        """Indented JSON; numbers that are not finite become null, paths become basenames."""
        content = {
            "schema": SCHEMA,
            **asdict(self),
            "model": PurePath(self.model).name,
            "output": [PurePath(path).name for path in self.output],
            "datasets": [PurePath(path).name for path in self.datasets],
            "entries": [{name: _finite(value) for name, value in asdict(entry).items()} for entry in self.entries],
        }
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"

    def write(self, path: Path) -> None:
        """Write under a temporary name, then rename. Raises PublishError."""
        temporary = path.with_name(path.name + ".partial")
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(self.to_json())
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise PublishError(f"{path}: the ledger cannot be written: {error.strerror or error}") from error


def entry_for(
    row: TensorPlan,
    *,
    method: str | None = None,
    reason: str | None = None,
    errors: tuple[float | None, float | None] = (None, None),
    tokens: int = 0,
) -> LedgerEntry:
    """The entry of a tensor that was done as `row` planned, but for `method` where it fell back for `reason`.

    errors: relative and weighted.
    """
    return LedgerEntry(
        name=row.name,
        source_name=row.source_name,
        shape=row.shape,
        planned_format=row.format.name.upper(),
        format=row.format.name.upper(),
        planned_method=row.method,
        method=method or row.method,
        reason=reason or row.reason,
        bytes=row.nbytes,
        relative_error=errors[0],
        weighted_error=errors[1],
        tokens=tokens,
    )


def check_complete(plan: Plan, entries: Iterable[LedgerEntry]) -> None:
    """Raise PublishError unless every planned tensor was done, once, in the planned format, and no other was."""
    done: dict[str, LedgerEntry] = {}
    for entry in entries:
        if entry.name in done:
            raise PublishError(f"{entry.name}: was written twice; this is a fault of lilliput, please report it")
        done[entry.name] = entry
    missing = [row.name for row in plan.rows if row.name not in done]
    if missing:
        raise PublishError(f"{len(missing)} planned tensors were not done (first: {missing[0]}); nothing is published")
    planned = {row.name: row for row in plan.rows}
    for name, entry in done.items():
        if name not in planned:
            raise PublishError(f"{name}: was written but not planned; nothing is published")
        wanted = planned[name]
        if entry.format.lower() != wanted.format.name or entry.shape != wanted.shape:
            raise PublishError(
                f"{name}: planned as {wanted.format.name.upper()} {list(wanted.shape)}, done as {entry.format} "
                f"{list(entry.shape)}; nothing is published"
            )


def ledger_path(output: Path) -> Path:
    """`model.gguf` -> `model.gguf.ledger.json`, beside it."""
    return output.with_name(output.name + ".ledger.json")


def read_ledger(path: Path) -> Ledger:
    """A ledger as `Ledger.write` wrote it; fields that are not known here are ignored. Raises ContainerError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return TypeAdapter(Ledger).validate_python(content)
    except OSError as error:
        raise ContainerError(f"{path}: the ledger cannot be read: {error.strerror or error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ContainerError(f"{path.name}: no ledger of lilliput: {where or 'content'}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise ContainerError(f"{path.name}: no ledger of lilliput: {error}") from error


def is_ledger_of(path: Path, fingerprint: str) -> bool:
    """Whether the file there is the ledger of the run of that fingerprint."""
    try:
        return read_ledger(path).fingerprints.get("output") == fingerprint
    except ContainerError:
        return False


def text_versions() -> dict[str, str]:
    """Of the packages that run a model on a text."""
    installed = versions()
    return {name: installed[name] for name in ("torch", "transformers") if name in installed}


def versions() -> dict[str, str]:
    """Installed versions of the packages that can change an output's bytes."""
    found: dict[str, str] = {}
    for package in RECORDED_PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value
