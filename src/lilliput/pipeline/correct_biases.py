# SPDX-License-Identifier: Apache-2.0
"""Bias correction: what quantization adds to the mean of each layer's output is taken off its bias.

Problem   rounding moves not only single outputs of a layer but their mean over the text, and a sentence vector, the
          mean of all its tokens, adds such moves up where it averages all other errors out.
Idea      a linear with a bias b becomes one with b + E[W x] - E[W' x'], x the inputs of the float model and x' those of
          the quantized one; layer after layer, because each correction changes what comes after it.
Paper     M. Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction,
          https://arxiv.org/abs/1906.04721, section 4.2 (the empirical form of appendix D)
Cost      no bytes; six passes of the text through each block, and the hidden states of both models in memory.
Not when  the text has other means than what the model will read. What does not come nearer to the float model's hidden
          states on chunks that were held out is left as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lilliput.arrays import IntArray
from lilliput.calibration.block_stream import BlockStream
from lilliput.calibration.input_sums import is_held_out
from lilliput.checkpoints.model_source import ModelSource
from lilliput.methods.torch_threads import torch_threads
from lilliput.pipeline.quantize_tensors import Done
from lilliput.pipeline.work_folder import WorkFolder
from lilliput.recipes.ledger import LedgerEntry, entry_for
from lilliput.recipes.plan import Plan
from lilliput.records import QuantizedTensor, TensorPlan

if TYPE_CHECKING:
    import torch

    # Mean output of each linear, by the name of its bias.
    _Means = dict[str, torch.Tensor]

# What a block of an encoder ends in.
LAST_NORM = "layer_output_norm.bias"


def corrects_biases(source: ModelSource) -> bool:
    """Whether a model gains by it: those whose output is a mean of many tokens, or one token's state."""
    return source.config.encoder is not None


def bias_rows(source: ModelSource, plan: Plan) -> list[TensorPlan]:
    """Rows of the biases beside quantized linears of the blocks, and of each block's last norm."""
    rows = {row.name: row for row in plan.rows if row.name.startswith("blk.")}
    names = [_bias_of(name) for name, row in rows.items() if row.method != "copy"]
    norms = [f"blk.{layer}.{LAST_NORM}" for layer in range(source.config.layers)] if names else []
    return [rows[name] for name in (*names, *norms) if name in rows]


def with_biases(
    source: ModelSource, plan: Plan, done: Done, chunks: IntArray, folder: WorkFolder, threads: int
) -> Done:
    """`done` and the corrected biases, which a run that was killed finds in its folder."""
    fitted = folder.finished("biases", bias_rows(source, plan))
    if fitted is None:
        fitted = correct_biases(source, plan, done, chunks, threads=threads)
        folder.finish("biases", fitted)
    return {**done, **fitted}


def correct_biases(source: ModelSource, plan: Plan, done: Done, chunks: IntArray, *, threads: int) -> Done:
    """The rows of `bias_rows`, corrected.

    done: the quantized tensors.  chunks: token ids [chunks, chunk_size]; every eighth is held out.
    """
    import torch

    with torch.inference_mode(), torch_threads(threads):
        return _Correction(source, plan, done, chunks).run()


class _Correction:
    def __init__(self, source: ModelSource, plan: Plan, done: Done, chunks: IntArray) -> None:
        self._source = source
        self._done = done
        self._chunks = chunks
        self._stream = BlockStream(source)
        self._arguments = self._stream.block_arguments(chunks.shape[1])
        self._rows = {row.name: row for row in bias_rows(source, plan)}
        self._held_out = [index for index in range(len(chunks)) if is_held_out(index)]
        self._seen = [index for index in range(len(chunks)) if not is_held_out(index)]

    def run(self) -> Done:
        """Both streams from the first block to the last."""
        exact, rounded = self._embedded(None), self._embedded(self._done.get(self._stream.embedding))
        result: dict[str, tuple[QuantizedTensor, LedgerEntry]] = {}
        for layer in range(self._stream.layers):
            groups = self._biased(layer)
            with self._stream.block(layer) as block:
                exact, wanted = self._passed(block, layer, exact, [name for group in groups for name in group])
            with self._stream.block(layer) as block:
                rounded, corrected = self._layer(block, layer, rounded, exact, wanted)
            result |= corrected
        return result

    def _layer(
        self, block: torch.nn.Module, layer: int, hidden: torch.Tensor, exact: torch.Tensor, wanted: _Means
    ) -> tuple[torch.Tensor, Done]:
        """Correct one block: the quantized stream behind it, and its biases as they are now."""
        import torch

        for name, (tensor, _) in self._done.items():
            if name.startswith(f"blk.{layer}."):
                self._stream.replace(block, layer, tensor)
        before, _ = self._passed(block, layer, hidden)
        for group in self._biased(layer):
            _, found = self._passed(block, layer, hidden, group)
            for name in group:
                self._parameter(block, layer, name).add_(wanted[name] - found[name])
        after, _ = self._passed(block, layer, hidden)
        norm = f"blk.{layer}.{LAST_NORM}"
        if norm in self._rows:
            # What mean pooling adds up stands here, after the residuals.
            self._parameter(block, layer, norm).add_((exact - after)[self._seen].mean((0, 1)))
            after, _ = self._passed(block, layer, hidden)
        start = self._distance(before, exact)
        ratio = self._distance(after, exact) / start if start > 0.0 else 1.0
        names = [name for group in self._biased(layer) for name in group] + ([norm] if norm in self._rows else [])
        if ratio >= 1.0:
            kept = {name: torch.from_numpy(self._source.tensor(name).dequantize().copy()) for name in names}
            return before, {name: self._stored(name, values, None) for name, values in kept.items()}
        return after, {name: self._stored(name, self._parameter(block, layer, name), ratio) for name in names}

    def _biased(self, layer: int) -> list[list[str]]:
        """Biases of the block's linears, those of one input together, in the order in which they are computed."""
        named = ([_bias_of(entry.name) for entry in group] for group in self._stream.linears(layer).values())
        groups = ([name for name in group if name in self._rows] for group in named)
        return [group for group in groups if group]

    def _embedded(self, table: tuple[QuantizedTensor, LedgerEntry] | None) -> torch.Tensor:
        """Hidden states before the first block, [chunks, tokens, width]."""
        import torch

        return torch.stack([self._stream.embed(chunk, None if table is None else table[0]) for chunk in self._chunks])

    def _passed(
        self, block: torch.nn.Module, layer: int, hidden: torch.Tensor, biases: Sequence[str] = ()
    ) -> tuple[torch.Tensor, _Means]:
        """Hidden states after the block, and mean outputs of the linears with these biases on chunks not held out."""
        import torch

        means: dict[str, torch.Tensor] = {}
        seen = [True]
        handles = []
        for name in biases:

            def see(_module: object, _inputs: object, output: torch.Tensor, name: str = name) -> None:
                if seen[0]:
                    means[name] = means.get(name, 0.0) + output[0].double().mean(0) / len(self._seen)

            module = block.get_submodule(self._stream.name_in_block(layer, name).removesuffix(".bias"))
            handles.append(module.register_forward_hook(see))
        passed = []
        for index, states in enumerate(hidden):
            seen[0] = index in self._seen
            passed.append(self._stream.forward(block, layer, index, states, self._arguments[layer]))
        for handle in handles:
            handle.remove()
        return torch.stack(passed), {name: mean.float() for name, mean in means.items()}

    def _parameter(self, block: torch.nn.Module, layer: int, name: str) -> torch.Tensor:
        return block.get_parameter(self._stream.name_in_block(layer, name)).data

    def _distance(self, found: torch.Tensor, exact: torch.Tensor) -> float:
        """Squared error of the mean state of each held-out chunk: of all chunks where none is held out."""
        chosen = self._held_out or self._seen
        return float((found[chosen] - exact[chosen]).double().mean(1).square().sum())

    def _stored(self, name: str, values: torch.Tensor, ratio: float | None) -> tuple[QuantizedTensor, LedgerEntry]:
        row = self._rows[name]
        planes = row.format.pack(row.format.encode(values.numpy().reshape(1, -1).astype(np.float32)))
        note = "bias correction gained nothing"
        if ratio is not None:
            note = f"bias corrected, held-out error of the block's mean output {ratio:.3f} of before"
        return QuantizedTensor(name, row.shape, row.format, planes), entry_for(row, reason=f"{row.reason}; {note}")


def _bias_of(weight: str) -> str:
    return weight.removesuffix(".weight") + ".bias"
