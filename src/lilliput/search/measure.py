# SPDX-License-Identifier: Apache-2.0
"""Real KL of a configuration, without writing it: candidates put together in memory and run in the native engine.

Every measurement is appended to a file as one line, so that a killed search repeats none; a search that draws from a
seeded generator then takes the same way again through what is known, and on.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lilliput.arrays import DoubleArray, FloatArray
from lilliput.calibration.mapped_file import mapped_floats
from lilliput.checkpoints.model_source import ModelSource, Provenance
from lilliput.containers.part_writer import disk_error
from lilliput.errors import PublishError
from lilliput.evaluation.chunks import Chunks
from lilliput.evaluation.divergence import log_probabilities, row_divergences
from lilliput.evaluation.model_logits import EvaluationOptions, ModelLogits
from lilliput.evaluation.paired import paired_ratio
from lilliput.formats import NumberFormat
from lilliput.records import QuantizedTensor, TensorHeader
from lilliput.search.candidates import Candidates
from lilliput.search.choices import Choice, Picks, formats_by_tensor
from lilliput.text.vocabulary import Vocabulary

# Predictions of the original over the selection text stay in memory up to this size, and lie in a file beyond.
KEPT_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class MeasuredKl:
    """KL from the original, in nats. window_sums: [windows], summed over the scored tokens of each window."""

    window_sums: DoubleArray
    scored_per_window: int

    @property
    def mean(self) -> float:
        """Nats a token."""
        return float(self.window_sums.sum()) / (len(self.window_sums) * self.scored_per_window)

    def interval(self) -> tuple[float, float]:
        """95 % interval of the mean, by the bootstrap over windows; NaN for too few of them."""
        even = np.full((len(self.window_sums), 1), self.scored_per_window, dtype=np.float64)
        found = paired_ratio("", "", self.window_sums[:, None], even)
        return found.low, found.high


class AssembledModel:
    """The original with some tensors replaced by candidates: a ModelSource that no file holds."""

    def __init__(self, source: ModelSource, tensors: Mapping[str, QuantizedTensor]) -> None:
        self._source = source
        self._tensors = dict(tensors)
        self.path: Path = source.path
        self.container: str = source.container
        self.architecture = source.architecture
        self.config = source.config
        self.provenance: Provenance = source.provenance

    @property
    def headers(self) -> Mapping[str, TensorHeader]:
        """As chosen."""
        return {
            name: TensorHeader(name, header.shape, self._tensors[name].format) if name in self._tensors else header
            for name, header in self._source.headers.items()
        }

    @property
    def weight_files(self) -> tuple[Path, ...]:
        """None: it is not on disk."""
        return ()

    def source_name(self, name: str) -> str:
        """As in the original."""
        return self._source.source_name(name)

    def tensor(self, name: str) -> QuantizedTensor:
        """The candidate where there is one."""
        found = self._tensors.get(name)
        return self._source.tensor(name) if found is None else found

    def release(self, name: str) -> None:
        """Give mapped pages of the original back."""
        self._source.release(name)

    def vocabulary(self) -> Vocabulary:
        """The original's."""
        return self._source.vocabulary()

    def fingerprint(self) -> str:
        """Of the original and of what replaces it."""
        formats = sorted((name, tensor.format.name) for name, tensor in self._tensors.items())
        return hashlib.sha256(json.dumps([self._source.fingerprint(), formats]).encode()).hexdigest()

    def close(self) -> None:
        """Nothing of its own to release."""


class Meter:
    """Measures configurations on the selection text.

    known: file of earlier measurements.  evaluations: windows run so far by this object, in units of the whole text.
    """

    def __init__(
        self,
        source: ModelSource,
        choices: Sequence[Choice],
        candidates: Candidates,
        chunks: Chunks,
        known: Path,
        *,
        threads: int | None = None,
    ) -> None:
        self._source = source
        self._choices = tuple(choices)
        self._candidates = candidates
        self._chunks = chunks
        self._options = EvaluationOptions(context=chunks.context, threads=threads, measure_floor=False)
        self._base: _OriginalPredictions | None = None
        self._file = known
        self._known: dict[str, list[float]] = read_measurements(known)

    @property
    def windows(self) -> int:
        """Of the selection text."""
        return len(self._chunks)

    def kl(self, picks: Picks, windows: int | None = None) -> MeasuredKl:
        """Mean KL over the first `windows` windows, all by default. Raises EvaluationError, PublishError."""
        wanted = len(self._chunks) if windows is None else min(windows, len(self._chunks))
        key = self.key(picks)
        found = self._known.get(key, [])
        if len(found) < wanted:
            more = self._measure(formats_by_tensor(self._choices, picks), len(found), wanted)
            found = [*found, *more]
            self._known[key] = found
            self._append(key, found)
        return MeasuredKl(np.array(found[:wanted]), self._chunks.scored_per_chunk)

    def is_known(self, picks: Picks) -> bool:
        """Whether the whole text was measured already."""
        return len(self._known.get(self.key(picks), [])) >= len(self._chunks)

    def key(self, picks: Picks) -> str:
        """Digest of a configuration, the same whatever other formats were candidates."""
        formats = formats_by_tensor(self._choices, picks)
        named = sorted((name, number_format.name) for name, number_format in formats.items())
        return hashlib.sha256(json.dumps(named).encode()).hexdigest()[:24]

    def _measure(self, formats: Mapping[str, NumberFormat], first: int, last: int) -> list[float]:
        tensors = {name: self._candidates.get(name, item).tensor for name, item in formats.items()}
        model = ModelLogits(AssembledModel(self._source, tensors), "configuration", self._options)
        if self._base is None:
            original = ModelLogits(self._source, self._source.path.name, self._options)
            self._base = _OriginalPredictions(original, self._chunks, self._file.with_name("original-predictions"))
        sums = []
        for window in range(first, last):
            base, logits = self._base.of_window(window), scored_logits(model, self._chunks, window)
            sums.append(float(row_divergences(base, logits).sum()))
        return sums

    def _append(self, key: str, sums: Sequence[float]) -> None:
        try:
            with self._file.open("a", encoding="ascii") as file:
                # A line that a killed run cut short must not swallow this one.
                file.write("\n" + json.dumps({"configuration": key, "window_sums": list(sums)}))
        except OSError as failure:
            raise PublishError(f"{self._file}: cannot be written: {failure.strerror or failure}") from failure


def scored_logits(model: ModelLogits, chunks: Chunks, window: int) -> FloatArray:
    """Logits [scored, vocab] of the positions of one window that are scored."""
    token_ids, first = chunks.token_ids[window], chunks.first_scored
    model.start()
    model.advance(token_ids[:first], outputs=0)
    return model.advance(token_ids[first:-1], outputs=len(token_ids) - first - 1)


class _OriginalPredictions:
    """Log-probabilities of the original, computed once, each window when it is first asked for.

    file: takes what is too much for memory; it has no name any more once it is open, so nothing is left behind.
    """

    def __init__(self, original: ModelLogits, chunks: Chunks, file: Path) -> None:
        self._original = original
        self._chunks = chunks
        self._kept = _numbers((len(chunks), chunks.scored_per_chunk, original.vocab_size), file)
        self._known: set[int] = set()

    def of_window(self, window: int) -> FloatArray:
        """Float32 [scored, vocab]."""
        if window not in self._known:
            self._kept[window] = log_probabilities(scored_logits(self._original, self._chunks, window))
            self._known.add(window)
        found: FloatArray = self._kept[window]
        return found


def _numbers(shape: tuple[int, ...], file: Path) -> FloatArray:
    """An array in memory, or in a file where it is large. Raises PublishError."""
    if 4 * math.prod(shape) <= KEPT_BYTES:
        return np.empty(shape, dtype=np.float32)
    try:
        found = mapped_floats(file, shape)
        file.unlink()
    except OSError as failure:
        raise disk_error(file.name, failure) from failure
    return found


def read_measurements(path: Path) -> dict[str, list[float]]:
    """Earlier measurements; of several of one configuration the longest."""
    found: dict[str, list[float]] = {}
    try:
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    for line in lines:
        try:
            content = json.loads(line)
            key, sums = str(content["configuration"]), [float(value) for value in content["window_sums"]]
        except (ValueError, KeyError, TypeError):
            continue  # cut short by a killed run
        if len(sums) > len(found.get(key, [])):
            found[key] = sums
    return found
