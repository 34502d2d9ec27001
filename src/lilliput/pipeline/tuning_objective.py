# SPDX-License-Identifier: Apache-2.0
"""How far a model's outputs are from the float model's: what end-to-end tuning minimises, by what the model is for.

next tokens, tokens, tags     KL divergence of each position's distribution, in nats
classes                       the same of the first token's, where the head reads it
sentence vectors              1 - cosine of the pooled vectors, and a share of the tokens' own squared error, of which a
                              text has many
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lilliput.architectures.architecture import ModelConfig

if TYPE_CHECKING:
    import torch

# Of the tokens' relative squared error beside 1 - cosine.
TOKEN_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class Objective:
    """The distance for one model."""

    config: ModelConfig

    @property
    def name(self) -> str:
        """In words for the ledger."""
        return "distance of vectors" if self.config.task == "embedding" else "KL"

    def distance(self, found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Mean over texts or positions. found, wanted: what the program gives, [batch, tokens, width]."""
        import torch

        if self.config.task == "embedding":
            return self._of_vectors(found, wanted)
        if self.config.task == "classification":
            found, wanted = found[:, :1], wanted[:, :1]
        total = torch.nn.functional.kl_div(
            found.log_softmax(-1), wanted.log_softmax(-1), log_target=True, reduction="sum"
        )
        return total / (found.shape[0] * found.shape[1])

    def _of_vectors(self, found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        import torch

        assert self.config.encoder is not None
        is_first = self.config.encoder.pooling == "cls"
        ours, theirs = ((x[:, 0] if is_first else x.mean(1)) for x in (found, wanted))
        apart = (1.0 - torch.nn.functional.cosine_similarity(ours, theirs, dim=-1)).mean()
        tokens = (found - wanted).square().sum() / wanted.square().sum()
        return apart + TOKEN_SHARE * tokens
