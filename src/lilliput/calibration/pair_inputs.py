# SPDX-License-Identifier: Apache-2.0
"""What enters the linear layers of an encoder-decoder, over texts and their answers, in one pass of the float model.

Both programs run in torch with all weights in memory: such models are small. Where a text comes without an answer, the
model's own is taken: that is what it will read when it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from lilliput.architectures.architecture import EncoderDecoder, TensorEntry
from lilliput.architectures.program import Embed, Program
from lilliput.arrays import IntArray
from lilliput.checkpoints.model_source import ModelSource
from lilliput.errors import CalibrationError
from lilliput.progress import Progress
from lilliput.runtime.answers import AnswerOptions, answer
from lilliput.runtime.encoder_decoder import EncoderDecoderSession
from lilliput.runtime.session import EngineOptions

if TYPE_CHECKING:
    import torch

    from lilliput.calibration.torch_program import LinearRun

Sums = TypeVar("Sums")
# Longer answers of models that never come to an end say nothing new.
LONGEST_ANSWER = 128


@dataclass(frozen=True, slots=True)
class Pair:
    """Token ids of a text and of its answer, special tokens included."""

    text: Sequence[int]
    answer: Sequence[int]


def answered(source: ModelSource, chunks: IntArray, *, threads: int | None = None) -> Iterator[Pair]:
    """Each chunk [chunks, chunk_size] as a text that ends where the model expects it, with the model's own answer."""
    decoder = source.config.decoder
    assert decoder is not None
    session = EncoderDecoderSession(source, EngineOptions(threads=threads, activations="f32"))
    options = AnswerOptions(max_length=min(LONGEST_ANSWER, source.config.context_length))
    for chunk in chunks:
        text = [*chunk[:-1].tolist(), decoder.end_token_ids[0]]
        yield Pair(text, answer(session, text, options).token_ids)


def pair_inputs(
    source: ModelSource,
    pairs: Sequence[Pair],
    sums_of: Callable[[str], Sums],
    see: Callable[[Sums, torch.Tensor], None],
    progress: Progress | None = None,
) -> list[tuple[tuple[TensorEntry, ...], Sums]]:
    """`see(sums, inputs)` for what enters each group of linears that share an input, pair after pair.

    sums_of: makes the sums of a group, given the name of its first tensor.  inputs: [tokens, width].
    Raises CalibrationError where there are no pairs, or the model is no encoder-decoder.
    """
    import torch

    if not pairs or not isinstance(source.architecture, EncoderDecoder):
        raise CalibrationError(f"{source.path.name}: an encoder-decoder and texts are needed to calibrate on answers")
    programs = source.architecture.encoder_program(source.config), source.architecture.program(source.config)
    values = {name: torch.from_numpy(source.tensor(name).dequantize().copy()) for name in source.headers}
    members = _members(source)
    sums = {group: sums_of(entries[0].name) for group, entries in members.items()}
    group_of = {entry.name: group for group, entries in members.items() for entry in entries}

    def watched(name: str, x: torch.Tensor) -> None:
        if name in group_of:
            seen[group_of[name]] = x

    with torch.inference_mode():
        for index, pair in enumerate(pairs):
            seen: dict[str, torch.Tensor] = {}
            run_pair(programs, values, pair, watched)
            for group, x in seen.items():
                see(sums[group], x[0].float())
            if progress is not None:
                progress(index + 1, len(pairs))
    return [(tuple(entries), sums[group]) for group, entries in members.items()]


def run_pair(
    programs: tuple[Program, Program],
    values: Mapping[str, torch.Tensor],
    pair: Pair,
    watched: Callable[[str, torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """Logits [tokens, vocab_size] after each token of the answer.

    values: float32, by canonical name.  watched: called with the name of each weight and [1, tokens, width] of inputs.
    """
    import torch
    from torch.nn import functional

    from lilliput.calibration import torch_program

    def linear(run: LinearRun, x: torch.Tensor) -> torch.Tensor:
        if watched is not None:
            watched(run.weight, x)
        bias = None if run.bias is None else values[run.bias].reshape(-1)
        return functional.linear(x, values[run.weight], bias)

    shared: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    buffers: dict[str, torch.Tensor] = {}
    for program, ids in zip(programs, (pair.text, pair.answer), strict=True):
        tokens = torch.from_numpy(np.asarray(ids, dtype=np.int64))[None]
        run = torch_program.ProgramRun(values.__getitem__, linear, {}, shared)
        buffers = {}
        for step in torch_program.joined(program.operations):
            if isinstance(step, Embed):
                buffers[step.out] = torch_program.embedded(step, values[step.weight], tokens)
            else:
                run.step(step, buffers)
    return buffers[programs[1].output][0]


def _members(source: ModelSource) -> dict[str, list[TensorEntry]]:
    """Entries by the input that they share; a head that is the embedding reads what a head of its own would."""
    members: dict[str, list[TensorEntry]] = {}
    table = {entry.name: entry for entry in source.architecture.tensor_table(source.config)}
    for entry in table.values():
        if entry.input_group is not None:
            members.setdefault(entry.input_group, []).append(table[entry.tied_to] if entry.tied_to else entry)
    return members
