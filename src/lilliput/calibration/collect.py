# SPDX-License-Identifier: Apache-2.0
"""Prior statistics of a float model: what enters each linear layer, over some text, in one streaming pass.

All chunks go through block 0, then block 1, and so on, so that one block's weights are in memory at a time and every
weight is read once. Hidden states of all chunks wait in memory, or in a temporary file past `memory_limit`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from lilliput.arrays import FloatArray, IntArray
from lilliput.calibration.block_stream import BlockStream
from lilliput.calibration.builtin_mix import BUILT_IN_DATASET
from lilliput.calibration.data import calibration_chunks
from lilliput.calibration.enough_text import check_enough
from lilliput.calibration.expert_inputs import of_expert
from lilliput.calibration.input_sums import InputSums
from lilliput.calibration.mapped_file import mapped_floats
from lilliput.calibration.output_ranges import Ranges, output_ranges
from lilliput.calibration.pair_inputs import answered, pair_inputs
from lilliput.checkpoints.model_source import ModelSource
from lilliput.errors import CalibrationError
from lilliput.methods.torch_threads import torch_threads
from lilliput.progress import Progress
from lilliput.records import InputStatistics, Statistics

if TYPE_CHECKING:
    import torch


class SeenInputs(Protocol):
    """What takes in the inputs of a linear. tokens: how many it saw."""

    tokens: int

    def add(self, inputs: FloatArray) -> None:
        """inputs: [..., in_features] float32."""


Sums = TypeVar("Sums", bound=SeenInputs)


@dataclass(frozen=True, slots=True)
class CalibrationOptions:
    """How to run.

    chunk_size: tokens of one sequence, at most the model's context.  tokens: use at most this many, None means all.
    device: a torch device.  threads: None leaves torch's own choice.
    memory_limit: bytes for one block and the hidden states; what does not fit goes to a temporary file.
    outputs: whether ranges of what every operation gives are collected as well, in a pass with the whole model in
    memory.
    """

    chunk_size: int = 512
    tokens: int | None = None
    device: str = "cpu"
    threads: int | None = None
    memory_limit: int | None = None
    outputs: bool = False


def calibrate(
    source: ModelSource,
    texts: Sequence[Path] = (),
    options: CalibrationOptions | None = None,
    progress: Progress | None = None,
) -> Statistics:
    """Statistics of every linear layer's input, keyed by canonical tensor name.

    texts: plain text, JSON Lines or chat files; none means the built-in mix.
    progress: called with (steps done, steps in all); a step is one chunk through one block.
    Raises CalibrationError for text that gives no tokens, and for activations that are not finite.
    """
    options = options or CalibrationOptions()
    chunk_size = min(options.chunk_size, source.config.context_length)
    chunks = calibration_chunks(source.vocabulary(), texts, chunk_size=chunk_size, tokens=options.tokens)
    check_enough(chunks, texts)
    inputs = (collect if source.config.decoder is None else collect_pairs)(source, chunks, options, progress)
    return Statistics(
        inputs=inputs,
        chunks=len(chunks),
        chunk_size=chunks.shape[1],
        datasets=tuple(path.name for path in texts) or (BUILT_IN_DATASET,),
        model=source.fingerprint(),
        outputs=_outputs(source, chunks, options, progress) if options.outputs else {},
    )


def _outputs(source: ModelSource, chunks: IntArray, options: CalibrationOptions, progress: Progress | None) -> Ranges:
    with torch_threads(options.threads):
        return output_ranges(source, list(chunks), progress)


def collect(
    source: ModelSource, chunks: IntArray, options: CalibrationOptions, progress: Progress | None = None
) -> dict[str, InputStatistics]:
    """The pass itself, over token ids [chunks, chunk_size]. Linears that share an input share one entry object."""
    return _statistics_of(collect_sums(source, chunks, options, InputSums, progress))


def collect_pairs(
    source: ModelSource, chunks: IntArray, options: CalibrationOptions, progress: Progress | None = None
) -> dict[str, InputStatistics]:
    """The same of an encoder-decoder, whose answers to the chunks are its own. The whole model is in memory."""
    return _statistics_of(pair_sums(source, chunks, options, InputSums, progress))


def _statistics_of(sums: Mapping[str, InputSums]) -> dict[str, InputStatistics]:
    made: dict[int, InputStatistics] = {}
    return {name: made.setdefault(id(each), each.statistics()) for name, each in sums.items()}


def collect_sums(
    source: ModelSource, chunks: IntArray, options: CalibrationOptions, sums_of: Callable[[str], Sums],
    progress: Progress | None = None,
) -> dict[str, Sums]:  # fmt: skip
    """What `sums_of` makes of a tensor's name, filled with the inputs of that tensor and those that share them."""
    stream = BlockStream(source, options.device)
    import torch

    steps = (stream.layers + 1) * len(chunks)
    done = 0
    inputs: dict[str, Sums] = {}
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        stack.enter_context(torch_threads(options.threads))
        hidden = stack.enter_context(_hidden_states(stream, chunks, options.memory_limit))
        arguments = stream.block_arguments(chunks.shape[1])
        for layer in range(stream.layers):
            with (
                stream.block(layer) as block,
                stream.watching(block, layer, sums_of, _see, by_expert=True) as groups,
            ):
                for index in range(len(chunks)):
                    hidden[index] = stream.forward(block, layer, index, hidden[index], arguments[layer])
                    done += 1
                    if progress is not None:
                        progress(done, steps)
            for group in groups:
                if group.expert is not None and not group.sums.tokens:
                    # No token was routed to it.
                    continue
                names = (entry.name for entry in group.entries)
                inputs |= dict.fromkeys(
                    names if group.expert is None else (of_expert(n, group.expert) for n in names), group.sums
                )
        head = sums_of("output.weight")
        with stream.final_norm() as norm:
            for index in range(len(chunks)):
                _see(head, norm(hidden[index].to(stream.device)))
                done += 1
                if progress is not None:
                    progress(done, steps)
    inputs |= dict.fromkeys(stream.output_names, head)
    return inputs


def pair_sums(
    source: ModelSource, chunks: IntArray, options: CalibrationOptions, sums_of: Callable[[str], Sums],
    progress: Progress | None = None,
) -> dict[str, Sums]:  # fmt: skip
    """The same of an encoder-decoder."""
    pairs = list(answered(source, chunks, threads=options.threads))
    with torch_threads(options.threads):
        groups = pair_inputs(source, pairs, sums_of, _see, progress)
    return {entry.name: sums for entries, sums in groups for entry in entries}


def _see(sums: SeenInputs, inputs: torch.Tensor) -> None:
    if inputs.numel():
        sums.add(inputs.cpu().numpy())


@contextmanager
def _hidden_states(stream: BlockStream, chunks: IntArray, memory_limit: int | None) -> Iterator[torch.Tensor]:
    """Embedded tokens [chunks, chunk_size, hidden_size] float32, in memory or in a temporary file."""
    import torch

    shape = (*chunks.shape, stream.source.config.hidden_size)
    needed = 4 * int(np.prod(shape, dtype=np.int64))
    with ExitStack() as stack:
        if memory_limit is not None and needed + stream.block_bytes() > memory_limit:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="lilliput-calibrate-"))
            hidden = torch.from_numpy(_on_disk(Path(folder), shape))
        else:
            hidden = torch.empty(shape)
        for index, chunk in enumerate(chunks):
            hidden[index] = stream.embed(chunk)
        yield hidden


def _on_disk(folder: Path, shape: tuple[int, ...]) -> FloatArray:
    try:
        return mapped_floats(folder / "hidden_states", shape)
    except OSError as failure:
        raise CalibrationError(
            f"{folder}: no room for {4 * int(np.prod(shape, dtype=np.int64))} bytes of hidden states "
            f"({failure.strerror}); use fewer tokens, a larger memory limit, or set TMPDIR to a larger disk"
        ) from failure
