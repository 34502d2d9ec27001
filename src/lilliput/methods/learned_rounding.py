# SPDX-License-Identifier: Apache-2.0
"""Learned rounding: feedback, then all matrices of a block trained together on what the block gives out.

The first step of a tensor is feedback as it is; the pipeline does the second when a block's tensors are all there
(pipeline/learn_block.py, where the reasoning is). A head outside the blocks gets feedback alone.
"""

from __future__ import annotations

from lilliput.methods.feedback import Feedback


class LearnedRounding(Feedback):
    """AutoRound's training, started from feedback."""

    name = "learned_rounding"
    paper = "https://arxiv.org/abs/2309.05516 (AutoRound)"
