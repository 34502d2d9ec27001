# SPDX-License-Identifier: Apache-2.0
"""Residual rotation (R1): the sum that runs through the blocks is turned, so that no channel of it stands out.

Problem   a few residual channels are far larger than the rest, and so are weights that read or write them.
Idea      fold each norm's weight into the layers that read it; an RMS norm without weights does not notice an
          orthogonal matrix Q. Then turn everything that touches the stream: embedding rows E Q, what writes Q^T W,
          what reads W Q.
          Q is Hadamard with random signs (transforms/rotation.py): outliers are spread over all channels.
Changes   from QuaRot: sizes that have no Hadamard matrix take Hartley's for their odd part instead of a table; nothing
          is turned at run time, so that the file runs anywhere. Q is not trained, as SpinQuant's is.
Cost      float64 arithmetic, log2(hidden size) operations per weight; norms turn into ones and lose their freedom.
Not when  the model has no outliers to spread. Rotation makes all inputs alike and leaves an importance nothing to weigh
          by; with feedback the built-in model gained nothing, and lost 9 % with an embedding of 2 bits (docs/log.md).
          A tied head has to be given bytes of its own first: `untie`.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from lilliput.architectures.foldable_edges import ResidualStream, residual_stream
from lilliput.checkpoints.model_source import ModelSource
from lilliput.errors import UnsupportedModelError
from lilliput.records import AppliedEdge
from lilliput.transforms.changes import Change, Ones, RotatedColumns, RotatedRows, ScaledColumns
from lilliput.transforms.rotation import Rotation
from lilliput.transforms.transform import Guide, Outline, Rewrite

SEED = 1


class ResidualRotation:
    """R1 of QuaRot and SpinQuant."""

    name: str = "residual_rotation"
    paper: str = "https://arxiv.org/abs/2404.00456 (QuaRot), https://arxiv.org/abs/2405.16406 (SpinQuant), R1"
    needs: Literal["nothing", "statistics"] = "nothing"
    mixes_inputs: bool = True
    strength: float | None = None

    def outline(self, source: ModelSource) -> Outline:
        """Everything that touches the stream. Raises UnsupportedModelError for tied heads and other norms."""
        stream = self._stream(source)
        readers = {reader for readers in stream.norms.values() for reader in readers}
        changed = frozenset((*stream.embeddings, *stream.writers, *stream.norms, *readers))
        return Outline(source.config, ("residual",), changed)

    def rewrite(self, source: ModelSource, guide: Guide) -> Rewrite:
        """One Q for the whole stream."""
        stream = self._stream(source)
        rotation = Rotation.random((SEED,), stream.width)
        changes: dict[str, tuple[Change, ...]] = {name: (RotatedColumns(rotation),) for name in stream.embeddings}
        changes |= {name: (RotatedRows(rotation),) for name in stream.writers}
        for norm, readers in stream.norms.items():
            changes[norm] = (Ones(),)
            weight = np.array(source.tensor(norm).dequantize().reshape(-1))
            changes |= dict.fromkeys(readers, (ScaledColumns(weight), RotatedColumns(rotation)))
        return Rewrite(changes, (AppliedEdge(self.name, "residual"),))

    def _stream(self, source: ModelSource) -> ResidualStream:
        try:
            return residual_stream(source.architecture.program(source.config))
        except UnsupportedModelError as fault:
            advice = "leave this transform out"
            if source.config.tied:
                advice = "put the transform `untie` before it (the head then takes bytes of its own), or leave it out"
            raise UnsupportedModelError(f"{self.name}: {fault}; {advice}") from fault
