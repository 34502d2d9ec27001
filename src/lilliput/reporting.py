# SPDX-License-Identifier: Apache-2.0
"""Gathering what a report shows: measure the files on a text, compare their tensors, ask ledgers how they were made.

`report` is the workflow of `lilliput report`; `lilliput.reports` draws what it returns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from lilliput.architectures.architecture import Json
from lilliput.arrays import DoubleArray
from lilliput.calibration.builtin_mix import BUILT_IN_DATASET
from lilliput.checkpoints.model_source import ModelSource
from lilliput.evaluation.chunks import Chunks
from lilliput.evaluation.compare import EvaluationResult, FileResult, evaluate
from lilliput.evaluation.divergence import Divergence
from lilliput.evaluation.model_logits import EvaluationOptions, ModelLogits, builtin_chunks, engine_floor, tokenize
from lilliput.evaluation.paired import FEWEST_CHUNKS
from lilliput.evaluation.text_report import FLOOR_MARGIN
from lilliput.evaluation.text_views import TextViews
from lilliput.evaluation.top_tokens import TopTokens
from lilliput.evaluation.verdict import LAST_SAFE_LEVEL, limits, verdict
from lilliput.evaluation.weight_rows import pictures, tensor_rows
from lilliput.evaluation.window_intervals import exponential, mean_interval
from lilliput.opening import PathLike, is_builtin, opened
from lilliput.progress import Progress
from lilliput.recipes.ledger import versions
from lilliput.recipes.making import found_ledger, making
from lilliput.reports.frontier import Frontier, read_frontier
from lilliput.reports.records import (
    Comparison,
    Histogram,
    Interval,
    Measured,
    MeasuringText,
    Original,
    Passage,
    QuantizedFile,
    Report,
)
from lilliput.runtime.session import checked_context
from lilliput.text.documents import read_text

# Enough windows for an interval that is worth reading, few enough for minutes on a model of a billion weights.
DEFAULT_TOKENS = 16_384
# log10 of KL in nats.
KLD_EDGES = np.linspace(-8.0, 2.0, 81)
# Files of one mix differ by a few bytes of metadata.
SAME_SIZE = 1.01


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """What to measure on, and how.

    text: None or "builtin" means the built-in mix.  frontier: points of a search.  prompt: what both models continue;
    None means the beginning of the passage that is shown.  command: what the page says it was made with.
    """

    text: Path | None = None
    frontier: Path | None = None
    prompt: str | None = None
    measuring: EvaluationOptions = field(default_factory=lambda: EvaluationOptions(tokens=DEFAULT_TOKENS))
    command: str = ""


def report(
    base: PathLike,
    files: Sequence[PathLike],
    options: ReportOptions | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Measure quantized `files` against `base` and gather everything that a page or card shows.

    progress: called after every window with windows done and windows in all.
    Raises EvaluationError, RuntimeModelError, TextError, RecipeError …, one line each, before anything is written.
    """
    options = options or ReportOptions()
    if options.text is not None and is_builtin(options.text):
        options = replace(options, text=None)
    frontier = read_frontier(options.frontier) if options.frontier else Frontier()
    text = read_text(options.text) if options.text else None
    with ExitStack() as stack:
        original = stack.enter_context(opened(base))
        sources = [stack.enter_context(opened(name)) for name in files]
        for source in (original, *sources):
            checked_context(options.measuring.context, source.config.context_length)
        gathering = _Gathering(original, tuple(sources), labels(sources, original), options, frontier, text)
        return gathering.run(progress)


@dataclass(frozen=True, slots=True)
class _Gathering:
    """Opened models on their way to a report."""

    original: ModelSource
    sources: tuple[ModelSource, ...]
    names: tuple[str, ...]
    options: ReportOptions
    frontier: Frontier
    text: str | None

    def run(self, progress: Progress | None) -> Report:
        """Measure once, then look at texts and tensors."""
        measuring = self.options.measuring
        chunks = self._chunks()
        base = TopTokens(ModelLogits(self.original, self.original.path.name, measuring))
        files = [
            TopTokens(ModelLogits(source, name, measuring))
            for source, name in zip(self.sources, self.names, strict=True)
        ]
        floor = engine_floor(list(zip(self.names, self.sources, strict=True)), measuring)
        result = evaluate(base, files, chunks, floor=floor, seed=measuring.seed, progress=progress)
        views = TextViews(self.original.vocabulary(), chunks, result, base)
        passage = views.passage()
        quantized = tuple(
            self._file(index, found, passage, views, files[index]) for index, found in enumerate(result.files)
        )
        shape = (len(chunks), chunks.scored_per_chunk)
        return Report(
            original=self._original(base, result, shape),
            files=quantized,
            text=self._measuring_text(chunks),
            passage=passage,
            headline=headline(quantized),
            verdicts=limits(),
            paired=tuple(
                Comparison(pair.a, pair.b, Interval(pair.kld_ratio, pair.low, pair.high), pair.verdict)
                for pair in result.paired
            ),
            frontier=self.frontier.points,
            floor=mean_interval(result.floor.scores.kld.reshape(shape)) if result.floor else None,
            command=self.options.command,
            versions=versions(),
            notes=self._notes(result, quantized, chunks),
        )

    def _chunks(self) -> Chunks:
        measuring = self.options.measuring
        if self.text is not None:
            return tokenize(self.original, self.text, measuring)
        return builtin_chunks(self.original, measuring)

    def _file(
        self, index: int, found: FileResult, passage: Passage, views: TextViews, logits: TopTokens
    ) -> QuantizedFile:
        source = self.sources[index]
        ledger, notes = found_ledger(source)
        rows = tensor_rows(self.original, source, ledger, self.frontier.sensitivity)
        made = making(source, ledger)
        continuation = views.continuation(logits, self.options.prompt)
        return QuantizedFile(
            label=found.name,
            file=source.path.name,
            container=source.container,
            bytes=found.bytes,
            bits_per_weight=found.bits_per_weight,
            measured=measured(found, views.base_nll, views.shape),
            tensors=rows,
            pictures=pictures(self.original, source, rows, is_rewritten=bool(made.transforms)),
            passage=views.scores(index, passage, logits.seen),
            places=views.places(index, logits.seen),
            continuation=continuation,
            making=replace(made, notes=(*notes, *made.notes)),
        )

    def _original(self, base: TopTokens, result: EvaluationResult, shape: tuple[int, int]) -> Original:
        config, general = self.original.config, self.original.provenance.general
        headers = self.original.headers.values()
        return Original(
            name=str(general.get("name") or self.original.path.name),
            file=self.original.path.name,
            bytes=base.bytes,
            bits_per_weight=base.bits_per_weight,
            weights=sum(header.rows * header.columns for header in headers),
            family=config.family,
            layers=config.layers,
            context_length=config.context_length,
            perplexity=exponential(mean_interval(result.base_nll.reshape(shape))),
            general=_plain(general),
            fingerprint=self.original.fingerprint(),
        )

    def _measuring_text(self, chunks: Chunks) -> MeasuringText:
        path, measuring = self.options.text, self.options.measuring
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if path else ""
        return MeasuringText(
            path.name if path else BUILT_IN_DATASET, digest, len(chunks), chunks.context, chunks.scored,
            measuring.activations,
        )  # fmt: skip

    def _notes(self, result: EvaluationResult, files: Sequence[QuantizedFile], chunks: Chunks) -> tuple[str, ...]:
        """What a reader must know before they trust the figures."""
        name = self.options.text.name if self.options.text else BUILT_IN_DATASET
        notes = []
        if self.options.text is None:
            notes.append(
                "Measured on lilliput's small built-in mix of texts; give --text with text like your own for figures "
                "that you can rely on."
            )
        if len(chunks) < FEWEST_CHUNKS:
            notes.append(
                f"Only {len(chunks)} windows were measured: intervals take tokens as independent and are too narrow."
            )
        calibrated = [file.label for file in files if name in file.making.datasets]
        if calibrated:
            notes.append(
                f"{', '.join(calibrated)}: calibrated on a text of the same name as the one measured here ({name}); "
                "on other text expect more divergence."
            )
        floor = result.floor.divergence.mean_kld.value if result.floor else 0.0
        near = [file.name for file in result.files if file.divergence.mean_kld.value < FLOOR_MARGIN * floor]
        if near:
            notes.append(
                f"{', '.join(near)}: so near to the original that the engine's own int8 arithmetic "
                f"(KL {floor:.2g}) matters as much as the file."
            )
        return tuple(notes)


def measured(found: FileResult, base_nll: DoubleArray, shape: tuple[int, int]) -> Measured:
    """The record of one file. shape: windows, scored per window."""
    scores, summary = found.scores, found.divergence
    kld = scores.kld.reshape(shape)
    mean = _not_negative(mean_interval(kld))
    return Measured(
        tokens=summary.tokens,
        mean_kld=mean,
        same_top=mean_interval(scores.same_top.astype(np.float64).reshape(shape)),
        perplexity=exponential(mean_interval(scores.nll.reshape(shape))),
        perplexity_ratio=exponential(mean_interval((scores.nll - base_nll).reshape(shape))),
        kld_percentiles=_percentiles(summary),
        kld_histogram=kld_histogram(scores.kld),
        verdict=verdict(mean),
    )


def headline(files: Sequence[QuantizedFile]) -> int:
    """The file to name first: the smallest that is safe in place of the original, else the one nearest to it.

    Among files as good as equal in size, the nearest.
    """
    named = [index for index, file in enumerate(files) if file.measured.verdict.level <= LAST_SAFE_LEVEL]
    if named:
        most = SAME_SIZE * min(files[index].bytes for index in named)
        named = [index for index in named if files[index].bytes <= most]
    return min(named or range(len(files)), key=lambda index: files[index].measured.mean_kld.value)


def kld_histogram(kld: DoubleArray) -> Histogram:
    """Counts of log10 KL; rounding can leave zeros and tiny negative numbers, which count at the lowest edge."""
    low, high = 10.0 ** KLD_EDGES[0], 10.0 ** KLD_EDGES[-1]
    counts, _ = np.histogram(np.log10(np.clip(kld, low, high)), KLD_EDGES)
    return Histogram(tuple(np.round(KLD_EDGES, 6).tolist()), tuple(counts.tolist()))


def labels(sources: Sequence[ModelSource], original: ModelSource) -> tuple[str, ...]:
    """A short name for each file, all different; never a folder of this machine.

    Without ending and without the original's name in front, where that suffices: Q4_K_M for model-Q4_K_M.gguf.
    """
    names = [source.path.name for source in sources]
    stems = [name.removesuffix(".gguf").removesuffix(".safetensors") for name in names]
    front = f"{original.path.name}-".lower()
    short = [stem[len(front) :] if stem.lower().startswith(front) else stem for stem in stems]
    chosen = next((found for found in (short, stems) if len({*found, ""}) > len(names)), names)
    found: list[str] = []
    for name in chosen:
        number = 1 + sum(name == earlier.partition(" (")[0] for earlier in found)
        found.append(name if number == 1 else f"{name} ({number})")
    return tuple(found)


def _percentiles(summary: Divergence) -> tuple[tuple[float, float], ...]:
    return tuple(sorted(summary.kld_percentiles.items()))


def _not_negative(interval: Interval) -> Interval:
    """Rounding can leave the mean KL of a model with itself a hair below zero."""
    return Interval(*(max(value, 0.0) for value in (interval.value, interval.low, interval.high)))


def _plain(general: Mapping[str, Json]) -> dict[str, str | tuple[str, ...]]:
    """`general.*` as text and lists of text."""
    return {
        key: tuple(map(str, value)) if isinstance(value, list) else str(value)
        for key, value in general.items()
        if isinstance(value, str | int | float | list)
    }
