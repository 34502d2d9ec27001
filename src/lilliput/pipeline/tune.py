# SPDX-License-Identifier: Apache-2.0
"""End-to-end tuning: what a finished quantization still has free, trained so that the model's predictions come back.

Problem   each layer was fitted to its own outputs; what counts is the distribution over next tokens.
Idea      KL divergence from the float model's predictions, on the calibration text, minimised by Adam over what costs
          no bytes: the outermost float scales and minimums, the norms, and the rounding itself (a code may move by
          one, straight-through). The arrangement of the file does not change.
Papers    E2E-QP of EfficientQAT (https://arxiv.org/abs/2407.11062) for the scales; AutoRound
          (https://arxiv.org/abs/2309.05516) for rounding as an offset that training moves.
Changes   both at once, on the KL of the whole model instead of each block's output, from codes that feedback chose; the
          best state on held-out chunks is kept, as it will be stored, and the start where none is better.
Cost      memory for the float model and about five arrays of its size; per step a forward pass of the original, forward
          and backward of the quantized model. For models that fit; a larger one is refused before any work.
Not when  the text is much smaller than what it stands for: training fits what it sees.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from lilliput.arrays import IntArray
from lilliput.calibration.block_stream import BlockStream, torch_threads
from lilliput.calibration.input_sums import HELD_OUT_EVERY
from lilliput.checkpoints.model_source import ModelSource
from lilliput.errors import CalibrationError
from lilliput.formats import Encoded
from lilliput.methods.torch_format import TorchFormat, to_encoded
from lilliput.pipeline.quantize_tensors import Done
from lilliput.recipes.ledger import LedgerEntry, entry_for
from lilliput.recipes.plan import Plan
from lilliput.records import QuantizedTensor, Role, TensorPlan

if TYPE_CHECKING:
    import torch

Progress = Callable[[int, int], None]
# Tuned beside the scales: vectors that every container stores as float32.
TUNED_VECTORS = (Role.NORM,)
# Float32: the original twice, terms and slopes of up to two parameters, offsets, their two moments, values, gradients.
BYTES_PER_WEIGHT = 4 * 12


@dataclass(frozen=True, slots=True)
class TuneOptions:
    """epochs: passes over the text.  batch: chunks a step.

    scale_rate, norm_rate: largest relative change a step.  rounding_rate: largest change of a code offset a step; 0
    leaves the codes alone.
    """

    epochs: int = 6
    batch: int = 4
    scale_rate: float = 5e-4
    norm_rate: float = 5e-4
    rounding_rate: float = 1e-2
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
    Raises CalibrationError where the model does not fit in memory.
    """
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


class _Weight:
    """One quantized matrix as a differentiable function of its scales and code offsets.

    value = sum_k parameter_k * (constant_k + slope_k * code), which holds where levels are a run of integers; elsewhere
    codes stay and the slopes are not used.
    """

    def __init__(self, tensor: QuantizedTensor, order: torch.Tensor, original: torch.Tensor) -> None:
        import torch

        encoded = tensor.format.unpack(tensor.planes, tensor.columns)
        self.tensor = tensor
        self.format = TorchFormat(tensor.format, tensor.columns)
        self.order = order
        self.codes = torch.from_numpy(np.ascontiguousarray(encoded.codes))
        self.parameters = {name: torch.from_numpy(np.array(value)) for name, value in encoded.parameters.items()}
        self.terms = dict(self.format.linear_terms(self.codes, self.parameters))
        self.names = [name for name in self.terms if self.parameters[name].is_floating_point()]
        self.changes = {name: torch.zeros_like(self.parameters[name], dtype=torch.float32) for name in self.names}
        self.slopes = self._slopes()
        self.highest = int(_highest_code(self.format, self.codes, self.parameters)) if self.slopes else 0
        self.offset = self._start(original) if self.slopes else None

    def _slopes(self) -> dict[str, torch.Tensor]:
        """Change of each term per code step; empty where codes are not a run of integers."""
        import torch

        if self.format.unit > 1 or not self.names:
            return {}
        at = [self.format.linear_terms(torch.full_like(self.codes, code), self.parameters) for code in (0, 1, 2)]
        for name in self.names:
            if not torch.allclose(at[2][name] - at[1][name], at[1][name] - at[0][name], atol=1e-6):
                return {}
        return {name: at[1][name] - at[0][name] for name in self.names}

    def _start(self, original: torch.Tensor) -> torch.Tensor:
        """Where each code's offset starts: the weight's own place between levels, within the code's own half step."""
        import torch

        step = self._combined(self.slopes)
        values = self.format.values(self.codes, self.parameters)
        place = torch.where(step.abs() > 0, (original - values) / torch.where(step.abs() > 0, step, 1.0), 0.0)
        return place.clamp(-0.45, 0.45) * float(os.environ.get("START","1"))

    def _combined(self, terms: Mapping[str, torch.Tensor], *, trained: bool = False) -> torch.Tensor:
        total: torch.Tensor | None = None
        for name in self.names:
            parameter = self.parameters[name].float()
            if trained:
                parameter = parameter * (1.0 + self.changes[name])
            width = terms[name].shape[1] // parameter.shape[1]
            part = parameter.repeat_interleave(width, dim=1) * terms[name]
            total = part if total is None else total + part
        assert total is not None
        return total

    def trained(self) -> Iterator[tuple[str, torch.Tensor]]:
        """What Adam moves, by kind."""
        for change in self.changes.values():
            yield "scale", change
        if self.offset is not None:
            yield "rounding", self.offset

    def value(self) -> torch.Tensor:
        """Float32 [rows, columns] in the checkpoint's row order, differentiable."""
        value = self._combined(self.terms, trained=True)
        if self.offset is not None:
            moved = self.offset.round().clamp(-1, 1)
            code = (self.codes.float() + moved).clamp(0, self.highest)
            steps = code - self.codes.float()
            through = steps.detach() + self.offset - self.offset.detach()
            value = value + self._combined(self.slopes, trained=True) * through
        return value[self.order]

    def stored(self) -> QuantizedTensor:
        """As the file would hold the present state."""
        import torch

        parameters = dict(self.parameters)
        for name in self.names:
            old = self.parameters[name]
            new = (old.float() * (1.0 + self.changes[name].detach())).to(old.dtype)
            parameters[name] = torch.where(new.isfinite(), new, old)
        codes = self.codes
        if self.offset is not None:
            moved = self.offset.detach().round().clamp(-1, 1)
            codes = (codes.float() + moved).clamp(0, self.highest).to(codes.dtype)
        encoded: Encoded = to_encoded(codes, parameters)
        return replace(self.tensor, planes=self.tensor.format.pack(encoded))


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
        self._weights: dict[str, _Weight] = {}
        self._vectors: dict[str, torch.Tensor] = {}
        for name, (tensor, _) in done.items():
            order = self._model.row_order(name)
            if order is None or not tensor.format.scopes or rows[name].role in (Role.OUTPUT, Role.TOKEN_EMBEDDING):
                self._fixed[name] = torch.from_numpy(tensor.dequantize())
                continue
            original = torch.from_numpy(source.tensor(name).dequantize())
            self._weights[name] = _Weight(tensor, torch.from_numpy(order), original)
        for name, row in rows.items():
            if row.role in TUNED_VECTORS and name in self._fixed:
                self._vectors[name] = torch.zeros_like(self._fixed[name])
        held = np.arange(len(chunks)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
        self._held_out = torch.from_numpy(chunks[held].astype(np.int64))
        self._text = torch.from_numpy(chunks[~held].astype(np.int64))

    def run(self, progress: Progress | None = None) -> tuple[Done, float]:
        """Train; the best state on the held-out chunks, and its KL over that of the start."""
        import torch

        if not self._weights or not len(self._held_out):
            return self._stored(1.0), 1.0
        trained = [pair for weight in self._weights.values() for pair in weight.trained() if self._rate(pair[0])]
        trained += [("norm", change) for change in self._vectors.values()]
        for _, tensor in trained:
            tensor.requires_grad_(True)
        optimizer = torch.optim.Adam([{"params": [tensor], "lr": self._rate(kind)} for kind, tensor in trained])
        steps = max(1, len(self._text) // self._options.batch) * self._options.epochs
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1.0 - step / steps))
        start = best = self._held_out_divergence()
        kept = self._stored(1.0)
        draw = torch.Generator().manual_seed(0)
        taken = 0
        for _ in range(self._options.epochs):
            for batch in torch.split(torch.randperm(len(self._text), generator=draw), self._options.batch):
                if taken == steps:
                    break
                optimizer.zero_grad()
                loss = self._divergence(self._text[batch], self._present())
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                taken += 1
                if progress is not None:
                    progress(taken, steps)
            now = self._held_out_divergence()
            if now < best:
                best, kept = now, self._stored(now / start)
        return kept, best / start

    def _rate(self, kind: str) -> float:
        options = self._options
        return {"scale": options.scale_rate, "norm": options.norm_rate, "rounding": options.rounding_rate}[kind]

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

    def _held_out_divergence(self) -> float:
        import torch

        with torch.no_grad():
            tensors = dict(self._fixed)
            for name, weight in self._weights.items():
                values = torch.from_numpy(weight.stored().dequantize())
                tensors[name] = values[weight.order]
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


def _highest_code(torch_format: TorchFormat, codes: torch.Tensor, parameters: Mapping[str, torch.Tensor]) -> int:
    """The last code of a scalar format: what a target far above everything rounds to."""
    import torch

    far = torch.full(codes.shape, 1e6)
    metric = torch.ones((1, 1))
    found = [
        torch_format.nearest_codes(sign * far, parameters, slice(0, codes.shape[1]), metric).max() for sign in (1, -1)
    ]
    return int(max(found))


def _noted(entry: LedgerEntry, note: str) -> LedgerEntry:
    return replace(entry, reason=f"{entry.reason}; {note}")


def _entry(row: TensorPlan, note: str) -> LedgerEntry:
    return entry_for(row, reason=f"{row.reason}; {note}")
