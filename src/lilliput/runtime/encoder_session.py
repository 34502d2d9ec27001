# SPDX-License-Identifier: Apache-2.0
"""An encoder at work: whole sequences in, hidden states, sentence vectors or class logits out. It remembers nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
TokenIds = Sequence[int] | IntArray
# Tokens of several sequences that go through a pass together.
TOKENS_TOGETHER = 256


class EncoderSession:
    """Runs sequences of tokens that all see each other: one, or several that do not see each other.

    Of several, the linears take all tokens together, and attention each sequence by itself: no padding. Weights in
    integers under scales give each sequence the bits that it has alone; kernels of other formats choose their order of
    sums by the number of tokens, so that numbers may differ by float32's rounding.
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
                batch=max(self.context, TOKENS_TOGETHER),
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

    def run(self, token_ids: TokenIds, rows: Rows = "all", segments: Sequence[int] | None = None) -> FloatArray:
        """What the program makes of each token, or of the first alone: float32 [rows, width].

        token_ids: special tokens included.  segments: of each token (BERT's sentence A or B), None for all 0.
        Raises RuntimeModelError: no tokens or too many, a token or segment that the model does not have.
        """
        return self._pass([self._tokens(token_ids)], rows, None if segments is None else [segments])[0]

    def run_each(
        self, texts: Sequence[TokenIds], rows: Rows = "all", segments: Sequence[Sequence[int]] | None = None
    ) -> Iterator[FloatArray]:
        """What `run` gives for each sequence, in their order, several of them a pass. Raises as `run` does."""
        together = self._engine.longest_of_several
        first, held = 0, 0
        checked = [self._tokens(text) for text in texts]
        for index, tokens in enumerate(checked):
            alone = max(tokens.size, checked[first].size) > together
            if index > first and (alone or held + tokens.size > TOKENS_TOGETHER):
                yield from self._pass(checked[first:index], rows, None if segments is None else segments[first:index])
                first, held = index, 0
            held += tokens.size
        if checked:
            yield from self._pass(checked[first:], rows, None if segments is None else segments[first:])

    def embed(self, token_ids: TokenIds) -> FloatArray:
        """One vector for the sequence, [width] float32, pooled as the model says, of length 1 where it says so."""
        vector: FloatArray = self.embed_each([token_ids])[0]
        return vector

    def embed_each(self, texts: Sequence[TokenIds]) -> FloatArray:
        """A vector for each sequence as `embed` gives it, [sequences, width] float32; several sequences a pass."""
        vectors = np.empty((len(texts), self.width), np.float32)
        rows: Rows = "first" if self.traits.pooling == "cls" else "all"
        for index, hidden in enumerate(self.run_each(texts, rows)):
            # The mean of one row is that row.
            vector = hidden.mean(axis=0, dtype=np.float64)
            if self.traits.is_normalized:
                # 1e-12 as in torch's normalize: a zero vector stays one.
                vector = vector / max(float(np.linalg.norm(vector)), 1e-12)
            vectors[index] = vector
        return vectors

    def classify(self, token_ids: TokenIds, segments: Sequence[int] | None = None) -> FloatArray:
        """Logits of the classes, [labels] float32. Raises RuntimeModelError for a model without such a head."""
        logits: FloatArray = self.classify_each([token_ids], None if segments is None else [segments])[0]
        return logits

    def classify_each(self, texts: Sequence[TokenIds], segments: Sequence[Sequence[int]] | None = None) -> FloatArray:
        """Logits as `classify` gives them for each sequence, [sequences, labels] float32; several sequences a pass."""
        if not self.traits.labels:
            raise RuntimeModelError("this model has no classification head; it embeds text")
        if self.traits.head != "text":
            raise RuntimeModelError(f"this model's head is for {self.traits.head}, of each token: use token_logits")
        empty = np.empty((0, self.width), np.float32)
        return np.concatenate([empty, *self.run_each(texts, "first", segments)])

    def token_logits(self, token_ids: TokenIds, segments: Sequence[int] | None = None) -> FloatArray:
        """What the head says of each token: float32 [tokens, labels], or [tokens, vocabulary] of a masked model.

        Raises RuntimeModelError for a model whose head is about the whole text.
        """
        if self.traits.head == "text":
            raise RuntimeModelError("this model tells nothing of single tokens; it embeds or classifies text")
        return self.run(token_ids, "all", segments)

    def _tokens(self, token_ids: TokenIds) -> IntArray:
        tokens = as_token_ids(token_ids)
        if not 0 < tokens.size <= self.context:
            raise RuntimeModelError(
                f"{tokens.size} tokens: an encoder takes 1 to {self.context} at a time; cut the text"
            )
        return tokens

    def _pass(
        self, texts: Sequence[IntArray], rows: Rows, segments: Sequence[Sequence[int]] | None
    ) -> list[FloatArray]:
        """One pass of the engine: float32 [rows, width] of each sequence."""
        lengths = np.array([tokens.size for tokens in texts], np.int32)
        ends = np.cumsum(lengths)
        wanted: IntArray = np.arange(ends[-1], dtype=np.int32) if rows == "all" else (ends - lengths).astype(np.int32)
        cuts = ends[:-1] if rows == "all" else np.arange(1, len(texts))
        parts = None if segments is None else np.concatenate([np.asarray(part, np.int32) for part in segments])
        try:
            found = self._engine.forward(
                np.concatenate(texts), 0, wanted, parts, lengths=lengths if len(texts) > 1 else None
            )
        except ValueError as refused:
            raise RuntimeModelError(str(refused)) from refused
        return np.split(found, cuts)
