# SPDX-License-Identifier: Apache-2.0
"""An encoder and a decoder at work: two programs, and between them the keys and values that the first leaves behind."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lilliput import _native
from lilliput.architectures.architecture import EncoderDecoder
from lilliput.architectures.program import Program
from lilliput.arrays import FloatArray, IntArray
from lilliput.checkpoints.model_source import ModelSource
from lilliput.errors import RuntimeModelError
from lilliput.runtime.lowering import lower
from lilliput.runtime.processors import default_threads
from lilliput.runtime.session import (
    EngineOptions,
    OutputRows,
    as_rows,
    as_token_ids,
    checked_context,
    engine_activations,
)


class EncoderDecoderSession:
    """`encode` a text, then feed the decoder: `forward` one answer, or `step` several side by side (beams).

    The encoder runs once a text; what the decoder's cross attention reads of it is computed there.
    """

    def __init__(self, source: ModelSource, options: EngineOptions | None = None, *, beams: int = 1) -> None:
        """Load a model. Raises RuntimeModelError: no encoder and decoder, context longer than the model's.

        beams: answers that can be followed at once.
        """
        options = options or EngineOptions()
        config = source.config
        if config.decoder is None or not isinstance(source.architecture, EncoderDecoder):
            raise RuntimeModelError(f"{source.path.name}: {config.family} is no encoder-decoder")
        self.context = checked_context(options.context, config.context_length)
        self.traits = config.decoder
        self.beams = beams
        encoder = source.architecture.encoder_program(config)
        decoder = source.architecture.program(config)
        self.vocab_size = decoder.buffers[decoder.output]
        native = lower(encoder, source.tensor, options.activations)
        kv_format = options.kv_format
        self._shared = _native.SharedCache(native, context=self.context, kv_format=kv_format)

        def engine(program: Program, lowered: _native.Program, kv_format: str, sequences: int) -> _native.Engine:
            try:
                return _native.Engine(
                    lowered,
                    context=self.context,
                    batch=max(self.context, sequences),
                    threads=options.threads or default_threads(),
                    instruction_set=options.instruction_set or "",
                    activations=engine_activations(options.activations),
                    kv_format=kv_format,
                    repacks=options.repack,
                    sequences=sequences,
                    shared=self._shared,
                )
            except ValueError as refused:
                raise RuntimeModelError(f"{source.path.name}: {refused}") from refused

        self._encoder = engine(encoder, native, "f32", 1)
        self._decoder = engine(decoder, lower(decoder, source.tensor, options.activations), kv_format, beams)

    @property
    def length(self) -> int:
        """Tokens that the decoder holds, of each answer."""
        return self._decoder.length

    def encode(self, token_ids: Sequence[int] | IntArray) -> None:
        """Read a text, special tokens included; answers begin anew. Raises RuntimeModelError for a text too long."""
        tokens = as_token_ids(token_ids)
        if not 0 < tokens.size <= self.context:
            raise RuntimeModelError(
                f"{tokens.size} tokens: the encoder takes 1 to {self.context} at a time; cut the text"
            )
        self._run(self._encoder, tokens, np.empty(0, dtype=np.int32), n_past=0)
        self._decoder.truncate(0)

    def forward(self, token_ids: Sequence[int] | IntArray, output: OutputRows = "last") -> FloatArray:
        """Append tokens to the first answer; float32 logits [rows, vocab_size] of the rows asked for."""
        tokens = as_token_ids(token_ids)
        return self._run(self._decoder, tokens, as_rows(output, tokens.size), n_past=self.length)

    def step(self, token_ids: Sequence[int] | IntArray) -> FloatArray:
        """Append one token to each of the first answers, all of one length; logits [answers, vocab_size]."""
        tokens = as_token_ids(token_ids)
        return self._run(self._decoder, tokens, as_rows("all", tokens.size), n_past=self.length, abreast=True)

    def reorder(self, sources: Sequence[int]) -> None:
        """Answer i goes on from what answer sources[i] was."""
        try:
            self._decoder.reorder(np.asarray(sources, dtype=np.int32))
        except ValueError as refused:
            raise RuntimeModelError(str(refused)) from refused

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens of every answer."""
        try:
            self._decoder.truncate(length)
        except ValueError as refused:
            raise RuntimeModelError(str(refused)) from refused

    def _run(
        self, engine: _native.Engine, tokens: IntArray, rows: IntArray, *, n_past: int, abreast: bool = False
    ) -> FloatArray:
        try:
            return engine.forward(tokens, n_past, rows, abreast=abreast)
        except ValueError as refused:
            raise RuntimeModelError(str(refused)) from refused
