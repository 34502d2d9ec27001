# SPDX-License-Identifier: Apache-2.0
"""The documented Python API: plan, calibrate, quantize, evaluate, inspect, bench. Joins the rooms."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import lilliput
from lilliput.architectures import NOT_IN_GGUF
from lilliput.architectures.architecture import Json
from lilliput.architectures.prediction_heads import described_heads
from lilliput.arrays import IntArray
from lilliput.calibration.block_stream import Precision
from lilliput.calibration.builtin_mix import BUILT_IN_DATASET
from lilliput.calibration.enough_text import check_enough, check_runnable, few_tokens_notes
from lilliput.calibration.expert_inputs import knows_inputs
from lilliput.calibration.input_ranges import input_ranges
from lilliput.checkpoints.model_source import ModelSource
from lilliput.containers import CONTAINERS, FOLDERS, container_for, open_model
from lilliput.containers.container import Container, Contents, Split
from lilliput.containers.gguf import Gguf
from lilliput.containers.gguf_metadata import file_name
from lilliput.containers.inspection import Inspection
from lilliput.containers.inspection import inspect as inspect_file
from lilliput.containers.publish import check_target, publish
from lilliput.containers.runtimes import SUGGESTED, reading_warnings
from lilliput.errors import CalibrationError, CheckpointError, ContainerError, RecipeError, TokenizerError
from lilliput.evaluation.compare import EvaluationResult
from lilliput.evaluation.model_logits import EvaluationOptions, compare_models
from lilliput.methods import METHODS
from lilliput.models import BUILT_IN, gulliver
from lilliput.pipeline.correct_biases import corrects_biases, with_biases
from lilliput.pipeline.quantize_blocks import StreamInputs, StreamOptions, needs_stream, quantize_blocks
from lilliput.pipeline.quantize_tensors import Done, quantized_tensors
from lilliput.pipeline.transform_model import check_guidance, decided, outlined, transform_plans
from lilliput.pipeline.tune import BYTES_PER_WEIGHT, TuneOptions, tune, tuned_rows
from lilliput.pipeline.work_folder import WorkFolder, work_path
from lilliput.recipes.estimate import CostEstimate, TextWork, estimate, looks_before
from lilliput.recipes.float_roles import with_float_roles
from lilliput.recipes.ledger import Ledger, LedgerEntry, check_complete, is_ledger_of, ledger_path, text_versions
from lilliput.recipes.machine import MachineSpeeds
from lilliput.recipes.plan import Plan, resolve
from lilliput.recipes.recipe import Recipe, find_recipe, parse_method, preset_names
from lilliput.records import AppliedEdge, QuantizedTensor, Role, Statistics, TensorHeader
from lilliput.runtime.processors import default_threads
from lilliput.runtime.speed import SpeedRow, SpeedTest, measure_speed
from lilliput.text.documents import read_text
from lilliput.text.tokenizer_report import check_vocabulary
from lilliput.transforms import parse_transform
from lilliput.transforms.residual_rotation import ResidualRotation
from lilliput.transforms.transformed_source import original_of

if TYPE_CHECKING:
    from lilliput.text.vocabulary import Vocabulary

Progress = Callable[[int, int], None]
PathLike = str | os.PathLike[str]
BUILT_IN_TEXT = "builtin"
FINGERPRINT_KEY = "lilliput.fingerprint"
# --effort: how codes are chosen. Each step is justified by docs/log.md and benchmarks/quality.py.
EFFORTS = {"fast": "searched_scales", "balanced": "feedback", "best": "feedback"}
# Enough for the Hessian of 4,096 inputs; more text gains little and costs time in proportion.
STREAM_TOKENS = 65_536
# Encoders read sentences and passages: fitted to chunks of 512 tokens, int4 costs MiniLM's sentences twice as much.
ENCODER_CHUNK = 64


@dataclass(frozen=True, slots=True)
class Guidance:
    """Where the importance of inputs comes from; at most one of the three, none means unweighted.

    text: files to calibrate on now, or "builtin"; one name or several.  statistics: from `calibrate`.
    imatrix: llama.cpp's file.
    """

    text: tuple[Path, ...] = ()
    statistics: Path | None = None
    imatrix: Path | None = None

    def __post_init__(self) -> None:
        names: PathLike | Sequence[PathLike] = self.text
        names = (names,) if isinstance(names, str | os.PathLike) else names
        object.__setattr__(self, "text", tuple(Path(name) for name in names))
        given = [name for name in ("text", "statistics", "imatrix") if getattr(self, name)]
        if len(given) > 1:
            raise CalibrationError(f"--{' and --'.join(given)} were both given; they say the same thing, give one")

    @property
    def is_given(self) -> bool:
        """Whether there will be statistics."""
        return bool(self.text or self.statistics or self.imatrix)


@dataclass(frozen=True, slots=True)
class QuantizeOptions:
    """How to choose codes and how to write.

    effort: one of EFFORTS, None means "balanced" with a text to calibrate on and "fast" without.  method: replaces it.
    transforms: as `parse_transform` reads them, after the recipe's own.
    tokens: of the text; None means all, or STREAM_TOKENS for methods that run the model on them block by block.
    inputs: what those methods fit each layer to, see `StreamOptions`; None means "both" for effort "best", else
    "quantized".  precision: of their forward passes.  split: parts of a split set.
    threads: None means all.  announce: called with the plan before any work.
    float_roles: stay floats where a number format alone is asked for, beside those of the output's container.
    """

    force: bool = False
    split: Split = field(default_factory=Split)
    effort: str | None = None
    method: str | None = None
    transforms: tuple[str, ...] = ()
    tokens: int | None = None
    inputs: StreamInputs | None = None
    precision: Precision = "float32"
    device: str = "cpu"
    threads: int | None = None
    revision: str | None = None
    float_roles: tuple[Role, ...] = ()
    announce: Callable[[Plan], None] | None = None

    @property
    def stream_inputs(self) -> StreamInputs:
        """`inputs`, or what the effort asks for."""
        return self.inputs or ("both" if self.effort == "best" else "quantized")


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


@dataclass(frozen=True, slots=True)
class PlanReport:
    """A plan and what carrying it out will take. bytes: of all output files, exactly."""

    plan: Plan
    bytes: int
    cost: CostEstimate

    def to_json(self) -> dict[str, Json]:
        """The contract of `lilliput plan --json`."""
        return {
            "tensors": list(self.plan.json_rows()),
            "transforms": self.plan.json_transforms(),
            "assumed": [item.to_json() for item in self.plan.assumed],
            "bytes": self.bytes,
            "bits_per_weight": self.plan.bits_per_weight,
            "peak_ram_bytes": self.cost.peak_ram_bytes,
            "disk_bytes": self.cost.disk_bytes,
            "seconds": dict(self.cost.seconds),
            "speeds_age": self.cost.speeds_age,
            "is_busy": self.cost.is_busy,
            "warnings": list(self.plan.warnings),
        }


def chosen_method(guidance: Guidance, options: QuantizeOptions) -> str:
    """The method that effort, or the method option itself, asks for. Raises RecipeError."""
    method = parse_method(options.method)
    if method is not None:
        return method
    effort = options.effort or ("balanced" if guidance.text else "fast")
    if effort not in EFFORTS:
        raise RecipeError(f"unknown --effort '{effort}'; known: {', '.join(EFFORTS)}")
    return EFFORTS[effort]


def _planned(
    source: ModelSource, to: str | Recipe, container: Container | None, guidance: Guidance, options: QuantizeOptions
) -> tuple[ModelSource, Plan]:
    """The model as its transforms will leave it, headers only, and the plan for that."""
    if guidance.text:
        check_runnable(source.config)
    recipe = find_recipe(to) if isinstance(to, str) else to
    transforms = [parse_transform(words) for words in (*recipe.transforms, *options.transforms)]
    has_statistics = guidance.is_given and not guidance.text
    check_guidance(transforms, has_text=bool(guidance.text), has_statistics=has_statistics)
    source = outlined(source, transforms)
    roles = (*(container.float_roles if container is not None else ()), *options.float_roles)
    recipe = with_float_roles(recipe, roles, source)
    plan = resolve(source, recipe, statistics_present=guidance.is_given, method=chosen_method(guidance, options))
    if container is not None:
        _check_mix(plan, recipe, container)
    plan = replace(plan, transforms=transform_plans(source))
    return source, _with_prediction_heads(plan, source, container)


def _with_prediction_heads(plan: Plan, source: ModelSource, container: Container | None) -> Plan:
    """The plan with a warning about heads that predict further tokens, and without them where the output is GGUF.

    Raises RecipeError for a transform that would change what they read.
    """
    heads = source.config.prediction_heads
    names = {item.name for item in heads}
    if not names:
        return plan
    if any(item.name == ResidualRotation.name for item in plan.transforms):
        raise RecipeError(
            f"transform '{ResidualRotation.name}' would turn the hidden states that {heads[0].name} and others read, "
            "which predict further tokens and are not understood here; leave the transform out"
        )
    is_gguf = isinstance(container or _default_container(plan, source.config.family), Gguf)
    rows = tuple(row for row in plan.rows if not (is_gguf and row.name in names))
    warnings = (*plan.warnings, described_heads(heads, names, are_kept=not is_gguf))
    return replace(plan, rows=rows, warnings=warnings)


def _check_mix(plan: Plan, recipe: Recipe, container: Container) -> None:
    """Raise ContainerError for a preset whose formats a container lacks: of a mix, no one tensor is to blame."""
    rows = [row for row in plan.rows if row.method != "copy" and not container.holds(row.format)]
    foreign = sorted({row.format.name.upper() for row in rows})
    if foreign and recipe.name.upper() in preset_names():
        raise ContainerError(
            f"{recipe.name} is a mix for GGUF of {', '.join(foreign)}, which a {container.name} output cannot hold; "
            f"give --to with one that it holds, such as {SUGGESTED[container.name].upper()} (docs/containers.md)"
        )


def plan(
    model: PathLike,
    to: str | Recipe,
    output: PathLike | None = None,
    *,
    guidance: Guidance | None = None,
    options: QuantizeOptions | None = None,
) -> PlanReport:
    """What `quantize` will do, from headers alone, with its exact size and what it will take.

    output: its name decides the container, as for `quantize`. Raises ContainerError for what that cannot hold.
    """
    guidance, options = guidance or Guidance(), options or QuantizeOptions()
    with opened(model, options.revision) as original:
        source, found, size = _sized(original, to, output, guidance, options)
        _check_hessians(found, guidance)
        speeds = MachineSpeeds(options.threads or default_threads(), guided=guidance.is_given)
        limit = options.tokens or (STREAM_TOKENS if needs_stream(found) else None)
        tokens = _tokens_to_calibrate(source, guidance, limit)
        found = replace(found, warnings=(*found.warnings, *few_tokens_notes(tokens, widest_layer(source))))
        text = text_work(options, found, tokens, source.config.hidden_size)
        cost = estimate(found, source.headers, file_bytes=size, speeds=speeds, text=text)
        return PlanReport(found, size, cost)


def planned_bytes(
    model: PathLike, to: str | Recipe, output: PathLike, *, guidance: Guidance, options: QuantizeOptions
) -> int:
    """Exact size of what `quantize` would write, without asking what that takes."""
    with opened(model, options.revision) as original:
        return _sized(original, to, output, guidance, options)[2]


def _sized(
    original: ModelSource, to: str | Recipe, output: PathLike | None, guidance: Guidance, options: QuantizeOptions
) -> tuple[ModelSource, Plan, int]:
    """The model as it will be quantized, the plan, and the bytes of all files."""
    wanted = container_for(Path(output)) if output else None
    source, found = _planned(original, to, wanted, guidance, options)
    notes = _container_notes(found) if wanted is None else _reading_notes(wanted, found)
    found = replace(found, warnings=(*found.warnings, *notes))
    contents, _ = _contents(source, found, guidance)
    # As many bytes as the real keys will have: hashes and numbers are of one width whatever they say.
    keys = _own_keys("0" * 64, found, guidance, _expected_statistics(guidance), 0)
    contents = replace(contents, metadata={**keys, **contents.metadata})
    container = wanted or _default_container(found, source.config.family)
    parts = container.layout(contents, f"model{container.suffix}", options.split)
    return source, found, sum(part.size for part in parts)


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
        source, plan = _planned(original, to, wanted, guidance, options)
        _check_hessians(plan, guidance)
        contents, notes = _contents(source, plan, guidance)
        target = Path(output) if output else _default_name(source, contents, plan)
        container = wanted or container_for(target)
        parts = container.layout(contents, target.name, options.split)
        paths = tuple(target.parent / part.file_name for part in parts)
        job = _Job(source, plan, guidance, options, fingerprint=_fingerprint(source, plan, guidance, options))
        result = QuantizeResult(
            paths, 0, plan.bits_per_weight, ledger_path(target), (*plan.warnings, *notes), is_up_to_date=False
        )
        # A file without its ledger: the run that made it was killed before its last step. The same bytes come again.
        is_made = _is_up_to_date(paths, job.fingerprint)
        if is_made and is_ledger_of(result.ledger, job.fingerprint) and not options.force:
            WorkFolder.discard_finished(work_path(target), job.fingerprint)
            return replace(result, bytes=sum(path.stat().st_size for path in paths), is_up_to_date=True)
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
            keys = _own_keys(self.fingerprint, self.plan, self.guidance, statistics, count)
            contents = replace(contents, metadata={**keys, **contents.metadata})
            published = publish(
                container, contents, self._tensors(statistics, done, entries, progress), target,
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
        chunks = _chunks(self.source, texts, self.options.tokens or STREAM_TOKENS)
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

    def _tensors(
        self, statistics: Statistics | None, ready: Done, entries: list[LedgerEntry], progress: Progress | None
    ) -> Iterator[QuantizedTensor]:
        done, total = 0, self.plan.weights
        threads = self.options.threads or default_threads()
        for tensor, entry in quantized_tensors(self.source, self.plan, statistics, ready, threads=threads):
            entries.append(entry)
            yield tensor
            done += tensor.rows * tensor.columns
            if progress is not None:
                progress(done, total)
        # The writer asks for a tensor too many, so this runs before anything is verified or published.
        check_complete(self.plan, entries)


def calibrate(
    model: PathLike,
    text: Sequence[PathLike] = (),
    output: PathLike | None = None,
    *,
    options: CalibrateOptions | None = None,
    progress: Progress | None = None,
) -> Statistics:
    """Collect what enters every linear layer; write it to `output` (.safetensors, or .gguf for llama.cpp).

    text: files; none or "builtin" means the built-in mix.  progress: called with (steps done, steps in all).
    """
    from lilliput.calibration.collect import CalibrationOptions
    from lilliput.calibration.collect import calibrate as collect_statistics
    from lilliput.calibration.statistics_file import check_ending, merge, read_statistics, write_statistics

    options = options or CalibrateOptions()
    target = Path(output) if output is not None else None
    if target is not None:
        check_ending(target)
    if target is not None and target.exists() and not options.force:
        raise CalibrationError(f"{target} exists already; pass --force to replace it or choose another name with -o")
    earlier = [read_statistics(path) for path in options.merge]
    with opened(model, options.revision) as source:
        chosen = CalibrationOptions(
            chunk_size=options.chunk_size, tokens=options.tokens, device=options.device, threads=options.threads,
            memory_limit=options.memory_limit,
        )  # fmt: skip
        statistics = collect_statistics(source, text_files([Path(path) for path in text]), chosen, progress)
    for other in earlier:
        statistics = merge(statistics, other)
    if target is not None:
        write_statistics(target, statistics)
    return statistics


@dataclass(frozen=True, slots=True)
class CalibrateOptions:
    """chunk_size: tokens a sequence.  tokens: at most this many.  merge: statistics files whose sums are added."""

    chunk_size: int = 512
    tokens: int | None = None
    merge: tuple[Path, ...] = ()
    device: str = "cpu"
    threads: int | None = None
    memory_limit: int | None = None
    revision: str | None = None
    force: bool = False


def evaluate(
    base: PathLike,
    files: Sequence[PathLike],
    text: PathLike,
    *,
    options: EvaluationOptions | None = None,
    progress: Progress | None = None,
) -> EvaluationResult:
    """Measure quantized files against the original, on the same tokens, over the full vocabulary.

    text: plain, JSON Lines or gzip, or "builtin".  progress: called with (windows done, windows in all).
    Raises EvaluationError for text shorter than one window or models that cannot be compared.
    """
    with ExitStack() as stack:
        named = [(str(name), stack.enter_context(opened(name))) for name in (base, *files)]
        words = None if is_builtin(text) else read_text(Path(text))
        return compare_models(named[0], named[1:], words, options, progress=progress)


def inspect(file: PathLike, *, revision: str | None = None) -> Inspection:
    """Metadata and tensors of a file, folder or hub id, from headers alone; a hub id's files are fetched."""
    path = Path(located(file))
    if revision is not None or not path.exists():
        with opened(file, revision) as source:
            path = source.path
    return inspect_file(path)


def bench(model: PathLike, tests: Sequence[SpeedTest], *, progress: Progress | None = None) -> list[SpeedRow]:
    """Prefill and decode speed of a file on this machine, one process per row."""
    return measure_speed(located(model), tests, progress=progress)


@contextmanager
def opened(model: PathLike, revision: str | None = None) -> Iterator[ModelSource]:
    """Open a model by path, hub id, or the built-in name 'gulliver'; release its maps at the end.

    Raises CheckpointError for a revision of a path, and what opening raises.
    """
    name = located(model)
    if revision is not None and Path(name).exists():
        raise CheckpointError(
            f"{model}: a path here; --revision {revision} chooses among those of a hub id, leave it out"
        )
    with closing(open_model(name, revision=revision)) as source:
        yield source


def located(model: PathLike) -> str:
    """The path or hub id that a model's name stands for; only the built-in one's differs."""
    name = str(model)
    # A folder of that name in the working directory is what its owner means.
    return str(gulliver()) if name == BUILT_IN and not Path(name).exists() else name


def _contents(source: ModelSource, plan: Plan, guidance: Guidance) -> tuple[Contents, list[str]]:
    """What will be written, and notes for the user."""
    vocabulary: Vocabulary | None = None
    notes = []
    try:
        vocabulary = source.vocabulary()
        # A GGUF's vocabulary is carried over as it is; one rebuilt from a folder is compared with the original.
        warning = check_vocabulary(source.path, vocabulary).warning() if source.container == "huggingface" else None
        notes += [warning] if warning else []
    except TokenizerError as missing:
        notes.append(f"the output holds no tokenizer and cannot run text: {missing}")
    headers = tuple(TensorHeader(row.name, row.shape, row.format) for row in plan.rows)
    # Ranges are of the original model, whose inputs a transform changes.
    ranges = {} if plan.transforms else input_ranges(_expected_statistics(guidance))
    contents = Contents(
        source.architecture, source.config, vocabulary, source.provenance, headers, plan.recipe, input_ranges=ranges
    )
    return contents, notes


def text_work(options: QuantizeOptions, plan: Plan, tokens: int, width: int) -> TextWork:
    """What a run with these options does with so many tokens."""
    if not needs_stream(plan):
        return TextWork(tokens, width=width)
    tunes = options.effort == "best"
    # A block runs before its tensors are chosen and after; where the float model is followed, there as well.
    passes = {"float": 1, "quantized": 2, "both": 3}[options.stream_inputs]
    return TextWork(
        tokens,
        passes=passes + looks_before(plan),
        sees_hessians=True,
        tuned_epochs=TuneOptions().epochs if tunes else 0,
        tuned_bytes_per_weight=BYTES_PER_WEIGHT if tunes else 0,
    )


def _tokens_to_calibrate(source: ModelSource, guidance: Guidance, tokens: int | None) -> int:
    """Tokens that this run will calibrate on; 0 where it does not."""
    if not guidance.text:
        return 0
    return int(_chunks(source, text_files(guidance.text), tokens).size)


def _chunks(source: ModelSource, texts: Sequence[Path], tokens: int | None) -> IntArray:
    """Token ids [chunks, chunk_size] of the text to quantize on."""
    from lilliput.calibration.data import calibration_chunks

    is_encoder = source.config.encoder is not None
    size = ENCODER_CHUNK if is_encoder else CalibrateOptions().chunk_size
    size = min(size, source.config.context_length)
    chunks = calibration_chunks(source.vocabulary(), texts, chunk_size=size, tokens=tokens, has_ends=is_encoder)
    check_enough(chunks, texts)
    return chunks


def _own_keys(
    fingerprint: str, plan: Plan, guidance: Guidance, statistics: Statistics | None, entries: int
) -> dict[str, Json]:
    """What the output says about how it was made."""
    keys: dict[str, Json] = {
        FINGERPRINT_KEY: fingerprint,
        "lilliput.version": lilliput.__version__,
        "lilliput.recipe": plan.recipe,
    }
    if statistics is not None:
        file = guidance.imatrix or guidance.statistics
        keys |= {
            "quantize.imatrix.file": file.name if file else "calibrated in the same run",
            "quantize.imatrix.dataset": ", ".join(statistics.datasets),
            "quantize.imatrix.entries_count": entries,
            "quantize.imatrix.chunks_count": statistics.chunks,
        }
    return keys


def _expected_statistics(guidance: Guidance) -> Statistics | None:
    """The statistics of the run, or a stand-in of the same name where they are still to be collected."""
    from lilliput.calibration.statistics_file import read_statistics

    file = guidance.statistics or guidance.imatrix
    if file is not None:
        return read_statistics(file)
    if not guidance.text:
        return None
    names = tuple(path.name for path in text_files(guidance.text)) or (BUILT_IN_DATASET,)
    return Statistics(inputs={}, chunks=0, chunk_size=0, datasets=names, model="")


def _default_container(plan: Plan, family: str) -> Container:
    """The first that holds the family and every format of the plan: GGUF wherever it can."""
    for container in CONTAINERS:
        if isinstance(container, Gguf) and family in NOT_IN_GGUF:
            continue
        if all(container.holds(row.format) for row in plan.rows):
            return container
    raise ContainerError("no file format holds all number formats of this plan; quantize to fewer of them")


def _default_name(source: ModelSource, contents: Contents, plan: Plan) -> Path:
    name = file_name(source.provenance.general, contents.weights, plan.recipe)
    return Path(name.removesuffix(Gguf.suffix) + _default_container(plan, source.config.family).suffix)


def _reading_notes(container: Container, plan: Plan) -> list[str]:
    notes = reading_warnings(container.name, (row.format for row in plan.rows))
    if plan.assumed and container in FOLDERS:
        notes.append(
            "where transformers' code of this architecture reads a layer's weight itself (Falcon, Mamba), load with "
            "quantization_config=CompressedTensorsConfig(dequantize=True)"
        )
    return notes


def _container_notes(plan: Plan) -> list[str]:
    """What the user should know about the kind of file, before any work."""
    foreign = sorted({row.format.name.upper() for row in plan.rows if not Gguf().holds(row.format)})
    if not foreign:
        return []
    return [
        f"GGUF has no type for {', '.join(foreign)}: the output will be lilliput's own layout (-o NAME.safetensors), "
        "which llama.cpp does not read"
    ]


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


def _is_up_to_date(paths: Sequence[Path], fingerprint: str) -> bool:
    if not all(path.is_file() for path in paths):
        return False
    try:
        return inspect_file(paths[0]).metadata.get(FINGERPRINT_KEY) == fingerprint
    except ContainerError:
        return False


def text_files(text: Sequence[Path]) -> list[Path]:
    """The files to read; an empty list means the built-in mix. Raises CalibrationError."""
    if len(text) == 1 and is_builtin(text[0]):
        return []
    for path in text:
        if not path.is_file():
            raise CalibrationError(f"{path}: no such text file; give a text, JSONL or chat file, or 'builtin'")
    return list(text)


def is_builtin(text: PathLike) -> bool:
    """Whether the built-in mix is meant; a file of that name in the working directory is what its owner means."""
    return str(text) == BUILT_IN_TEXT and not Path(text).exists()


def calibrated_on(files: Sequence[PathLike], text: PathLike) -> list[str]:
    """Those of the files that name this text among what they were calibrated on: measured on it they look too good."""
    name = BUILT_IN_DATASET if is_builtin(text) else Path(text).name
    found = []
    for file in files:
        with opened(file) as source:
            datasets = source.provenance.extra.get("quantize.imatrix.dataset", "")
        if name in str(datasets).split(", "):
            found.append(str(file))
    return found


def widest_layer(source: ModelSource) -> int:
    """Inputs of the layer that has most."""
    return max(header.columns for header in source.headers.values() if len(header.shape) > 1)


def _check_hessians(plan: Plan, guidance: Guidance) -> None:
    row = next((row for row in plan.rows if METHODS[row.method].needs == "hessian"), None)
    if row is not None and not guidance.text:
        raise CalibrationError(
            f"{row.name}: method '{row.method}' (--effort balanced and best) runs the model on text and takes no ready "
            "statistics; give --text FILE (or --text builtin), or --effort fast, the default without a text"
        )


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
