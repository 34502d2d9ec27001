# SPDX-License-Identifier: Apache-2.0
"""One sequence under way: the native engine with its cache of keys and values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from lilliput import _native
from lilliput.architectures.program import Experts, Program
from lilliput.arrays import FloatArray, IntArray
from lilliput.checkpoints.model_source import ModelSource
from lilliput.errors import RuntimeModelError
from lilliput.runtime.integer_weights import named_inputs
from lilliput.runtime.lowering import lower
from lilliput.runtime.processors import default_threads

# "engine", "file", "f32" or integer inputs by name, see `EngineOptions`.
Activations = str
# Those that add no rounding of the engine's own.
EXACT_ACTIVATIONS = ("file", "f32")
KvFormat = Literal["f16", "f32", "q8_0", "q4_0", "q8_0_plain", "q4_0_plain"]
KV_FORMATS: tuple[KvFormat, ...] = get_args(KvFormat)
OutputRows = Literal["last", "all", "none"] | Sequence[int]

# Tokens of one forward pass. Unpacking a weight is shared by the tokens of a batch: 512 loses nothing measurable.
LARGEST_BATCH = 512
SMALLEST_BATCH = 32
# Bytes that a batch's buffers may take beside the file and the cache.
BATCH_MEMORY = 128 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How the engine runs; none of it changes what a file means.

    threads: None means `default_threads()`.  context: positions of the cache, None means the model's own.
    activations: "engine" quantizes inputs where the kernels want it, "f32" keeps them exact, and "file" all but static
        ones whose range the file holds; integer inputs by name, such as int8_token, int8_token_asym, int8_g32 or
        int8_static (lilliput.activations), are those of every weight whose format is integers under scales.
    repack: interleave the rows of quantized, F16 and BF16 weights in memory of the process, each when it is first used,
        faster at every number of tokens; otherwise they stay where the file is mapped, shared between processes.
    kv_format: of the cache of keys and values; q8_0 and q4_0 rotate them first, plain ones do not.
    instruction_set: "scalar", "avx2", "avx_vnni", "avx512_vnni", "neon_dotprod", or None for the best.
    """

    threads: int | None = None
    context: int | None = None
    activations: Activations = "engine"
    kv_format: KvFormat = "f16"
    instruction_set: str | None = None
    repack: bool = True


def engine_activations(activations: Activations) -> str:
    """What weights that do not run as integers are multiplied with. Raises RuntimeModelError for unknown names."""
    if activations not in ("engine", *EXACT_ACTIVATIONS):
        named_inputs(activations)
    return "f32" if activations in EXACT_ACTIVATIONS else "engine"


class Session:
    """Runs tokens through a model and remembers them.

    `length` tokens are in the cache; `forward` appends, `truncate` forgets the end.
    """

    def __init__(self, source: ModelSource, options: EngineOptions | None = None) -> None:
        """Load a model. Raises RuntimeModelError: context longer than the model's, a format that cannot be run."""
        options = options or EngineOptions()
        config = source.config
        self.context = checked_context(options.context, config.context_length)
        program = source.architecture.program(config)
        # What is put together for a measurement is no file that somebody could be warned of.
        native = lower(program, source.tensor, options.activations, tells=bool(source.weight_files))
        self.vocab_size = program.buffers[program.output]
        try:
            self._engine = _native.Engine(
                native,
                context=self.context,
                batch=min(batch_size(program), self.context),
                threads=options.threads or default_threads(),
                instruction_set=options.instruction_set or "",
                activations=engine_activations(options.activations),
                kv_format=options.kv_format,
                repacks=options.repack,
            )
        except ValueError as refused:
            raise RuntimeModelError(f"{source.path.name}: {refused}") from refused
        self._token_ids: list[int] = []

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The tokens in the cache."""
        return tuple(self._token_ids)

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return self._engine.length

    @property
    def threads(self) -> int:
        """Threads that work on a forward pass."""
        return self._engine.threads

    @property
    def instruction_set(self) -> str:
        """Which kernels run."""
        return self._engine.instruction_set

    @property
    def batch(self) -> int:
        """Tokens that one pass of the engine takes at most."""
        return self._engine.batch

    @property
    def cache_bytes(self) -> int:
        """Bytes of a full cache."""
        return self._engine.cache_bytes

    @property
    def repacked_bytes(self) -> int:
        """Bytes of weights laid out anew in memory, once all have been used."""
        return self._engine.repacked_bytes

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens. Raises RuntimeModelError when there are fewer."""
        try:
            self._engine.truncate(length)
        except ValueError as refused:
            raise RuntimeModelError(str(refused)) from refused
        del self._token_ids[length:]

    def forward(
        self,
        token_ids: Sequence[int] | IntArray,
        output: OutputRows = "last",
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> FloatArray:
        """Append tokens; return float32 logits [rows, vocab_size] of the rows asked for.

        output: the last token, all, none, or increasing indices into token_ids.
        progress: called with (tokens done, tokens in all) after each batch.
        Raises RuntimeModelError: too long for the context, a token id outside the vocabulary.
        """
        pieces = []
        for done, logits in self.batches(token_ids, output):
            pieces.append(logits)
            if progress is not None:
                progress(done, len(token_ids))
        if not pieces:
            return np.empty((0, self.vocab_size), dtype=np.float32)
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def batches(
        self, token_ids: Sequence[int] | IntArray, output: OutputRows = "all"
    ) -> Iterator[tuple[int, FloatArray]]:
        """Like `forward`, but yields (tokens done, their logits) batch by batch, so that memory stays bounded."""
        tokens = as_token_ids(token_ids)
        rows = as_rows(output, tokens.size)
        if self.length + tokens.size > self.context:
            raise RuntimeModelError(
                f"{self.length} tokens are in the cache and {tokens.size} more do not fit the context of "
                f"{self.context}; shorten the text or open the model with a larger context"
            )
        for start in range(0, tokens.size, self.batch):
            end = min(start + self.batch, tokens.size)
            wanted = rows[(rows >= start) & (rows < end)] - np.int32(start)
            yield end, self._run(tokens[start:end], wanted)

    def _run(self, tokens: IntArray, rows: IntArray) -> FloatArray:
        try:
            logits = self._engine.forward(tokens, self._engine.length, rows)
        except ValueError as refused:
            raise RuntimeModelError(str(refused)) from refused
        self._token_ids.extend(tokens.tolist())
        return logits


def checked_context(wanted: int | None, model_context: int) -> int:
    """The context to run with. Raises RuntimeModelError when it is longer than the model's or below 1."""
    if wanted is None:
        return model_context
    if wanted > model_context:
        raise RuntimeModelError(
            f"context {wanted} is longer than the model's {model_context}; give --context {model_context} or less"
        )
    if wanted < 1:
        raise RuntimeModelError(f"context is {wanted}, must be at least 1")
    return wanted


def batch_size(program: Program) -> int:
    """Tokens of one pass: as many as keep the buffers within BATCH_MEMORY."""
    widths = sum(width for name, width in program.buffers.items() if name != program.output)
    # Each expert of a token has an input or output, a gate and an up of its own, about as wide as the stream.
    for operation in program.operations:
        if isinstance(operation, Experts):
            widths += operation.used * 3 * program.buffers[operation.x]
            break
    # The widest input once more, as the kernels want it prepared.
    bytes_per_token = 4 * (widths + max(program.buffers.values()))
    fitting = BATCH_MEMORY // bytes_per_token
    return int(np.clip(fitting // SMALLEST_BATCH * SMALLEST_BATCH, SMALLEST_BATCH, LARGEST_BATCH))


def as_token_ids(token_ids: Sequence[int] | IntArray) -> IntArray:
    """Token ids as the engine takes them. Raises RuntimeModelError for one that no vocabulary has."""
    wide = np.asarray(token_ids, dtype=np.int64).reshape(-1)
    if wide.size and (wide.min() < 0 or wide.max() > np.iinfo(np.int32).max):
        bad = wide.min() if wide.min() < 0 else wide.max()
        raise RuntimeModelError(f"token id {bad} is outside every vocabulary")
    return np.ascontiguousarray(wide, dtype=np.int32)


def as_rows(output: OutputRows, tokens: int) -> IntArray:
    """Indices of the tokens whose logits are asked for. Raises RuntimeModelError."""
    match output:
        case "last":
            return np.arange(max(tokens - 1, 0), tokens, dtype=np.int32)
        case "all":
            return np.arange(tokens, dtype=np.int32)
        case "none":
            return np.empty(0, dtype=np.int32)
        case _:
            rows = np.asarray(output, dtype=np.int32).reshape(-1)
            if rows.size and (rows[0] < 0 or rows[-1] >= tokens or (np.diff(rows) <= 0).any()):
                raise RuntimeModelError(f"output rows must increase and lie in 0..{tokens - 1}")
            return rows
