# SPDX-License-Identifier: Apache-2.0
"""Value rotation (R2): each head's values are turned, and turned back by the attention output.

Problem   a few channels of a head's values are larger than the rest.
Idea      attention is linear in its values: rows of head h of the value projection become Q_h^T W, columns of the
          attention output that read it W Q_h. Q_h is Hadamard with random signs; heads that share values share it.
Changes   none from SpinQuant but that Q_h is not trained.
Cost      float64 arithmetic, log2(head dim) operations per weight. Norms, ties and the file's size stay as they are.
Not when  the values have no outliers. On the built-in model: searched scales gain 3 % at Q2_K on text like that of the
          calibration and nothing on other text; feedback gains nothing (docs/log.md).
"""

from __future__ import annotations

from typing import Literal

from lilliput.architectures.foldable_edges import FoldableEdge, foldable_edges
from lilliput.architectures.program import Attention
from lilliput.checkpoints.model_source import ModelSource
from lilliput.errors import UnsupportedModelError
from lilliput.records import AppliedEdge
from lilliput.transforms.changes import Change, RotatedColumns, RotatedRows
from lilliput.transforms.rotation import Rotation
from lilliput.transforms.transform import Guide, Outline, Rewrite

SEED = 2


class ValueRotation:
    """R2 of SpinQuant."""

    name: str = "value_rotation"
    paper: str = "https://arxiv.org/abs/2405.16406 (SpinQuant), R2"
    needs: Literal["nothing", "statistics"] = "nothing"
    mixes_inputs: bool = True
    strength: float | None = None

    def outline(self, source: ModelSource) -> Outline:
        """The values of every attention. Raises UnsupportedModelError where one is not made and read by linears."""
        edges = self._edges(source)
        changed = frozenset(tensor for edge in edges for tensor in (*edge.makers, *edge.readers))
        return Outline(source.config, tuple(edge.name for edge in edges), changed)

    def rewrite(self, source: ModelSource, guide: Guide) -> Rewrite:
        """One Q for each key-value head of each layer."""
        changes: dict[str, tuple[Change, ...]] = {}
        edges = self._edges(source)
        for layer, edge in enumerate(edges):
            heads = edge.heads
            assert heads is not None
            rotation = Rotation.random((SEED, layer), heads.head_dim, heads.kv_heads)
            changes |= dict.fromkeys(edge.makers, (RotatedRows(rotation),))
            changes |= dict.fromkeys(edge.readers, (RotatedColumns(rotation.repeated(heads.sharing)),))
        return Rewrite(changes, tuple(AppliedEdge(self.name, edge.name) for edge in edges))

    def _edges(self, source: ModelSource) -> tuple[FoldableEdge, ...]:
        program = source.architecture.program(source.config)
        found = foldable_edges(program)
        edges = tuple(edge for edge in found.edges if edge.heads is not None)
        attentions = [step for step in program.operations if isinstance(step, Attention)]
        if not attentions or len(edges) != len(attentions):
            reasons = [f"{name}: {reason}" for name, reason in found.refused.items() if name.endswith("attn_v")]
            why = reasons[0] if reasons else "values are not made by a linear layer of their own in every block"
            raise UnsupportedModelError(f"{self.name}: {why}; leave this transform out")
        return edges
