# SPDX-License-Identifier: Apache-2.0
"""`quantize`: a plan carried out: codes chosen, the file verified and published, the ledger written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

import lilliput
from lilliput.architectures.architecture import Json
from lilliput.arrays import Array
from lilliput.calibration.builtin_mix import BUILT_IN_DATASET
from lilliput.calibration.enough_text import few_tokens_notes
from lilliput.calibration.expert_inputs import knows_inputs
from lilliput.checkpoints.model_source import ModelSource
from lilliput.containers import container_for
from lilliput.containers.container import Container, Contents
from lilliput.containers.gguf_reader import GgufFile
from lilliput.containers.inspection import inspect as inspect_file
from lilliput.containers.publish import check_target, half_published, publish
from lilliput.errors import CalibrationError, ContainerError
from lilliput.opening import PathLike, opened, text_files
from lilliput.pipeline.correct_biases import corrects_biases, with_biases
from lilliput.pipeline.quantize_blocks import StreamOptions, needs_stream, quantize_blocks
from lilliput.pipeline.quantize_tensors import Done, quantized_tensors
from lilliput.pipeline.transform_model import decided
from lilliput.pipeline.tune import TuneOptions, tune, tuned_rows
from lilliput.pipeline.work_folder import WorkFolder, work_path
from lilliput.planning import (
    STREAM_TOKENS,
    Guidance,
    QuantizeOptions,
    check_hessians,
    contents_of,
    default_name,
    own_keys,
    planned,
    text_chunks,
    widest_layer,
)
from lilliput.progress import Progress
from lilliput.recipes.ledger import Ledger, LedgerEntry, check_complete, is_ledger_of, ledger_path, text_versions
from lilliput.recipes.making import FINGERPRINT_KEY
from lilliput.recipes.plan import Plan
from lilliput.recipes.recipe import Recipe
from lilliput.records import AppliedEdge, QuantizedTensor, Role, Statistics
from lilliput.runtime.processors import default_threads
from lilliput.transforms.transformed_source import original_of


@dataclass(frozen=True, slots=True)
class QuantizeResult:
    """What `quantize` wrote. bytes: all files.  bits_per_weight: tensor bytes only, tied tensors once."""

    output: tuple[Path, ...]
    bytes: int
    bits_per_weight: float
    ledger: Path
    warnings: tuple[str, ...]
    is_up_to_date: bool

    def to_json(self) -> dict[str, Json]:
        """The contract of `lilliput quantize --json`."""
        return {
            "output": [str(path) for path in self.output],
            "bytes": self.bytes,
            "bits_per_weight": self.bits_per_weight,
            "ledger": str(self.ledger),
            "warnings": list(self.warnings),
        }


def quantize(
    model: PathLike,
    to: str | Recipe,
    output: PathLike | None = None,
    *,
    guidance: Guidance | None = None,
    options: QuantizeOptions | None = None,
    progress: Progress | None = None,
) -> QuantizeResult:
    """Quantize `model` to a preset, number format or recipe (by name or as rules); verify, publish, write the ledger.

    output: a name whose ending decides the container (docs/files.md); None means `<Model>-<Size>-<QUANT>.gguf` here.
    progress: called with (weights done, weights in all).
    Raises LilliputError with one clear line; nothing is left behind then.
    """
    guidance, options = guidance or Guidance(), options or QuantizeOptions()
    with opened(model, options.revision) as original:
        wanted = container_for(Path(output)) if output else None
        source, plan = planned(original, to, wanted, guidance, options)
        check_hessians(plan, guidance)
        contents, notes = contents_of(source, plan, guidance)
        target = Path(output) if output else default_name(source, contents, plan)
        container = wanted or container_for(target)
        parts = container.layout(contents, target.name, options.split)
        paths = tuple(target.parent / part.file_name for part in parts)
        job = _Job(source, plan, guidance, options, fingerprint=_fingerprint(source, plan, guidance, options))
        result = QuantizeResult(
            paths, 0, plan.bits_per_weight, ledger_path(target), (*plan.warnings, *notes), is_up_to_date=False
        )
        is_made = all(path.is_file() for path in paths) and _has_fingerprint(paths[0], job.fingerprint)
        if is_made and is_ledger_of(result.ledger, job.fingerprint) and not options.force:
            WorkFolder.discard_finished(work_path(target), job.fingerprint)
            return replace(result, bytes=sum(path.stat().st_size for path in paths), is_up_to_date=True)
        # Files without their ledger, or part of a set: the run that made them was killed in its last steps. The same
        # bytes come again.
        waiting = half_published(paths, target)
        is_made = is_made or (waiting is not None and _part_has_fingerprint(waiting, job.fingerprint))
        job = replace(job, options=replace(options, force=options.force or is_made))
        check_target(target, parts, overwrite=job.options.force)
        if options.announce is not None:
            options.announce(plan)
        return job.rewritten(progress).run(container, contents, target, result, progress)


@dataclass(frozen=True, slots=True)
class _Job:
    """One quantization, decided and checked, not yet begun.

    statistics: of `source`, where they are known already.  edges: what transforms did to it.
    """

    source: ModelSource
    plan: Plan
    guidance: Guidance
    options: QuantizeOptions
    fingerprint: str
    statistics: Statistics | None = None
    edges: tuple[AppliedEdge, ...] = ()

    def rewritten(self, progress: Progress | None) -> _Job:
        """The same with all transforms of the model decided; runs it on the text where they look at its inputs."""
        if not self.plan.transforms:
            return self
        found = decided(
            self.source, self.plan, self._ready_statistics(), lambda source: self._collected(source, progress),
            threads=self.options.threads or default_threads(),
        )  # fmt: skip
        return replace(self, source=found.source, statistics=found.statistics, edges=found.edges)

    def run(
        self, container: Container, contents: Contents, target: Path, result: QuantizeResult, progress: Progress | None
    ) -> QuantizeResult:
        """Calibrate if asked, quantize, verify, publish, write the ledger."""
        entries: list[LedgerEntry] = []
        with ExitStack() as stack:
            folder: WorkFolder | None = None
            done: Done = {}
            statistics: Statistics | None
            if needs_stream(self.plan):
                folder = stack.enter_context(WorkFolder(work_path(target), self.fingerprint))
                statistics, done = self._stream(folder, progress)
            else:
                statistics = self._statistics(progress)
            seen = [name for name, (_, entry) in done.items() if entry.tokens]
            count = len(seen) or (len(statistics.inputs) if statistics else 0)
            ranges = self._ranges(progress)
            keys = own_keys(self.fingerprint, self.plan, self.guidance, statistics, count)
            contents = replace(contents, metadata={**keys, **contents.metadata})
            published = publish(
                container, contents, self._tensors(statistics, done, entries, ranges, progress), target,
                split=self.options.split, overwrite=self.options.force,
            )  # fmt: skip
        warnings = (*result.warnings, *_statistics_notes(self.source, self.plan, statistics), *_overflow_notes(entries))
        Ledger(
            recipe=self.plan.recipe,
            model=self.plan.source,
            output=tuple(path.name for path in published.paths),
            bits_per_weight=self.plan.bits_per_weight,
            bytes=published.nbytes,
            fingerprints={
                "output": self.fingerprint,
                "plan": self.plan.fingerprint,
                "model": self.source.fingerprint(),
                **({"original": original_of(self.source).fingerprint()} if self.edges else {}),
            },
            entries=tuple(entries),
            datasets=statistics.datasets if statistics else (),
            notes=(*warnings, *(item.to_text() for item in self.plan.assumed)),
            transforms=self.edges,
        ).write(result.ledger)
        if folder is not None:
            folder.discard()
        return replace(result, output=published.paths, bytes=published.nbytes, warnings=warnings)

    def _stream(self, folder: WorkFolder, progress: Progress | None) -> tuple[Statistics, Done]:
        """Quantize what has inputs block by block; statistics for the file's metadata."""
        texts = text_files(self.guidance.text)
        chunks = text_chunks(self.source, texts, self.options.tokens or STREAM_TOKENS)
        stream = StreamOptions(
            self.options.stream_inputs,
            self.options.precision,
            device=self.options.device,
            threads=self.options.threads or default_threads(),
        )
        done = quantize_blocks(self.source, self.plan, chunks, folder, stream, progress)
        if corrects_biases(self.source):
            done = with_biases(self.source, self.plan, done, chunks, folder, stream.threads)
        if self.options.effort == "best":
            known = folder.finished("tuned", tuned_rows(self.plan, done))
            if known is None:
                known = tune(self.source, self.plan, done, chunks, TuneOptions(threads=stream.threads), progress)
                folder.finish("tuned", known)
            done = known
        names = tuple(path.name for path in texts) or (BUILT_IN_DATASET,)
        return Statistics({}, len(chunks), chunks.shape[1], names, self.source.fingerprint()), done

    def _statistics(self, progress: Progress | None) -> Statistics | None:
        if self.statistics is not None:
            return self.statistics
        return self._collected(self.source, progress) if self.guidance.text else self._ready_statistics()

    def _collected(self, source: ModelSource, progress: Progress | None) -> Statistics:
        """Statistics of a model on the text."""
        from lilliput.calibration.collect import CalibrationOptions
        from lilliput.calibration.collect import calibrate as collect_statistics

        tokens = self.options.tokens or (STREAM_TOKENS if needs_stream(self.plan) else None)
        chosen = CalibrationOptions(tokens=tokens, device=self.options.device, threads=self.options.threads)
        return collect_statistics(source, text_files(self.guidance.text), chosen, progress)

    def _ready_statistics(self) -> Statistics | None:
        """Those of a file; they are of the original model."""
        from lilliput.calibration.statistics_file import read_statistics

        file = self.guidance.statistics or self.guidance.imatrix
        statistics = read_statistics(file) if file else None
        if statistics is not None:
            _check_statistics(self.plan, statistics)
        return statistics

    def _ranges(self, progress: Progress | None) -> Mapping[str, Mapping[str, Array]]:
        """What lies beside the weights of layers with static inputs, from the text."""
        if not any(row.inputs is not None for row in self.plan.rows):
            return {}
        from lilliput.calibration.collect import CalibrationOptions
        from lilliput.calibration.static_ranges import static_ranges

        chunks = text_chunks(self.source, text_files(self.guidance.text), self.options.tokens or STREAM_TOKENS)
        chosen = CalibrationOptions(device=self.options.device, threads=self.options.threads)
        return static_ranges(self.source, self.plan.rows, chunks, chosen, progress)

    def _tensors(
        self, statistics: Statistics | None, ready: Done, entries: list[LedgerEntry],
        ranges: Mapping[str, Mapping[str, Array]], progress: Progress | None,
    ) -> Iterator[QuantizedTensor]:  # fmt: skip
        done, total = 0, self.plan.weights
        threads = self.options.threads or default_threads()
        for tensor, entry in quantized_tensors(self.source, self.plan, statistics, ready, threads=threads):
            entries.append(entry)
            yield replace(tensor, sidecars={**tensor.sidecars, **ranges.get(tensor.name, {})})
            done += tensor.rows * tensor.columns
            if progress is not None:
                progress(done, total)
        # The writer asks for a tensor too many, so this runs before anything is verified or published.
        check_complete(self.plan, entries)


def _fingerprint(source: ModelSource, plan: Plan, guidance: Guidance, options: QuantizeOptions) -> str:
    """sha256 hex over everything that decides the output's bytes."""
    files = [path for path in (*guidance.text, guidance.statistics, guidance.imatrix) if path is not None]
    content = [
        lilliput.__version__, source.fingerprint(), plan.fingerprint,
        # The text runs through the model in torch, whose sums differ from version to version.
        text_versions() if guidance.text else None,
        [hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else path.name for path in files],
        [options.split.max_bytes, options.split.max_tensors, options.tokens, options.device, options.effort == "best",
         options.stream_inputs, options.precision],
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _has_fingerprint(file: Path, fingerprint: str) -> bool:
    """Whether a file, a folder's or set's first, says that it was made by just this run."""
    try:
        return inspect_file(file).metadata.get(FINGERPRINT_KEY) == fingerprint
    except ContainerError:
        return False


def _part_has_fingerprint(first: Path, fingerprint: str) -> bool:
    """The same of the first file of a split GGUF, the only kind of set, while others are missing beside it."""
    try:
        with closing(GgufFile(first)) as part:
            return part.metadata.get(FINGERPRINT_KEY) == fingerprint
    except ContainerError:
        return False


def _check_statistics(plan: Plan, statistics: Statistics) -> None:
    for row in plan.rows:
        inputs = statistics.inputs.get(row.name)
        if inputs is not None and len(inputs.sum_of_squares) != row.shape[-1]:
            raise CalibrationError(
                f"{row.name}: the statistics have {len(inputs.sum_of_squares)} inputs, the tensor has {row.shape[-1]}; "
                "they belong to another model, calibrate this one"
            )


def _statistics_notes(source: ModelSource, plan: Plan, statistics: Statistics | None) -> list[str]:
    if statistics is None:
        return []
    notes = few_tokens_notes(statistics.chunks * statistics.chunk_size, widest_layer(source))
    if needs_stream(plan):
        return notes
    if statistics.model and statistics.model != source.fingerprint():
        notes.append("the statistics were collected on another file of this model, or on another model")
    without = [
        row.name
        for row in plan.rows
        if row.method not in ("copy", "round_to_nearest")
        and row.role is not Role.TOKEN_EMBEDDING
        and not knows_inputs(statistics, row.name)
    ]
    if without:
        notes.append(f"{len(without)} tensors have no statistics and were done without (first: {without[0]})")
    return notes


def _overflow_notes(entries: Sequence[LedgerEntry]) -> list[str]:
    return [f"{entry.name}: {entry.reason}" for entry in entries if "beyond F16's range" in entry.reason]
