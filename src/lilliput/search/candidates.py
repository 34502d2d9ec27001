# SPDX-License-Identifier: Apache-2.0
"""Every tensor in every candidate format, made once: one pass over the blocks of the float model.

Inputs are those of the float model, so that a candidate does not depend on what is chosen for other tensors. All
candidates of a block are made while its Hessians are in memory, and kept in the work folder, a step a block and format;
a killed run makes only what is missing. Beside each candidate lies its loss row by row, which with the sensitivity of
the outputs predicts its cost (`predict.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import load_file, save_file

from lilliput.architectures.architecture import TensorEntry
from lilliput.arrays import FloatArray, IntArray
from lilliput.calibration.block_stream import BlockStream
from lilliput.calibration.expert_inputs import with_prior
from lilliput.calibration.input_sums import HessianSums
from lilliput.checkpoints.model_source import ModelSource
from lilliput.formats import NumberFormat
from lilliput.formats.native_decode import decode
from lilliput.methods import METHODS
from lilliput.methods.torch_threads import torch_threads
from lilliput.pipeline.quantize_blocks import with_lookups
from lilliput.pipeline.quantize_tensors import experts_of_stack, quantize_stack, quantize_tensor
from lilliput.pipeline.work_folder import WorkFolder
from lilliput.progress import Progress
from lilliput.recipes.plan import PLAIN_FLOATS
from lilliput.recipes.recipe import Method
from lilliput.records import NO_INPUTS, LayerInputs, QuantizedTensor, Role, TensorPlan
from lilliput.search.choices import Choice

if TYPE_CHECKING:
    pass

# Weights in float32 at once while losses are computed.
LOSS_WEIGHTS = 1 << 22


@dataclass(frozen=True, slots=True)
class Candidate:
    """One tensor in one format. row_losses: [rows] float32, d H d^T of each row's error d, H the mean of x x^T."""

    tensor: QuantizedTensor
    row_losses: FloatArray


@dataclass(frozen=True, slots=True)
class CandidateOptions:
    """method: for tensors with inputs, in formats that it supports.  device: a torch device."""

    method: Method
    threads: int = 1
    device: str = "cpu"


class Candidates:
    """What `make_candidates` made: tensors by name and format, mapped from disk."""

    def __init__(self, made: Mapping[tuple[str, str], Candidate]) -> None:
        self._made = made

    def get(self, name: str, number_format: NumberFormat) -> Candidate:
        """One candidate. Raises KeyError."""
        return self._made[name, number_format.name]


def make_candidates(
    source: ModelSource,
    choices: Sequence[Choice],
    chunks: IntArray,
    folder: WorkFolder,
    options: CandidateOptions,
    progress: Progress | None = None,
) -> Candidates:
    """Make what `folder` does not hold yet.

    chunks: token ids [n, chunk_size].  progress: called with (candidates done, all).
    Raises CalibrationError, FormatError naming the tensor.
    """
    import torch

    with torch.inference_mode(), torch_threads(options.threads):
        return Candidates(_Maker(source, choices, chunks, folder, options, progress).run())


class _Maker:
    def __init__(
        self,
        source: ModelSource,
        choices: Sequence[Choice],
        chunks: IntArray,
        folder: WorkFolder,
        options: CandidateOptions,
        progress: Progress | None,
    ) -> None:
        self._source = source
        self._formats = {name: choice.formats for choice in choices for name in choice.names}
        self._table = {entry.name: entry for entry in source.architecture.tensor_table(source.config)}
        self._chunks = chunks
        self._folder = folder
        self._method = options.method
        self._threads = options.threads
        self._progress = progress
        self._stream = BlockStream(source, options.device)
        self._all = sum(len(formats) for formats in self._formats.values())
        self._made: dict[tuple[str, str], Candidate] = {}

    def run(self) -> dict[tuple[str, str], Candidate]:
        layers = range(self._stream.layers)
        steps = {layer: self._names_of_layer(layer) for layer in layers}
        inside = {name for names in steps.values() for name in names}
        outside = [name for name in self._formats if name not in inside]
        missing = [layer for layer in layers if not self._known(steps[layer])]
        is_outside_known = self._known(outside)
        self._advance()
        if not missing and is_outside_known:
            return self._made
        # Hidden states are computed anew by a run that continues: a forward pass is cheap beside the candidates.
        arguments = self._stream.block_arguments(self._chunks.shape[1])
        hidden = self._folder.stream(0, (*self._chunks.shape, self._source.config.hidden_size))
        for index, chunk in enumerate(self._chunks):
            hidden[index] = self._stream.embed(chunk).numpy()
        for layer in layers:
            self._run_layer(layer, hidden, arguments[layer], is_missing=layer in missing)
            if is_outside_known and layer == missing[-1]:
                break
        if not is_outside_known:
            self._outside(outside, hidden)
        return self._made

    def _run_layer(self, layer: int, hidden: FloatArray, arguments: dict[str, object], *, is_missing: bool) -> None:
        """All chunks through a block, in place; its candidates where there are any to be made."""
        import torch

        with self._stream.block(layer) as block, ExitStack() as watching:
            groups = []
            if is_missing:
                watched = self._stream.watching(block, layer, HessianSums, HessianSums.add, by_expert=True)
                groups = watching.enter_context(watched)
            for index in range(len(self._chunks)):
                hidden[index] = self._stream.forward(block, layer, index, torch.from_numpy(hidden[index]), arguments)
            watching.close()
            while groups:
                entries = groups[0].entries
                # Of a stack, those of every expert.
                inputs = []
                while groups and groups[0].entries is entries:
                    inputs.append(groups.pop(0).sums.layer_inputs())
                self._make([entry.name for entry in entries], inputs, inputs)

    def _outside(self, names: Sequence[str], hidden: FloatArray) -> None:
        """Embedding and output head."""
        import torch

        sums = HessianSums("output.weight")
        with self._stream.final_norm() as norm:
            for index in range(len(self._chunks)):
                sums.add(norm(torch.from_numpy(hidden[index]).to(self._stream.device)))
        inputs = sums.layer_inputs()
        is_tied = self._source.config.tied
        for name in names:
            is_head = is_tied or name != self._stream.embedding
            fitted = with_lookups(inputs) if is_tied else inputs
            self._make([name], [fitted if is_head else NO_INPUTS], [inputs if is_head else NO_INPUTS])

    def _make(self, names: Sequence[str], inputs: Sequence[LayerInputs], judged: Sequence[LayerInputs]) -> None:
        """Candidates of tensors that share an input, or of stacks. judged: the inputs that losses are for.

        Of stacks, inputs are those of each expert.
        """
        for name in names:
            if name not in self._formats:
                continue
            stored = self._source.tensor(name)
            for number_format in self._formats[name]:
                if (name, number_format.name) in self._made:
                    continue
                row = self._row(name, number_format)
                if len(row.shape) > 2:
                    tensor, entry = quantize_stack(stored, row, inputs, threads=self._threads)
                    used = self._source.config.used_experts
                    losses = stack_losses(stored, tensor, judged, used=used, threads=self._threads)
                else:
                    tensor, entry = quantize_tensor(stored, row, inputs[0], threads=self._threads)
                    losses = row_losses(stored, tensor, judged[0], threads=self._threads)
                place = f"{name}.{number_format.name}"
                _save(self._losses_path(place), losses)
                self._folder.finish(place, {name: (tensor, entry)})
                # What is on disk now need not stay in memory.
                if not self._load(name, number_format):
                    self._made[name, number_format.name] = Candidate(tensor, losses)
                self._advance()
            self._source.release(name)

    def _known(self, names: Sequence[str]) -> bool:
        """Whether all candidates of these tensors are there; loads those that are."""
        found = [self._load(name, number_format) for name in names for number_format in self._formats[name]]
        return all(found)

    def _load(self, name: str, number_format: NumberFormat) -> bool:
        place = f"{name}.{number_format.name}"
        known = self._folder.finished(place, [self._row(name, number_format)])
        path = self._losses_path(place)
        if known is None or not path.is_file():
            return False
        self._made[name, number_format.name] = Candidate(known[name][0], load_file(path)["row_losses"])
        return True

    def _losses_path(self, place: str) -> Path:
        return self._folder.path / f"{place}.losses"

    def _row(self, name: str, number_format: NumberFormat) -> TensorPlan:
        return candidate_row(self._source, self._table[name], number_format, self._method)

    def _names_of_layer(self, layer: int) -> list[str]:
        entries = (entry for group in self._stream.linears(layer).values() for entry in group)
        return [entry.name for entry in entries if entry.name in self._formats]

    def _advance(self) -> None:
        if self._progress is not None:
            self._progress(len(self._made), self._all)


def candidate_rows(source: ModelSource, choices: Sequence[Choice], method: Method) -> list[TensorPlan]:
    """Every candidate, as `make_candidates` makes it."""
    table = {entry.name: entry for entry in source.architecture.tensor_table(source.config)}
    return [
        candidate_row(source, table[name], number_format, method)
        for choice in choices
        for name in choice.names
        for number_format in choice.formats
    ]


def candidate_row(source: ModelSource, entry: TensorEntry, number_format: NumberFormat, method: Method) -> TensorPlan:
    """One tensor in one format, by the method where that can do it."""
    header = source.headers[entry.name]
    # Nothing is multiplied with a table of lookups.
    has_inputs = entry.input_group is not None or source.config.tied or entry.role is not Role.TOKEN_EMBEDDING
    chosen: str = method
    if number_format.name in PLAIN_FLOATS or number_format.name == header.format.name:
        chosen = "copy"
    elif not METHODS[method].supports(number_format) or not has_inputs:
        chosen = "searched_scales"
    return TensorPlan(entry.name, entry.name, header.shape, entry.role, number_format, chosen, "candidate")


def row_losses(
    original: QuantizedTensor, candidate: QuantizedTensor, inputs: LayerInputs, *, threads: int = 1
) -> FloatArray:
    """[rows] float32: d H d^T of each row's error d, H the held-out Hessian where there is one.

    Where only mean squares are known (starved experts), H is their diagonal.  Without inputs (a table of lookups) plain
    sums of squares.
    """
    import torch

    hessian = inputs.held_out if inputs.held_out is not None else inputs.hessian
    matrix = None if hessian is None else torch.as_tensor(hessian, dtype=torch.float32).cpu()
    squares = None if inputs.mean_square is None else torch.as_tensor(inputs.mean_square, dtype=torch.float32).cpu()
    found = np.empty(original.rows, dtype=np.float32)
    for part, error in error_slabs(original, candidate, threads=threads):
        difference = torch.from_numpy(error)
        spread = difference if squares is None else difference * squares
        spread = spread if matrix is None else difference @ matrix
        found[part] = (spread * difference).sum(1).numpy()
    return found


def stack_losses(
    original: QuantizedTensor,
    candidate: QuantizedTensor,
    inputs: Sequence[LayerInputs],
    *,
    used: int,
    threads: int = 1,
) -> FloatArray:
    """[experts * rows] float32: row losses of each expert for what it sees, times the share of tokens that it sees.

    inputs: of each expert; starved ones get the neutral prior.  used: experts of a token.
    """
    seen = sum(each.tokens for each in inputs)
    pairs = zip(experts_of_stack(original), experts_of_stack(candidate), with_prior(inputs), strict=True)
    losses = [
        row_losses(matrix, found, each, threads=threads) * np.float32(used * each.tokens / seen if seen else 1.0)
        for matrix, found, each in pairs
    ]
    return np.concatenate(losses)


def error_slabs(
    original: QuantizedTensor, candidate: QuantizedTensor, *, threads: int = 1
) -> Iterator[tuple[slice, FloatArray]]:
    """Candidate minus original, float32, some rows at a time."""
    step = max(1, LOSS_WEIGHTS // max(original.columns, 1))
    for start in range(0, original.rows, step):
        part = slice(start, min(start + step, original.rows))
        values = [
            decode(
                tensor.format,
                tensor.format.row_range(_by_rows(tensor), part.start, part.stop),
                tensor.columns,
                threads=threads,
            )
            for tensor in (candidate, original)
        ]
        yield part, values[0] - values[1]


def _by_rows(tensor: QuantizedTensor) -> Mapping[str, np.ndarray]:
    return {name: plane.reshape(tensor.rows, -1) for name, plane in tensor.planes.items()}


def _save(path: Path, losses: FloatArray) -> None:
    """Whole or not at all; it is there before the step that needs it is finished."""
    part = path.with_name(path.name + ".partial")
    save_file({"row_losses": losses}, part)
    part.replace(path)
