# SPDX-License-Identifier: Apache-2.0
"""How much each output of each linear layer matters to the model's predictions: one backward pass, block by block.

Problem   a tensor's own error says little; what counts is the KL divergence of the next-token distribution.
Idea      to second order, KL = 1/2 E[(g . D x)^2]: D is the change of the weight, x the layer's input, g the gradient
          of log p(y) at its output for a token y drawn from the model itself (the Fisher information; real labels would
          give another matrix). With x and g taken as independent this is 1/2 tr(H_O D H_I D^T).
          Of H_O the diagonal is kept: errors of different rows are nearly uncorrelated, and [rows, rows] of a wide
          layer would not fit in memory.
Cost      hidden states of all layers on disk, one block in memory: forward once, then backward from the last block
          down, each block's forward repeated with gradients.
Not when  errors are large (below about 2.5 bits): the second-order form no longer holds; real KL corrects it.
Source    K-FAC, https://arxiv.org/abs/1503.05671; quality of the prediction: docs/fit.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lilliput.architectures.architecture import TensorEntry
from lilliput.arrays import DoubleArray, FloatArray, IntArray
from lilliput.calibration.block_stream import BlockStream
from lilliput.calibration.expert_inputs import STARVED_BELOW
from lilliput.calibration.mapped_file import mapped_floats
from lilliput.checkpoints.model_source import ModelSource
from lilliput.containers.part_writer import disk_error
from lilliput.errors import CalibrationError
from lilliput.methods.torch_threads import torch_threads
from lilliput.progress import Progress

if TYPE_CHECKING:
    import torch

SEED = 0
# Rows of logits in memory at once, times the vocabulary: 64 MB of float32.
LOGIT_NUMBERS = 1 << 24


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """Second moments of the gradient of the log-likelihood of sampled tokens.

    outputs: tensor name -> [rows] float64, mean over tokens of g^2 at the output of that linear, canonical row order;
    of stacks [experts * rows], over the tokens that each expert sees.
    lookups: [hidden_size], the same where the embedding's rows enter.  counts: [vocab_size], how often each was read.
    """

    outputs: Mapping[str, DoubleArray]
    lookups: DoubleArray
    counts: IntArray


def measure_sensitivity(
    source: ModelSource, chunks: IntArray, folder: Path, *, threads: int = 1, progress: Progress | None = None
) -> Sensitivity:
    """Run the float model forward and backward over chunks [n, chunk_size].

    folder: for hidden states, float32 [layers + 1, n, chunk_size, hidden_size]; the file is removed at the end.
    progress: called with (steps done, steps in all), a step being one chunk through one block.
    Raises CalibrationError for a gradient that is not finite.
    """
    with torch_threads(threads), _hidden_states(folder, source, chunks) as states:
        return _Backward(source, chunks, states, progress).run()


@contextmanager
def _hidden_states(folder: Path, source: ModelSource, chunks: IntArray) -> Iterator[FloatArray]:
    path = folder / "hidden-states"
    shape = (source.config.layers + 1, *chunks.shape, source.config.hidden_size)
    try:
        try:
            states = mapped_floats(path, shape)
        except OSError as failure:
            raise disk_error(path.name, failure) from failure
        yield states
    finally:
        path.unlink(missing_ok=True)


class _Backward:
    def __init__(self, source: ModelSource, chunks: IntArray, states: FloatArray, progress: Progress | None) -> None:
        self._source = source
        self._chunks = chunks
        self._states = states
        self._progress = progress
        self._stream = BlockStream(source)
        self._sums: dict[str, DoubleArray] = {}
        # Tokens that each expert of a stack saw.
        self._seen: dict[str, DoubleArray] = {}
        self._lookups = np.zeros(source.config.hidden_size)
        self._steps = 2 * (self._stream.layers + 1) * len(chunks)
        self._steps_done = 0

    def run(self) -> Sensitivity:
        arguments = self._stream.block_arguments(self._chunks.shape[1])
        self._forward(arguments)
        # From here on the states after a block are overwritten with the gradients there.
        self._head()
        for layer in reversed(range(self._stream.layers)):
            self._block(layer, arguments[layer])
        for gradients in self._states[0]:
            self._lookups += np.square(gradients, dtype=np.float64).sum(axis=0)
        tokens = self._chunks.size
        counts = np.bincount(self._chunks.reshape(-1), minlength=self._source.config.vocab_size).astype(np.int32)
        return Sensitivity({name: self._mean(name) for name in self._sums}, self._lookups / tokens, counts)

    def _forward(self, arguments: list[dict[str, object]]) -> None:
        import torch

        with torch.inference_mode():
            for index, chunk in enumerate(self._chunks):
                self._states[0, index] = self._stream.embed(chunk).numpy()
                self._advance()
            for layer in range(self._stream.layers):
                with self._stream.block(layer) as block:
                    for index in range(len(self._chunks)):
                        hidden = torch.from_numpy(self._states[layer, index])
                        self._states[layer + 1, index] = self._stream.forward(
                            block, layer, index, hidden, arguments[layer]
                        )
                        self._advance()

    def _head(self) -> None:
        """From the last hidden states to the gradients there, for tokens drawn from the predictions."""
        import torch

        name = self._stream.output_names[-1]
        head = torch.from_numpy(np.ascontiguousarray(self._source.tensor(name).dequantize()))
        total = torch.zeros(len(head), dtype=torch.float64)
        draw = torch.Generator().manual_seed(SEED)
        step = max(1, LOGIT_NUMBERS // len(head))
        with self._stream.final_norm() as norm:
            norm.requires_grad_(False)
            for index in range(len(self._chunks)):
                hidden = _tensor(self._states[-1, index]).requires_grad_(True)
                normed = norm(hidden)
                gradient = torch.empty_like(normed)
                with torch.no_grad():
                    for start in range(0, len(normed), step):
                        part = slice(start, start + step)
                        p = (normed[part] @ head.T).softmax(-1)
                        total += (p * (1.0 - p)).sum(0, dtype=torch.float64)
                        labels = torch.multinomial(p, 1, generator=draw)
                        gradient[part] = head[labels[:, 0]] - p @ head
                normed.backward(gradient)
                self._keep(-1, index, hidden)
                self._advance()
        self._sums[name] = total.numpy()

    def _block(self, layer: int, arguments: dict[str, object]) -> None:
        with self._stream.block(layer) as block:
            block.requires_grad_(False)
            with self._watching(block, layer):
                for index in range(len(self._chunks)):
                    hidden = _tensor(self._states[layer, index]).requires_grad_(True)
                    output = block(hidden[None], **arguments)
                    output.backward(_tensor(self._states[layer + 1, index])[None])
                    self._keep(layer, index, hidden)
                    self._advance()

    @contextmanager
    def _watching(self, block: torch.nn.Module, layer: int) -> Iterator[None]:
        """Sum the squares of the gradients at the output of every linear of the block."""
        handles = []
        for entries in self._stream.linears(layer).values():
            for entry in entries:
                module = block.get_submodule(self._stream.module_name(layer, entry.name))
                handles.append(module.register_forward_hook(self._adding_to(entry)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _adding_to(self, entry: TensorEntry) -> Callable[..., None]:
        """A hook on what a linear gives, or an expert of a stack, which is called with its number."""
        rows, is_stack = entry.shape[-2], len(entry.shape) > 2
        total = self._sums.setdefault(entry.name, np.zeros(entry.shape[:-1]))
        seen = self._seen.setdefault(entry.name, np.zeros(entry.shape[0])) if is_stack else None

        def hook(_module: torch.nn.Module, arguments: tuple[torch.Tensor, int], output: torch.Tensor) -> None:
            own = total
            if seen is not None:
                own = total[arguments[1]]
                seen[arguments[1]] += len(output)

            def add(gradient: torch.Tensor) -> None:
                np.add(own, gradient.reshape(-1, rows).square().sum(0).numpy(), out=own)

            output.register_hook(add)  # type: ignore[no-untyped-call]  # torch says nothing of it

        return hook

    def _mean(self, name: str) -> DoubleArray:
        """Of all tokens; of a stack, of those that each expert saw, mixed with the mean of all where these are few."""
        total = self._sums[name]
        seen = self._seen.get(name)
        if seen is None:
            return total / self._chunks.size
        common = total.sum(axis=0) / max(seen.sum(), 1.0)
        prior = np.where(seen < STARVED_BELOW, float(STARVED_BELOW), 0.0)
        mixed: DoubleArray = (total + prior[:, None] * common) / (seen + prior)[:, None]
        return mixed.reshape(-1)

    def _keep(self, layer: int, index: int, hidden: torch.Tensor) -> None:
        assert hidden.grad is not None
        gradient = hidden.grad.numpy()
        if not np.isfinite(gradient).all():
            raise CalibrationError(
                f"blk.{layer}: the gradient holds NaN or Inf in chunk {index}; the model overflows on this text, or "
                "its weights are damaged"
            )
        self._states[layer, index] = gradient

    def _advance(self) -> None:
        self._steps_done += 1
        if self._progress is not None:
            self._progress(self._steps_done, self._steps)


def _tensor(values: FloatArray) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.array(values))
