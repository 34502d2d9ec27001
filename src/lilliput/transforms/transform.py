# SPDX-License-Identifier: Apache-2.0
"""What a transform is: it rewrites a float model before quantization and leaves the model's function as it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from lilliput.architectures.architecture import ModelConfig
from lilliput.checkpoints.model_source import ModelSource
from lilliput.records import AppliedEdge, Statistics, TensorPlan
from lilliput.transforms.changes import Change


@dataclass(frozen=True, slots=True)
class Outline:
    """What a transform will touch, told from headers alone.

    edges: where it acts.  changed: canonical names of the tensors that get other values, and become F32.
    skipped: edge -> why it is left as it is.  copies: new tensor -> the tensor that it repeats.
    config: of the rewritten model.
    """

    config: ModelConfig
    edges: tuple[str, ...]
    changed: frozenset[str] = frozenset()
    skipped: Mapping[str, str] = field(default_factory=dict)
    copies: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Guide:
    """What a transform may look at beside the model.

    rows: the plan by canonical name, for transforms that judge by the real formats.
    statistics: of the model that is being rewritten, or None.
    """

    rows: Mapping[str, TensorPlan]
    statistics: Statistics | None
    threads: int = 1


@dataclass(frozen=True, slots=True)
class Rewrite:
    """changes: what is done to each tensor, in order.  edges: what was done where, for the ledger."""

    changes: Mapping[str, tuple[Change, ...]]
    edges: tuple[AppliedEdge, ...]


class Transform(Protocol):
    """One paper's rewrite.

    name: as recipes spell it.  paper: where it comes from.  strength: as the user chose it, None where there is none.
    needs: "statistics" of the inputs, refused without them.  mixes_inputs: mean squares of the original's inputs say
    nothing of the rewritten model's.
    """

    name: str
    paper: str
    needs: Literal["nothing", "statistics"]
    mixes_inputs: bool
    strength: float | None

    def outline(self, source: ModelSource) -> Outline:
        """What will be touched, from headers. Raises UnsupportedModelError naming the edge that forbids it, and why."""

    def rewrite(self, source: ModelSource, guide: Guide) -> Rewrite:
        """Decide the changes of every tensor that `outline` names. Raises CalibrationError."""
