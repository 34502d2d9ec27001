# SPDX-License-Identifier: Apache-2.0
"""A rewritten model as a ModelSource: tensors are computed when they are read, one at a time, in float32.

So calibration, methods, containers and the engine see a model like any other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from lilliput.architectures.sources import Named
from lilliput.checkpoints.fingerprint import bytes_of
from lilliput.checkpoints.mapped_file import update_digest
from lilliput.checkpoints.model_source import ModelSource
from lilliput.formats import get_format
from lilliput.records import InputStatistics, QuantizedTensor, Statistics, TensorHeader
from lilliput.text.vocabulary import Vocabulary
from lilliput.transforms.changes import Change, RotatedColumns, ScaledColumns
from lilliput.transforms.transform import Outline, Rewrite, Transform


class TransformedSource:
    """`inner` after one transform. Without a rewrite only its headers can be read.

    outline: which tensors change.  rewrite: how, or None where that is still to be decided.
    """

    def __init__(
        self, inner: ModelSource, transform: Transform, outline: Outline, rewrite: Rewrite | None = None
    ) -> None:
        self.inner = inner
        self.transform = transform
        self.outline = outline
        self.rewrite = rewrite
        self.path: Path = inner.path
        self.container = inner.container
        self.architecture = inner.architecture
        self.config = outline.config
        self.provenance = inner.provenance
        self._headers = dict(inner.headers)
        float32 = get_format("f32")
        for name in outline.changed:
            self._headers[name] = replace(self._headers[name], format=float32)
        for name, original in outline.copies.items():
            self._headers[name] = replace(self._headers[original], name=name)
        # The block loop asks for the embedding once a chunk.
        self._kept: QuantizedTensor | None = None

    @property
    def headers(self) -> Mapping[str, TensorHeader]:
        """Changed tensors are F32; added ones come last."""
        return self._headers

    @property
    def weight_files(self) -> tuple[Path, ...]:
        """Those of the original."""
        return self.inner.weight_files

    def source_name(self, name: str) -> str:
        """As the original spells it; an added tensor as the family's checkpoints would."""
        if name not in self.outline.copies:
            return self.inner.source_name(name)
        table = {entry.name: entry.source for entry in self.architecture.tensor_table(self.config)}
        source = table.get(name)
        return source.name if self.container == "huggingface" and isinstance(source, Named) else name

    def tensor(self, name: str) -> QuantizedTensor:
        """One tensor: mapped where nothing changes, else computed."""
        original = self.inner.tensor(self.outline.copies.get(name, name))
        if name not in self.outline.changed:
            return replace(original, name=name)
        assert self.rewrite is not None, f"{name}: {self.transform.name} is planned, not decided"
        if self._kept is None or self._kept.name != name:
            self._kept = _changed(original, self.headers[name], self.rewrite.changes.get(name, ()))
        return self._kept

    def release(self, name: str) -> None:
        """Forget what was computed, and give the original's pages back."""
        if self._kept is not None and self._kept.name == name:
            self._kept = None
        self.inner.release(self.outline.copies.get(name, name))

    def vocabulary(self) -> Vocabulary:
        """The original's."""
        return self.inner.vocabulary()

    def fingerprint(self) -> str:
        """sha256 over the original's, the transform and, once decided, every change."""
        digest = hashlib.sha256(self.inner.fingerprint().encode())
        digest.update(json.dumps([self.transform.name, self.transform.strength]).encode())
        for name, changes in sorted(self.rewrite.changes.items()) if self.rewrite is not None else ():
            for change in changes:
                digest.update(f"{name} {type(change).__name__} {list(change.content.shape)}\n".encode())
                update_digest(digest, bytes_of(change.content))
        return digest.hexdigest()

    def close(self) -> None:
        """Close the original."""
        self._kept = None
        self.inner.close()

    def carried(self, statistics: Statistics) -> Statistics:
        """Statistics of the original -> of this model, without inputs that were turned: squares do not tell them."""
        assert self.rewrite is not None, f"{self.transform.name} is planned, not decided"
        inputs: dict[str, InputStatistics] = {}
        for name, entry in statistics.inputs.items():
            if name in self.outline.copies.values():
                continue  # an embedding that served as head as well, and now is looked up only
            changes = self.rewrite.changes.get(name, ())
            if not any(isinstance(change, RotatedColumns) for change in changes):
                inputs[name] = _divided(entry, changes)
        for name, original in self.outline.copies.items():
            if name not in statistics.inputs and original in statistics.inputs:
                inputs[name] = statistics.inputs[original]
        model = self.fingerprint() if statistics.model == self.inner.fingerprint() else statistics.model
        return replace(statistics, inputs=inputs, model=model)


def original_of(source: ModelSource) -> ModelSource:
    """The model inside all transforms."""
    return original_of(source.inner) if isinstance(source, TransformedSource) else source


def _changed(original: QuantizedTensor, header: TensorHeader, changes: tuple[Change, ...]) -> QuantizedTensor:
    """Apply changes to a matrix, or to a vector as one column."""
    values = original.dequantize()
    matrix = values.reshape(-1, 1) if len(original.shape) < 2 else values.reshape(original.rows, original.columns)
    for change in changes:
        matrix = change.applied(matrix)
    rows = np.ascontiguousarray(matrix, dtype=np.float32).reshape(original.rows, original.columns)
    planes = header.format.pack(header.format.encode(rows))
    return QuantizedTensor(header.name, header.shape, header.format, planes)


def _divided(entry: InputStatistics, changes: tuple[Change, ...]) -> InputStatistics:
    for change in changes:
        if isinstance(change, ScaledColumns):
            factors = change.factors.astype(np.float64)
            squares, absmax = entry.sum_of_squares / factors**2, entry.absmax / np.abs(factors)
            entry = InputStatistics(entry.tokens, squares, absmax.astype(np.float32))
    return entry
