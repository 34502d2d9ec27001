# SPDX-License-Identifier: Apache-2.0
"""The native engine as a source of logits: what `compare.evaluate` asks."""

from __future__ import annotations

from math import prod

from lilliput.arrays import FloatArray, IntArray
from lilliput.checkpoints.model_source import ModelSource
from lilliput.runtime.session import Activations, EngineOptions, Session


class EngineLogits:
    """One opened model, run window by window.

    activations "f32" measures the file: exact inputs, float32 cache. "engine" measures what a user of our engine gets.
    """

    def __init__(
        self, name: str, source: ModelSource, *, context: int, activations: Activations, threads: int | None
    ) -> None:
        kv_format = "f32" if activations == "f32" else "f16"
        options = EngineOptions(threads=threads, context=context, activations=activations, kv_format=kv_format)
        self._session = Session(source, options)
        headers = source.headers.values()
        self.name = name
        self.bytes = sum(path.stat().st_size for path in source.weight_files)
        self.bits_per_weight = sum(h.nbytes for h in headers) * 8 / sum(prod(h.shape) for h in headers)
        self.vocab_size = self._session.vocab_size

    def start(self) -> None:
        """Forget all tokens."""
        self._session.truncate(0)

    def advance(self, token_ids: IntArray, *, outputs: int) -> FloatArray:
        """Logits after the last `outputs` tokens."""
        return self._session.forward(token_ids, range(len(token_ids) - outputs, len(token_ids)))

