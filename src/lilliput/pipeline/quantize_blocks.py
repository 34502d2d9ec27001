# SPDX-License-Identifier: Apache-2.0
"""The loop for methods that need Hessians: block by block through the model, on real text.

All chunks of text go through a block once with its float weights, which shows what enters each of its linear layers;
those are quantized; then the chunks go through it again as quantized, to the next block. So every layer is fitted to
the inputs that it will really have. In memory at a time: one block, its distinct Hessians, one tensor's solver; the
hidden states lie in files that are mapped. Each block is a step that a killed run does not repeat (`work_folder.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, cast

from lilliput.arrays import Array, FloatArray, IntArray
from lilliput.calibration.block_stream import BlockStream, Precision, Watched
from lilliput.calibration.expert_inputs import split_name
from lilliput.calibration.input_sums import HessianSums
from lilliput.calibration.pair_inputs import answered
from lilliput.checkpoints.model_source import ModelSource
from lilliput.methods import BLOCK_METHODS, METHODS
from lilliput.methods.retarget import retargeting
from lilliput.methods.torch_threads import torch_threads
from lilliput.pipeline.learn_block import BlockText, LearnOptions, learn_block
from lilliput.pipeline.quantize_pairs import quantize_pairs
from lilliput.pipeline.quantize_tensors import Done, quantize_stack, quantize_tensor
from lilliput.pipeline.work_folder import WorkFolder
from lilliput.progress import Progress
from lilliput.recipes.ledger import LedgerEntry
from lilliput.recipes.plan import Plan
from lilliput.records import NO_INPUTS, LayerInputs, QuantizedTensor, TensorPlan

if TYPE_CHECKING:
    import torch

StreamInputs = Literal["quantized", "float", "both"]
# How far `both` goes from the weights towards those of least squares; all the way overfits (docs/log.md).
RETARGETED_SHARE = 0.5
# What a lookup adds to the diagonal of a tied embedding's Hessian, in parts of its mean. On the built-in model:
# without it feedback on the embedding is worse than the baseline, from 0.3 to 3 it is better by a fifth (docs/log.md).
LOOKUP_SHARE = 1.0


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """inputs: of each block, from the blocks before it as quantized, or as in the float model.

    "both": codes are chosen for quantized inputs so that the outputs come near the float model's (methods/retarget.py).
    precision: of the forward passes.  device: a torch device.  threads: of torch and of the encoders.
    """

    inputs: StreamInputs = "quantized"
    precision: Precision = "float32"
    device: str = "cpu"
    threads: int = 1


def needs_stream(plan: Plan) -> bool:
    """Whether any tensor's method needs a Hessian."""
    return any(METHODS[row.method].needs == "hessian" for row in plan.rows)


def quantize_blocks(
    source: ModelSource,
    plan: Plan,
    chunks: IntArray,
    folder: WorkFolder,
    options: StreamOptions,
    progress: Progress | None = None,
) -> Done:
    """Quantize every tensor that has inputs (blocks and output head); tensors stay mapped from `folder`.

    chunks: token ids [chunks, chunk_size].  progress: called with (steps done, steps in all), a step being one chunk
    through one block.  Raises CalibrationError, FormatError naming the tensor.
    """
    import torch

    if source.config.decoder is not None:
        pairs = list(answered(source, chunks, threads=options.threads))
        return quantize_pairs(source, plan, pairs, threads=options.threads, progress=progress)
    loop = _Loop(source, plan, chunks, folder, options, progress)
    with torch.inference_mode(), torch_threads(options.threads):
        return loop.run()


class _Loop:
    def __init__(
        self,
        source: ModelSource,
        plan: Plan,
        chunks: IntArray,
        folder: WorkFolder,
        options: StreamOptions,
        progress: Progress | None,
    ) -> None:
        self._source = source
        self._rows = {row.name: row for row in plan.rows}
        self._chunks = chunks
        self._folder = folder
        self._options = options
        self._progress = progress
        self._stream = BlockStream(source, options.device, options.precision)
        self._shape = (*chunks.shape, source.config.hidden_size)
        self._follows_float = options.inputs == "both"
        # Passes through each block, and one through the final norm.
        self._passes = {"float": 1, "quantized": 2, "both": 3}[options.inputs]
        self._steps = (self._passes * self._stream.layers + 1) * len(chunks)
        self._steps_done = 0

    def run(self) -> Done:
        """All steps, those of an earlier run included."""
        done: dict[str, tuple[QuantizedTensor, LedgerEntry]] = {}
        arguments = self._stream.block_arguments(self._chunks.shape[1])
        steps = [f"blk.{layer}" for layer in range(self._stream.layers)]
        known = [self._folder.finished(step, self._rows_of_layer(layer)) for layer, step in enumerate(steps)]
        finished = next((index for index, found in enumerate(known) if found is None), len(known))
        if finished and not self._folder.left(steps[finished - 1], *self._states(finished)):
            finished = 0  # what the next block would start from is gone
        for found in known[:finished]:
            done |= found or {}
        self._advance(self._passes * finished * len(self._chunks))
        embedding = self._embedding()
        done |= embedding
        if finished == 0:
            self._embed(embedding)
        for layer in range(finished, len(steps)):
            result = self._quantize_layer(layer, arguments[layer])
            self._folder.finish(steps[layer], result, *self._states(layer + 1))
            done |= result
        done |= self._head()
        return done

    def _embedding(self) -> Done:
        """The embedding, unless the output head is made from it: then it waits for the head's inputs."""
        row = self._rows.get(self._stream.embedding)
        if row is None or self._source.config.tied:
            return {}
        return {row.name: quantize_tensor(self._source.tensor(row.name), row, NO_INPUTS, threads=self._options.threads)}

    def _embed(self, done: Done) -> None:
        """Hidden states before the first block, from the embedding as quantized where that is done."""
        name = self._stream.embedding
        table = done[name][0] if name in done and self._options.inputs != "float" else None
        for hidden, used in zip(self._states(0), (table, None), strict=False):
            for index, chunk in enumerate(self._chunks):
                hidden[index] = self._stream.embed(chunk, used).numpy()

    def _states(self, index: int) -> list[FloatArray]:
        """Hidden states before or after a block: of the stream, and of the float model where that is followed."""
        names = ["stream", "float"] if self._follows_float else ["stream"]
        return [self._folder.stream(index, self._shape, name) for name in names]

    def _quantize_layer(self, layer: int, arguments: dict[str, object]) -> Done:
        """One block: watch, quantize, advance."""
        import torch

        before, after = ([torch.from_numpy(array) for array in self._states(layer + step)] for step in (0, 1))
        done: dict[str, tuple[QuantizedTensor, LedgerEntry]] = {}
        with self._stream.block(layer) as block:
            # One chunk after the other goes through as in the float model, then as in the stream.
            is_float = [self._follows_float]

            def see(sums: HessianSums, inputs: torch.Tensor) -> None:
                (sums.add_float if is_float[0] else sums.add)(inputs)

            def sums_of(name: str) -> HessianSums:
                return HessianSums(name, pairs=split_name(name)[1] is None)

            with self._stream.watching(block, layer, sums_of, see, by_expert=True) as groups:
                for index in range(len(self._chunks)):
                    if self._follows_float:
                        is_float[0] = True
                        after[1][index] = self._stream.forward(block, layer, index, before[1][index], arguments)
                        is_float[0] = False
                        self._advance(1)
                    after[0][index] = self._stream.forward(block, layer, index, before[0][index], arguments)
                    self._advance(1)
            while groups:
                done |= self._quantize_group(groups)
            text = BlockText(before[0], after[1] if self._follows_float else after[0], arguments)
            done |= self._learned(block, layer, done, text)
            # A stream of float inputs went on when it was watched.
            if self._options.inputs != "float":
                for tensor, _ in done.values():
                    self._stream.replace(block, layer, tensor)
                for index in range(len(self._chunks)):
                    after[0][index] = self._stream.forward(block, layer, index, before[0][index], arguments)
                    self._advance(1)
        return done

    def _quantize_group(self, groups: list[Watched[HessianSums]]) -> Done:
        """The tensors of the first group, which is taken from the list; of a stack, with those of all its experts."""
        entries = groups[0].entries
        inputs: list[LayerInputs] = []
        while groups and groups[0].entries is entries:
            inputs.append(_inputs(groups.pop(0).sums))
        done: dict[str, tuple[QuantizedTensor, LedgerEntry]] = {}
        for row in (self._rows[entry.name] for entry in entries if entry.name in self._rows):
            tensor, threads = self._source.tensor(row.name), self._options.threads
            is_stack = len(row.shape) > 2
            done[row.name] = (
                quantize_stack(tensor, row, inputs, threads=threads)
                if is_stack
                else quantize_tensor(tensor, row, inputs[0], threads=threads)
            )
            self._source.release(row.name)
        return done

    def _learned(self, block: torch.nn.Module, layer: int, done: Done, text: BlockText) -> Done:
        """The tensors of this block that its method trains together, trained."""
        chosen = {name: result for name, result in done.items() if self._rows[name].method in BLOCK_METHODS}
        return learn_block(self._stream, block, layer, chosen, text, LearnOptions()) if chosen else {}

    def _head(self) -> Done:
        """The output head, or the embedding that serves as one."""
        rows = [self._rows[name] for name in self._stream.output_names if name in self._rows]
        known = self._folder.finished("output", rows)
        if known is not None or not rows:
            return known or {}
        import torch

        states = self._states(self._stream.layers)
        sums = HessianSums("output.weight")
        with self._stream.final_norm() as norm:
            for index in range(len(self._chunks)):
                # A tied embedding is also read by lookups, which must stay what they are.
                if self._follows_float and not self._source.config.tied:
                    sums.add_float(norm(torch.from_numpy(states[1][index]).to(self._stream.device)))
                sums.add(norm(torch.from_numpy(states[0][index]).to(self._stream.device)))
                self._advance(1)
        inputs = _inputs(sums)
        if self._source.config.tied:
            inputs = with_lookups(inputs)
        done = {
            row.name: quantize_tensor(self._source.tensor(row.name), row, inputs, threads=self._options.threads)
            for row in rows
        }
        self._folder.finish("output", done)
        return done

    def _rows_of_layer(self, layer: int) -> list[TensorPlan]:
        entries = (entry for group in self._stream.linears(layer).values() for entry in group)
        return [self._rows[entry.name] for entry in entries if entry.name in self._rows]

    def _advance(self, steps: int) -> None:
        self._steps_done += steps
        if self._progress is not None and steps:
            self._progress(self._steps_done, self._steps)


def _inputs(sums: HessianSums) -> LayerInputs:
    """What methods are told; retargeted where the float model's inputs were seen too."""
    import torch

    cross = sums.cross
    inputs = sums.layer_inputs()
    if cross is None or inputs.hessian is None:
        return inputs
    hessian = torch.as_tensor(inputs.hessian)
    found = retargeting(hessian, cross, inputs.tokens, share=RETARGETED_SHARE)
    return replace(inputs, retargeting=cast("Array | None", found))


def with_lookups(inputs: LayerInputs) -> LayerInputs:
    """Inputs of a head that is the embedding as well: its rows are also read as they are, every column alike."""
    import torch

    def added(hessian: Array | None) -> Array | None:
        if hessian is None:
            return None
        matrix = torch.as_tensor(hessian)
        share = LOOKUP_SHARE * matrix.diagonal().double().mean().float()
        return cast("Array", matrix + torch.eye(len(matrix), device=matrix.device) * share)

    return replace(inputs, hessian=added(inputs.hessian), held_out=added(inputs.held_out))
