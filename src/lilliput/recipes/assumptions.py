# SPDX-License-Identifier: Apache-2.0
"""What the tensors of an unknown architecture were taken for, one line for each kind of name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from lilliput.architectures.architecture import Json, ModelConfig
from lilliput.records import Role

Kind = Literal["linear", "embedding", "kept"]


@dataclass(frozen=True, slots=True)
class Assumption:
    """Tensors whose names differ only in numbers, which are # here.

    shape: of the first of them.  reason: why they were taken for this.
    """

    kind: Kind
    tensors: str
    count: int
    shape: tuple[int, ...]
    reason: str

    @property
    def shape_text(self) -> str:
        """As tables show it."""
        return "x".join(map(str, self.shape)) or "1"

    def to_text(self) -> str:
        """One line for the ledger."""
        return f"assumed {self.kind}: {self.count} tensors {self.tensors} ({self.reason})"

    def to_json(self) -> dict[str, Json]:
        """One entry of `assumed` in `lilliput plan --json`."""
        return {
            "kind": self.kind,
            "tensors": self.tensors,
            "count": self.count,
            "shape": [*self.shape],
            "reason": self.reason,
        }


def assumptions(config: ModelConfig) -> tuple[Assumption, ...]:
    """Linear layers, embeddings, and what is kept, each in the order of the checkpoint; empty for a known family."""
    if config.unknown is None:
        return ()
    counts: dict[tuple[Kind, str, str], int] = {}
    shapes: dict[tuple[Kind, str, str], tuple[int, ...]] = {}
    for item in config.unknown.tensors:
        _, _, why = item.assumed.partition(": ")
        key = (_kind(item.role, item.assumed), re.sub(r"(?<=\.)\d+(?=\.)", "#", item.name), why)
        counts[key] = counts.get(key, 0) + 1
        shapes.setdefault(key, item.shape)
    order: tuple[Kind, ...] = ("linear", "embedding", "kept")
    found = [Assumption(kind, name, count, shapes[kind, name, why], why) for (kind, name, why), count in counts.items()]
    return tuple(sorted(found, key=lambda item: order.index(item.kind)))


def _kind(role: Role, assumed: str) -> Kind:
    if assumed.startswith("linear"):
        return "linear"
    is_table = role in (Role.TOKEN_EMBEDDING, Role.POSITION_EMBEDDING, Role.SEGMENT_EMBEDDING)
    return "embedding" if is_table else "kept"
