# SPDX-License-Identifier: Apache-2.0
"""`lilliput convert`: a quantized model into the file of another runtime, without rounding wherever the grids agree.

What cannot move is never rounded silently: that takes a flag. Every tensor is compared with its original, and the
result says what each became and how far it is.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import lilliput
from lilliput.architectures.architecture import Json
from lilliput.architectures.rope_scaling import ROPE_FACTORS_TENSOR
from lilliput.calibration.input_ranges import input_ranges
from lilliput.checkpoints.model_source import ModelSource
from lilliput.containers import CONTAINERS, FOLDERS, container_for, not_written
from lilliput.containers.checkpoint_folder import CheckpointFolder
from lilliput.containers.container import Container, Contents, Split
from lilliput.containers.publish import check_target, publish
from lilliput.containers.rebuilt_folder import FolderFiles, folder_files
from lilliput.containers.runtimes import reading_warnings, runtimes_of
from lilliput.errors import ContainerError, RecipeError, TextError, TokenizerError
from lilliput.evaluation.model_logits import EvaluationOptions
from lilliput.formats import NumberFormat, get_format
from lilliput.pipeline.carried_ranges import planned_sidecars, with_carried_ranges
from lilliput.pipeline.repack import Move, Moved, TensorMove, Wanted, moved_tensors, plan_moves
from lilliput.recipes.ledger import Ledger, LedgerEntry, entry_for, ledger_path
from lilliput.recipes.plan import PLAIN_FLOATS
from lilliput.records import QuantizedTensor, Statistics, TensorHeader
from lilliput.runtime.processors import default_threads
from lilliput.workflows import Guidance, PathLike, Progress, evaluate, is_builtin, located, opened

# Long enough for a KL with an interval, short enough for a minute on a small model.
KL_TOKENS = 16_384
# Tokenizer and metadata differ by a little from container to container; more than that is worth a remark.
LARGER = 1.02


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """How to convert.

    to: a container by name; None means what the output's name says.  format: of quantized layers, None for the smallest
    exact one.  requantize: choose codes anew where none can be kept.  statistics, imatrix: for those.
    base: Hugging Face folder or id whose config and tokenizer files a folder gets; None means the source's own, or
    rebuilt ones.  text: measure the KL from the source on it.  is_unmade: as in `pipeline.repack.Wanted`.
    """

    to: str | None = None
    format: str | None = None
    requantize: bool = False
    guidance: Guidance = field(default_factory=Guidance)
    base: PathLike | None = None
    text: Path | None = None
    force: bool = False
    is_unmade: bool = False
    split: Split = field(default_factory=Split)
    threads: int | None = None
    revision: str | None = None
    announce: Callable[[str], None] | None = None


@dataclass(frozen=True, slots=True)
class MovedTensor:
    """What became of one tensor; errors and their bound as `pipeline.repack.Moved` has them."""

    name: str
    source_format: str
    format: str
    move: Move
    max_error: float
    rms_error: float
    bound: float | None = 0.0

    @property
    def is_exact(self) -> bool:
        """Whether every value is the same."""
        return self.max_error == 0.0

    def to_json(self) -> dict[str, Json]:
        """One entry of `tensors`."""
        return {
            "name": self.name,
            "from": self.source_format.upper(),
            "to": self.format.upper(),
            "move": self.move.value,
            "exact": self.is_exact,
            "max_relative_error": self.max_error,
            "rms_relative_error": self.rms_error,
            "bound": self.bound,
        }


@dataclass(frozen=True, slots=True)
class ConvertResult:
    """What `convert` wrote.

    target: file or folder.  output: its files.
    mean_kl: in nats, with its standard error, from the source; None without a text.
    runtimes: that run the file or decode it, as tests show.
    """

    target: Path
    output: tuple[Path, ...]
    bytes: int
    container: str
    tensors: tuple[MovedTensor, ...]
    ledger: Path
    notes: tuple[str, ...] = ()
    mean_kl: tuple[float, float] | None = None
    runtimes: tuple[str, ...] = ()

    @property
    def is_exact(self) -> bool:
        """Whether every value of the model is the same."""
        return all(tensor.is_exact for tensor in self.tensors)

    @property
    def max_error(self) -> float:
        """Of the tensor that is farthest from its original, over its largest magnitude."""
        return max((tensor.max_error for tensor in self.tensors), default=0.0)

    @property
    def bound(self) -> float | None:
        """What `max_error` cannot exceed; None where codes were chosen anew."""
        bounds = [tensor.bound for tensor in self.tensors]
        return None if None in bounds else max((bound for bound in bounds if bound is not None), default=0.0)

    @property
    def is_within_bound(self) -> bool:
        """Whether every tensor is as near to its original as its move allows."""
        return all(tensor.bound is None or tensor.max_error <= tensor.bound for tensor in self.tensors)

    def to_json(self) -> dict[str, Json]:
        """The contract of `lilliput convert --json`."""
        return {
            "output": [str(path) for path in self.output],
            "bytes": self.bytes,
            "container": self.container,
            "exact": self.is_exact,
            "max_relative_error": self.max_error,
            "bound": self.bound,
            "within_bound": self.is_within_bound,
            "runs_in": list(self.runtimes),
            "tensors": [tensor.to_json() for tensor in self.tensors],
            "ledger": str(self.ledger),
            "notes": list(self.notes),
            "mean_kl": self.mean_kl[0] if self.mean_kl else None,
            "mean_kl_stderr": self.mean_kl[1] if self.mean_kl else None,
        }


def convert(
    model: PathLike, output: PathLike, options: ConvertOptions | None = None, *, progress: Progress | None = None
) -> ConvertResult:
    """Write `model` into another container, verify and publish it, with a ledger.

    progress: called with (weights done, weights in all).
    Raises LilliputError with one clear line; nothing is left behind then.
    """
    return convert_all(model, [output], options, progress=progress)[0]


def convert_all(
    model: PathLike,
    outputs: Sequence[PathLike],
    options: ConvertOptions | None = None,
    *,
    made: Ledger | None = None,
    progress: Progress | None = None,
) -> list[ConvertResult]:
    """Write `model` into several containers. All are planned before the first is written.

    made: what was done to the model's tensors before, for the ledgers.
    """
    options = options or ConvertOptions()
    if options.text is not None and not is_builtin(options.text) and not options.text.is_file():
        raise TextError(f"--text {options.text}: no such file; give a text file to measure the KL on, or 'builtin'")
    if options.to is not None and len(outputs) > 1:
        raise ContainerError("--to names one container, and there are several outputs; name them by their endings")
    with ExitStack() as stack:
        source = stack.enter_context(opened(model, options.revision))
        jobs = planned_outputs(source, outputs, options, stack)
        if made is None:
            _refuse_useless(options, jobs)
        if options.announce is not None:
            for job in jobs:
                words = summary([(plan.source_format.name, plan.row.format.name, plan.move) for plan in job.moves])
                options.announce(words if len(jobs) == 1 else f"{job.target.name}: {words}")
        results = [job.run(source, made, progress) for job in jobs]
    if options.text is None:
        return results
    return [
        replace(result, mean_kl=_mean_kl(model, job.target, options)) for job, result in zip(jobs, results, strict=True)
    ]


def planned_outputs(
    source: ModelSource, outputs: Sequence[PathLike], options: ConvertOptions, stack: ExitStack
) -> list[Conversion]:
    """Each output with everything decided and checked that can be before the work; reads headers only.

    stack: keeps rebuilt side files until it is closed.  Raises LilliputError.
    """
    names = [Path(output).resolve() for output in outputs]
    if len(set(names)) < len(names):
        raise ContainerError("two outputs have the same name; give each its own")
    return [_planned(source, Path(output), options, stack) for output in outputs]


def _planned(source: ModelSource, target: Path, options: ConvertOptions, stack: ExitStack) -> Conversion:
    container = _container(options.to, target)
    if options.text is not None and not getattr(container, "is_read", True):
        raise ContainerError(
            f"{target.name}: --text runs the output here, and {container.name} files are not run here; leave it out"
        )
    wanted = Wanted(_asked_format(options.format), options.requantize, options.is_unmade)
    moves = plan_moves(source, container, wanted)
    _check_quantized(source, moves)
    if getattr(container, "needs_quantized", False) and all(plan.row.format.name in PLAIN_FLOATS for plan in moves):
        raise ContainerError(
            f"{target.name}: readers of {container.name} want at least one quantized layer, and --format "
            f"{(options.format or 'F32').upper()} leaves none; leave it out, or give -o NAME.gguf"
        )
    work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lilliput-")))
    files = FolderFiles(source.provenance, source.config)
    if container in FOLDERS:
        files = folder_files(source, None if options.base is None else located(options.base), work)
    if files.config.rope.factors is None:
        # All ones, which say nothing; a folder has no place for them.
        moves = tuple(plan for plan in moves if plan.row.name != ROPE_FACTORS_TENSOR)
    contents, notes = _contents(source, moves, files)
    statistics = _statistics(options.guidance)
    outputs = statistics.outputs if statistics else {}
    contents = replace(contents, input_ranges=input_ranges(statistics), output_ranges=outputs)
    contents, carried = with_carried_ranges(contents, source, container)
    notes += carried
    formats = [plan.row.format for plan in moves]
    notes += reading_warnings(container.name, formats, has_experts=_has_experts(moves))
    notes += _unused(options, moves, container)
    parts = container.layout(contents, target.name, options.split)
    notes += _larger(source, target.name, sum(part.size for part in parts))
    check_target(target, parts, overwrite=options.force)
    return Conversion(target, container, moves, contents, (*files.notes, *notes), options)


@dataclass(frozen=True, slots=True)
class Conversion:
    """One output, planned and not yet written."""

    target: Path
    container: Container
    moves: tuple[TensorMove, ...]
    contents: Contents
    notes: tuple[str, ...]
    options: ConvertOptions

    def run(self, source: ModelSource, made: Ledger | None, progress: Progress | None) -> ConvertResult:
        """Write, reopen, compare, publish. made: as `convert_all` takes it."""
        done: list[Moved] = []
        tensors = _tensors(
            source, self.moves, _statistics(self.options.guidance), done, (self.container, self.options), progress
        )
        placed = (planned_sidecars(tensor, self.contents) for tensor in tensors)
        published = publish(
            self.container, self.contents, placed, self.target, split=self.options.split, overwrite=self.options.force
        )
        result = ConvertResult(
            self.target,
            published.paths,
            published.nbytes,
            self.container.name,
            tuple(_described(item) for item in done),
            ledger_path(self.target),
            self.notes,
            runtimes=runtimes_of(
                self.container.name, [plan.row.format for plan in self.moves], has_experts=_has_experts(self.moves)
            ),
        )
        _write_ledger(source, done, result, made)
        return result


def _has_experts(moves: Sequence[TensorMove]) -> bool:
    """Whether quantized experts are among what is moved."""
    return any(len(plan.row.shape) > 2 and plan.row.format.name not in PLAIN_FLOATS for plan in moves)


def _asked_format(name: str | None) -> NumberFormat | None:
    return get_format(name) if name else None


def _refuse_useless(options: ConvertOptions, jobs: Sequence[Conversion]) -> None:
    """Refuse what was given and changes no output. Raises RecipeError."""
    chosen_anew = any(plan.move is Move.REQUANTIZED for job in jobs for plan in job.moves)
    guidance = options.guidance.statistics or options.guidance.imatrix
    if options.requantize and not chosen_anew:
        raise RecipeError("--requantize: without effect here, as every tensor's codes can be kept; leave it out")
    if guidance is not None and not chosen_anew and not any(_uses_ranges(job.container) for job in jobs):
        word = "--statistics" if options.guidance.statistics else "--imatrix"
        raise RecipeError(
            f"{word} {guidance.name}: without effect where no codes are chosen anew; leave it out, or give "
            "--requantize and a --format whose grid is another"
        )
    if options.base is not None and not any(job.container in FOLDERS for job in jobs):
        raise RecipeError(
            f"--base: without effect, as {jobs[0].container.name} files take everything from the input; leave it out"
        )


def _uses_ranges(container: Container) -> bool:
    return bool(getattr(container, "uses_ranges", False))


def _unused(options: ConvertOptions, moves: Sequence[TensorMove], container: Container) -> list[str]:
    """Of what was given and changes nothing in one of several outputs."""
    given = options.guidance.statistics or options.guidance.imatrix
    is_used = options.is_unmade or _uses_ranges(container) or any(plan.move is Move.REQUANTIZED for plan in moves)
    if given is None or is_used:
        return []
    return [f"{container.name}: {given.name} is not used: no codes are chosen anew"]


def _larger(source: ModelSource, name: str, size: int) -> list[str]:
    """A remark where the output takes more room than the input."""
    before = sum(path.stat().st_size for path in source.weight_files)
    if size <= before * LARGER:
        return []
    return [
        f"{name} takes {size / before:.2f} times the bytes of the input ({size:,} over {before:,}): some tensors are "
        "in wider formats there; --format names others"
    ]


def summary(moves: list[tuple[str, str, Move]]) -> str:
    """`196 Q4_0 -> INT4_G32 repacked, 1 Q6_K -> F32 decoded`."""
    counts = Counter(moves)
    return ", ".join(
        f"{count} {before.upper()}{'' if before == after else f' -> {after.upper()}'} {move.value}"
        for (before, after, move), count in counts.items()
        if before not in PLAIN_FLOATS or move is not Move.KEPT
    )


def _container(name: str | None, target: Path) -> Container:
    if name is None:
        return container_for(target)
    known = {container.name: container for container in (*CONTAINERS, *FOLDERS)}
    if name.lower() not in known:
        not_written(name)
        raise ContainerError(f"--to '{name}': no such container; known: {', '.join(known)}")
    return known[name.lower()]


def _check_quantized(source: ModelSource, moves: tuple[TensorMove, ...]) -> None:
    if all(plan.source_format.name in PLAIN_FLOATS for plan in moves):
        raise ContainerError(
            f"{source.path.name}: nothing in it is quantized; use `lilliput quantize`, which chooses codes"
        )


def _contents(source: ModelSource, moves: tuple[TensorMove, ...], files: FolderFiles) -> tuple[Contents, list[str]]:
    notes = []
    vocabulary = None
    try:
        vocabulary = source.vocabulary()
    except TokenizerError as missing:
        notes.append(f"the output holds no tokenizer and cannot run text: {missing}")
    headers = tuple(TensorHeader(plan.row.name, plan.row.shape, plan.row.format) for plan in moves)
    metadata: Mapping[str, Json] = {
        "lilliput.version": lilliput.__version__,
        "lilliput.converted_from": f"{source.path.name} ({_kind(source)})",
        "lilliput.source_fingerprint": source.fingerprint(),
    }
    preset = next((plan.row.format.name.upper() for plan in moves if plan.row.format.name not in PLAIN_FLOATS), "F32")
    contents = Contents(
        source.architecture, files.config, vocabulary, files.provenance, headers, preset=preset, metadata=metadata
    )
    return contents, notes


def _kind(source: ModelSource) -> str:
    """The container of the source, or the method that its config names."""
    quantization = source.provenance.huggingface_config.get("quantization_config")
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    return str(method or source.container)


def _statistics(guidance: Guidance) -> Statistics | None:
    from lilliput.calibration.statistics_file import read_statistics

    file = guidance.statistics or guidance.imatrix
    return read_statistics(file) if file is not None else None


def _tensors(
    source: ModelSource, moves: tuple[TensorMove, ...], statistics: Statistics | None, done: list[Moved],
    chosen: tuple[Container, ConvertOptions], progress: Progress | None,
) -> Iterator[QuantizedTensor]:  # fmt: skip
    """Tensors for the writer, what was measured of each put into `done` without its bytes."""
    total = sum(_weights(plan) for plan in moves)
    count = 0
    container, options = chosen
    table = {entry.name: entry.source for entry in source.architecture.tensor_table(replace(source.config, tied=False))}

    def settle(tensor: QuantizedTensor) -> QuantizedTensor:
        if isinstance(container, CheckpointFolder) and tensor.name in table:
            return container.settled(tensor, table[tensor.name])
        return tensor

    for item in moved_tensors(source, moves, statistics, settle, threads=options.threads or default_threads()):
        yield item.tensor
        done.append(replace(item, tensor=replace(item.tensor, planes={})))
        count += _weights(item.plan)
        if progress is not None:
            progress(count, total)


def _weights(plan: TensorMove) -> int:
    header = TensorHeader(plan.row.name, plan.row.shape, plan.row.format)
    return header.rows * header.columns


def _described(item: Moved) -> MovedTensor:
    plan = item.plan
    return MovedTensor(
        plan.row.name, plan.source_format.name, plan.row.format.name, plan.move, item.max_error, item.rms_error,
        item.bound,
    )  # fmt: skip


def _write_ledger(source: ModelSource, done: list[Moved], result: ConvertResult, made: Ledger | None) -> None:
    rows = [item.plan.row for item in done]
    weights = sum(_weights(item.plan) for item in done)
    entries = tuple(entry_for(item.plan.row, errors=(item.rms_error**2, None)) for item in done)
    ledger = Ledger(
        recipe=f"convert to {result.container}",
        model=source.path.name,
        output=tuple(path.name for path in result.output),
        bits_per_weight=sum(row.nbytes for row in rows) * 8 / max(weights, 1),
        bytes=result.bytes,
        fingerprints={"model": source.fingerprint()},
        entries=entries,
        notes=result.notes,
    )
    if made is not None:
        # What chose the codes is what a reader of the ledger wants to know; this run only carried them.
        earlier = {entry.name: entry for entry in made.entries}
        ledger = replace(
            made,
            output=ledger.output,
            bits_per_weight=ledger.bits_per_weight,
            bytes=ledger.bytes,
            entries=tuple(_carried(earlier[entry.name], entry) for entry in entries),
            notes=(*made.notes, *ledger.notes),
        )
    ledger.write(result.ledger)


def _carried(made: LedgerEntry, moved: LedgerEntry) -> LedgerEntry:
    return replace(
        made,
        planned_format=moved.planned_format,
        format=moved.format,
        bytes=moved.bytes,
        reason=f"{made.reason}; {moved.reason}",
    )


def _mean_kl(model: PathLike, target: Path, options: ConvertOptions) -> tuple[float, float]:
    """Mean KL of the output from the source, and its standard error, in nats."""
    assert options.text is not None
    measuring = EvaluationOptions(tokens=KL_TOKENS, measure_floor=False, threads=options.threads)
    found = evaluate(model, [target], options.text, options=measuring).files[0].divergence.mean_kld
    return found.value, found.stderr
