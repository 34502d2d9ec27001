# SPDX-License-Identifier: Apache-2.0
"""Learned rounding of one block: its quantized matrices are trained together on what the block gives out.

Problem   feedback fits each matrix to its own outputs; attention and the gated product bend these before they add up.
Idea      minimise the squared error of the block's outputs, against those of the float block, over rounding (SignSGD)
          and scales (Adam), on the inputs that the block will really have.
Paper     AutoRound, https://arxiv.org/abs/2309.05516
Changes   starts from the codes that feedback chose, on any grid whose codes have neighbours; scales of all groups are
          trained in place of clipping ranges; the best state on held-out chunks is kept, and the start where none is
          better.
Cost      `steps` forward and backward passes of a few chunks through each block.
Not when  the whole model fits in memory many times over: `--effort best` then trains it on its predictions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lilliput.calibration.block_stream import BlockStream
from lilliput.calibration.input_sums import is_held_out
from lilliput.pipeline.quantize_tensors import Done
from lilliput.pipeline.trained_weight import Descent, TrainedWeight

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class LearnOptions:
    """steps: of the training.  batch: chunks a step.  rate: of the scales, about their largest relative change a step.

    looks: how often the state is judged on held-out chunks.
    """

    steps: int = 200
    batch: int = 4
    rate: float = 1e-3
    looks: int = 4


@dataclass(frozen=True, slots=True)
class BlockText:
    """What goes into a block and what should come out, each [chunks, chunk_size, hidden_size] float32.

    arguments: what the model's own forward gives the block beside hidden states.
    """

    inputs: torch.Tensor
    outputs: torch.Tensor
    arguments: Mapping[str, object]


def learn_block(
    stream: BlockStream, block: torch.nn.Module, layer: int, done: Done, text: BlockText, options: LearnOptions
) -> Done:
    """Improve the tensors of `done`, quantized matrices of a loaded block; the same ones, trained or as they were."""
    import torch

    # Training needs gradients, which the block loop has switched off around it.
    with torch.inference_mode(False), torch.enable_grad():
        return _Learning(stream, block, layer, done, text, options).run()


class _Learning:
    def __init__(
        self,
        stream: BlockStream,
        block: torch.nn.Module,
        layer: int,
        done: Done,
        text: BlockText,
        options: LearnOptions,
    ) -> None:

        self._stream = stream
        self._block = block
        self._done = done
        self._text = text
        self._options = options
        self._weights: dict[str, TrainedWeight] = {}
        self._names: dict[str, str] = {}
        for name, (tensor, _) in done.items():
            if stream.has(name) and tensor.format.scopes:
                self._weights[name] = TrainedWeight(tensor, trains_rounding=True)
                self._names[name] = stream.name_in_block(layer, name)
        # Tensors made in inference mode cannot take part in training: copies can.
        self._fixed = {name: value.clone() for name, value in block.state_dict().items()}
        self._arguments = {name: _cloned(value) for name, value in text.arguments.items()}
        chunks = range(len(text.inputs))
        self._seen = [chunk for chunk in chunks if not is_held_out(chunk)]
        self._held_out = [chunk for chunk in chunks if is_held_out(chunk)]

    def run(self) -> Done:
        """Train, and keep the best state."""
        import torch

        if not self._held_out:
            return _noted(self._done, "rounding not learned: the text is too short to hold a part of it out")
        if not self._weights:
            return self._done
        options = self._options
        descent = Descent(tuple(self._weights.values()), (), steps=options.steps, rate=options.rate)
        start = best = self._held_out_error()
        kept = _noted(self._done, "learning the rounding gained nothing")
        draw = torch.Generator().manual_seed(0)
        for step in range(1, options.steps + 1):
            batch = torch.randint(len(self._seen), (options.batch,), generator=draw).tolist()
            values = {name: weight.value() for name, weight in self._weights.items()}
            loss = torch.stack([self._error(self._seen[index], values) for index in batch]).mean()
            descent.step(loss)
            if step % max(1, options.steps // options.looks) == 0:
                now = self._held_out_error()
                if now < best:
                    best, kept = now, self._stored(now / start)
        return kept

    def _error(self, chunk: int, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Mean squared error of the block's outputs, in parts of their mean square over this chunk."""
        import torch

        device = self._stream.device
        shapes = {name: self._fixed[self._names[name]].shape for name in values}
        state = self._fixed | {self._names[name]: v.to(device).reshape(shapes[name]) for name, v in values.items()}
        inputs, wanted = (states[chunk].to(device).clone() for states in (self._text.inputs, self._text.outputs))
        found: torch.Tensor = torch.func.functional_call(self._block, state, (inputs[None],), self._arguments)
        difference = found[0] - wanted
        change = wanted - inputs
        return difference.square().mean() / change.square().mean().clamp_min(1e-30)

    def _held_out_error(self) -> float:
        import torch

        with torch.no_grad():
            values = {name: torch.from_numpy(weight.stored().dequantize()) for name, weight in self._weights.items()}
            return sum(float(self._error(chunk, values)) for chunk in self._held_out) / len(self._held_out)

    def _stored(self, ratio: float) -> Done:
        trained = {name: (weight.stored(), self._done[name][1]) for name, weight in self._weights.items()}
        note = f"rounding learned with its block, held-out error {ratio:.3f} of before"
        return _noted({**self._done, **trained}, note)


def _noted(done: Done, note: str) -> Done:
    return {name: (tensor, replace(entry, reason=f"{entry.reason}; {note}")) for name, (tensor, entry) in done.items()}


def _cloned(value: object) -> object:
    """A tensor's copy, also inside tuples and mappings; anything else as it is."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, Mapping):
        return {key: _cloned(item) for key, item in value.items()}
    return tuple(_cloned(item) for item in value) if isinstance(value, tuple) else value
