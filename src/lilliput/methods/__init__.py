# SPDX-License-Identifier: Apache-2.0
"""Methods: how codes are chosen. To add one, write its file and add one line here."""

from __future__ import annotations

from lilliput.methods.cast import Copy
from lilliput.methods.clipped_range import EntropyClipping, PercentileClipping
from lilliput.methods.feedback import Feedback
from lilliput.methods.half_quadratic import HalfQuadratic
from lilliput.methods.learned_rounding import LearnedRounding
from lilliput.methods.masks import MagnitudeMask, Wanda
from lilliput.methods.method import TensorMethod
from lilliput.methods.round_to_nearest import RoundToNearest
from lilliput.methods.searched_clipping import SearchedClipping
from lilliput.methods.searched_scales import SearchedScales
from lilliput.methods.sparse_gpt import SparseGpt

__all__ = ["BLOCK_METHODS", "MASKS", "METHODS", "TensorMethod"]

_ALL: tuple[TensorMethod, ...] = (
    SearchedScales(),
    Feedback(),
    LearnedRounding(),
    RoundToNearest(),
    HalfQuadratic(),
    SearchedClipping(),
    PercentileClipping(),
    EntropyClipping(),
    MagnitudeMask("half"),
    MagnitudeMask("2_4"),
    Wanda("half"),
    Wanda("2_4"),
    SparseGpt("half"),
    SparseGpt("2_4"),
    Copy(),
)
METHODS: dict[str, TensorMethod] = {method.name: method for method in _ALL}
# Those that leave weights out, which only matrices inside the layers bear.
MASKS = frozenset(method.name for method in _ALL if isinstance(method, MagnitudeMask | Wanda | SparseGpt))
# Those whose tensors are trained together once all of their block are quantized (pipeline/learn_block.py).
BLOCK_METHODS = frozenset(method.name for method in _ALL if isinstance(method, LearnedRounding))
