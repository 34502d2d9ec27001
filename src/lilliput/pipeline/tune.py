# SPDX-License-Identifier: Apache-2.0
"""End-to-end tuning: what a finished quantization still has free, trained so that the model's predictions come back.

Problem   each layer was fitted to its own outputs; what counts is the distribution over next tokens.
Idea      KL divergence from the float model's predictions, on the calibration text, minimised over what costs no bytes:
          by Adam the outermost float scales and minimums of each matrix and the norms, by SignSGD the rounding.
Paper     the end-to-end stage (E2E-QP) of EfficientQAT, https://arxiv.org/abs/2407.11062; the rounding of AutoRound,
          https://arxiv.org/abs/2309.05516
Changes   minimums, norms, embedding and head as well as the blocks' scales; rounding starts from codes that feedback
          chose, and is trained on the model's KL instead of a block's outputs; the best state on held-out chunks is
          kept, as it will be stored, and the start where none is better.
Cost      memory for about fourteen float32 arrays of the model; per step a forward pass of the original, forward and
          backward of the quantized model. A model that does not fit is refused before any work.
Not when  the text is much smaller than what it stands for: training fits what it sees.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from lilliput.arrays import IntArray
from lilliput.calibration.block_stream import BlockStream
from lilliput.calibration.input_sums import is_held_out
from lilliput.checkpoints.model_source import ModelSource
from lilliput.errors import CalibrationError
from lilliput.methods.torch_threads import torch_threads
from lilliput.pipeline.quantize_tensors import Done
from lilliput.pipeline.trained_weight import Descent, TrainedWeight
from lilliput.progress import Progress
from lilliput.recipes.ledger import LedgerEntry, entry_for
from lilliput.recipes.plan import Plan
from lilliput.records import QuantizedTensor, Role, TensorPlan

if TYPE_CHECKING:
    import torch

# Tuned beside the scales: vectors that every container stores as float32.
TUNED_VECTORS = (Role.NORM,)
# Float32: the original, the fixed copy, terms of two parameters and what autograd keeps of each, codes and their
# neighbours, offsets, gradients.
BYTES_PER_WEIGHT = 4 * 14


@dataclass(frozen=True, slots=True)
class TuneOptions:
    """epochs: passes over the text.  batch: chunks a step.

    rate: about the largest relative change of a scale or norm in a step; it falls to zero over the run.
    trains_rounding: whether codes may move.
    """

    epochs: int = 6
    batch: int = 4
    rate: float = 3e-3
    trains_rounding: bool = True
    threads: int = 1


def tune(
    source: ModelSource,
    plan: Plan,
    done: Done,
    chunks: IntArray,
    options: TuneOptions,
    progress: Progress | None = None,
) -> Done:
    """Improve finished tensors against the float model's predictions; gives the rows of `tuned_rows`.

    chunks: token ids [chunks, chunk_size]; every eighth is held out.  progress: called with (steps done, steps in all).
    A model that predicts no next token stays as it is.  Raises CalibrationError where the model does not fit in memory.
    """
    if source.config.task != "next_token":
        return done
    _check_memory(plan)
    rows = {row.name: row for row in tuned_rows(plan, done)}
    with torch_threads(options.threads):
        result, _ = _Training(source, rows, done, chunks, options).run(progress)
    return result


def tuned_rows(plan: Plan, done: Done) -> list[TensorPlan]:
    """What `tune` gives back: all that was quantized, and the vectors it moves."""
    return [row for row in plan.rows if row.name in done or row.role in TUNED_VECTORS]


def _check_memory(plan: Plan) -> None:
    needed = plan.weights * BYTES_PER_WEIGHT
    available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > available:
        raise CalibrationError(
            f"--effort best trains the whole model in memory: about {needed / 1e9:.0f} GB, and this machine has "
            f"{available / 1e9:.0f}; choose --effort balanced, or a larger machine"
        )


class _Training:
    def __init__(
        self,
        source: ModelSource,
        rows: Mapping[str, TensorPlan],
        done: Done,
        chunks: IntArray,
        options: TuneOptions,
    ) -> None:
        import torch

        self._done = done
        self._rows = rows
        self._options = options
        self._model = BlockStream(source)
        self._float = self._model.all_values()
        # What the quantized model has and training does not touch.
        self._fixed = dict(self._float)
        self._weights: dict[str, TrainedWeight] = {}
        self._vectors: dict[str, torch.Tensor] = {}
        for name, (tensor, _) in done.items():
            if not self._model.has(name) or not tensor.format.scopes:
                self._fixed[name] = torch.from_numpy(tensor.dequantize())
                continue
            self._weights[name] = TrainedWeight(tensor, trains_rounding=options.trains_rounding)
        for name, row in rows.items():
            if row.role in TUNED_VECTORS and name in self._fixed:
                self._vectors[name] = torch.zeros_like(self._fixed[name])
        held = np.array([is_held_out(chunk) for chunk in range(len(chunks))], dtype=bool)
        self._held_out = torch.from_numpy(chunks[held].astype(np.int64))
        self._text = torch.from_numpy(chunks[~held].astype(np.int64))

    def run(self, progress: Progress | None = None) -> tuple[Done, float]:
        """Train; the best state on the held-out chunks, and its KL over that of the start."""
        import torch

        if not self._weights or not len(self._held_out):
            return self._stored(1.0), 1.0
        options = self._options
        steps = max(1, len(self._text) // options.batch) * options.epochs
        descent = Descent(tuple(self._weights.values()), tuple(self._vectors.values()), steps=steps, rate=options.rate)
        start = best = self.held_out_divergence()
        kept = self._stored(1.0)
        draw = torch.Generator().manual_seed(0)
        for _ in range(options.epochs):
            for batch in torch.split(torch.randperm(len(self._text), generator=draw), options.batch):
                if descent.taken == steps:
                    break
                descent.step(self._divergence(self._text[batch], self._present()))
                if progress is not None:
                    progress(descent.taken, steps)
            now = self.held_out_divergence()
            if now < best:
                best, kept = now, self._stored(now / start)
        return kept, best / start

    def _present(self) -> dict[str, torch.Tensor]:
        """All tensors of the quantized model, differentiable where trained."""
        vectors = {name: self._fixed[name] * (1.0 + change) for name, change in self._vectors.items()}
        return {**self._fixed, **vectors, **{name: weight.value() for name, weight in self._weights.items()}}

    def _divergence(self, tokens: torch.Tensor, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Mean KL of the quantized model's predictions from the float model's, over all positions."""
        import torch

        with torch.no_grad():
            wanted = self._model.logits(tokens, self._float).log_softmax(-1)
        found = self._model.logits(tokens, tensors).log_softmax(-1)
        return torch.nn.functional.kl_div(found, wanted, log_target=True, reduction="sum") / tokens.numel()

    def held_out_divergence(self) -> float:
        """Mean KL of the present state, as it would be stored, on the held-out chunks."""
        import torch

        with torch.no_grad():
            tensors = dict(self._fixed)
            for name, weight in self._weights.items():
                tensors[name] = torch.from_numpy(weight.stored().dequantize())
            tensors |= {name: self._fixed[name] * (1.0 + change) for name, change in self._vectors.items()}
            parts = [
                self._divergence(part, tensors) * part.numel()
                for part in torch.split(self._held_out, self._options.batch)
            ]
        return float(sum(float(part) for part in parts)) / self._held_out.numel()

    def _stored(self, ratio: float) -> Done:
        """Tensors and ledger entries of the present state."""
        import torch

        result = dict(self._done)
        note = f"tuned end to end, held-out KL {ratio:.3f} of before" if ratio < 1.0 else "tuning gained nothing"
        for name, weight in self._weights.items():
            result[name] = (weight.stored(), _noted(self._done[name][1], note))
        for name, change in self._vectors.items():
            with torch.no_grad():
                values = (self._fixed[name] * (1.0 + change)).numpy().astype(np.float32)
            row = self._rows[name]
            planes = row.format.pack(row.format.encode(values.reshape(1, -1)))
            result[name] = (QuantizedTensor(name, row.shape, row.format, planes), _entry(row, note))
        return result


def _noted(entry: LedgerEntry, note: str) -> LedgerEntry:
    return replace(entry, reason=f"{entry.reason}; {note}")


def _entry(row: TensorPlan, note: str) -> LedgerEntry:
    return entry_for(row, reason=f"{row.reason}; {note}")
