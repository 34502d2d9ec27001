# SPDX-License-Identifier: Apache-2.0
"""Untie: an output head that shares the embedding's bytes gets a copy of its own.

Problem   rewrites that fold something into the head, or turn what it reads, would change the lookups as well.
Idea      the head becomes a tensor of its own, with the embedding's values and a format of its own in the plan.
Cost      the head's bytes: the plan shows them. Of a small model that is a quarter of the file.
Not when  nothing that follows needs it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from lilliput.checkpoints.model_source import ModelSource
from lilliput.errors import UnsupportedModelError
from lilliput.records import AppliedEdge
from lilliput.transforms.transform import Guide, Outline, Rewrite


class Untie:
    """A head of its own."""

    name: str = "untie"
    paper: str = "https://arxiv.org/abs/2404.00456 (QuaRot), whose folding of the last norm needs it"
    needs: Literal["nothing", "statistics"] = "nothing"
    mixes_inputs: bool = False
    strength: float | None = None

    def outline(self, source: ModelSource) -> Outline:
        """The tied head. Raises UnsupportedModelError where there is none."""
        tied = [entry for entry in source.architecture.tensor_table(source.config) if entry.tied_to is not None]
        if not source.config.tied or not tied:
            raise UnsupportedModelError(f"{self.name}: this model's output head is not tied; leave this transform out")
        copies = {entry.name: entry.tied_to for entry in tied if entry.tied_to is not None}
        return Outline(replace(source.config, tied=False), tuple(copies), copies=copies)

    def rewrite(self, source: ModelSource, guide: Guide) -> Rewrite:
        """No values change."""
        return Rewrite({}, tuple(AppliedEdge(self.name, name) for name in self.outline(source).edges))
