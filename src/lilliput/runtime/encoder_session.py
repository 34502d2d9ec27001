# SPDX-License-Identifier: Apache-2.0
"""An encoder at work: whole sequences in, hidden states, sentence vectors or class logits out. It remembers nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from lilliput import _native
from lilliput.arrays import FloatArray, IntArray
from lilliput.checkpoints.model_source import ModelSource
from lilliput.errors import RuntimeModelError
from lilliput.runtime.lowering import lower
from lilliput.runtime.processors import default_threads
from lilliput.runtime.session import EngineOptions, as_token_ids, checked_context, engine_activations

Rows = Literal["all", "first"]


class EncoderSession:
    """Runs sequences of tokens that all see each other, one sequence a pass.

    `options.kv_format` does not matter: keys and values live for one layer only, in float32.
    """

    def __init__(self, source: ModelSource, options: EngineOptions | None = None) -> None:
        """Load a model. Raises RuntimeModelError: no encoder, context longer than the model's, an unknown format."""
        options = options or EngineOptions()
        config = source.config
        if config.encoder is None:
            raise RuntimeModelError(f"{source.path.name}: {config.family} predicts the next token; it embeds no text")
        self.traits = config.encoder
        self.context = checked_context(options.context, config.context_length)
        program = source.architecture.program(config)
        self.width = program.buffers[program.output]
        try:
            self._engine = _native.Engine(
                lower(program, source.tensor, options.activations),
                context=self.context,
                batch=self.context,
                threads=options.threads or default_threads(),
                instruction_set=options.instruction_set or "",
                activations=engine_activations(options.activations),
                kv_format="f32",
                repacks=options.repack,
            )
        except ValueError as refused:
            raise RuntimeModelError(f"{source.path.name}: {refused}") from refused

    @property
    def threads(self) -> int:
        """Threads that work on a pass."""
        return self._engine.threads

    @property
    def instruction_set(self) -> str:
        """Which kernels run."""
        return self._engine.instruction_set

    def run(
        self, token_ids: Sequence[int] | IntArray, rows: Rows = "all", segments: Sequence[int] | None = None
    ) -> FloatArray:
        """What the program makes of each token, or of the first alone: float32 [rows, width].

        token_ids: special tokens included.  segments: of each token (BERT's sentence A or B), None for all 0.
        Raises RuntimeModelError: no tokens or too many, a token or segment that the model does not have.
        """
        tokens = as_token_ids(token_ids)
        if not 0 < tokens.size <= self.context:
            raise RuntimeModelError(
                f"{tokens.size} tokens: an encoder takes 1 to {self.context} at a time; cut the text"
            )
        wanted = np.arange(tokens.size if rows == "all" else 1, dtype=np.int32)
        try:
            return self._engine.forward(
                tokens, 0, wanted, None if segments is None else np.asarray(segments, dtype=np.int32)
            )
        except ValueError as refused:
            raise RuntimeModelError(str(refused)) from refused

    def embed(self, token_ids: Sequence[int] | IntArray) -> FloatArray:
        """One vector for the sequence, [width] float32, pooled as the model says, of length 1 where it says so."""
        if self.traits.pooling == "cls":
            vector = self.run(token_ids, "first")[0].astype(np.float64)
        else:
            vector = self.run(token_ids).mean(axis=0, dtype=np.float64)
        if self.traits.is_normalized:
            # 1e-12 as in torch's normalize: a zero vector stays one.
            vector = vector / max(float(np.linalg.norm(vector)), 1e-12)
        result: FloatArray = vector.astype(np.float32)
        return result

    def classify(self, token_ids: Sequence[int] | IntArray, segments: Sequence[int] | None = None) -> FloatArray:
        """Logits of the classes, [labels] float32. Raises RuntimeModelError for a model without such a head."""
        if not self.traits.labels:
            raise RuntimeModelError("this model has no classification head; it embeds text")
        if self.traits.head != "text":
            raise RuntimeModelError(f"this model's head is for {self.traits.head}, of each token: use token_logits")
        logits: FloatArray = self.run(token_ids, "first", segments)[0]
        return logits

    def token_logits(self, token_ids: Sequence[int] | IntArray, segments: Sequence[int] | None = None) -> FloatArray:
        """What the head says of each token: float32 [tokens, labels], or [tokens, vocabulary] of a masked model.

        Raises RuntimeModelError for a model whose head is about the whole text.
        """
        if self.traits.head == "text":
            raise RuntimeModelError("this model tells nothing of single tokens; it embeds or classifies text")
        return self.run(token_ids, "all", segments)
