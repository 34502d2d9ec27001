# SPDX-License-Identifier: Apache-2.0
"""`plan`: what `quantize` will do, in what file, of what size and at what cost, from headers alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import lilliput
from lilliput.activations import StaticInputs, parse_static_inputs
from lilliput.activations.stored_range import range_specs
from lilliput.architectures import NOT_IN_GGUF
from lilliput.architectures.architecture import Json
from lilliput.architectures.prediction_heads import described_heads
from lilliput.arrays import IntArray
from lilliput.calibration.block_stream import Precision
from lilliput.calibration.builtin_mix import BUILT_IN_DATASET
from lilliput.calibration.enough_text import check_enough, check_runnable, few_tokens_notes
from lilliput.calibration.input_ranges import input_ranges
from lilliput.checkpoints.model_source import ModelSource
from lilliput.containers import CONTAINERS, FOLDERS, container_for
from lilliput.containers.container import Container, Contents, Split
from lilliput.containers.gguf import Gguf
from lilliput.containers.gguf_metadata import file_name
from lilliput.containers.litert.integer_container import IntegerLiteRt, check_is_encoder
from lilliput.containers.runtimes import SUGGESTED, reading_warnings
from lilliput.errors import CalibrationError, ContainerError, FormatError, RecipeError, TokenizerError
from lilliput.methods import METHODS
from lilliput.opening import PathLike, opened, text_files
from lilliput.pipeline.quantize_blocks import StreamInputs, needs_stream
from lilliput.pipeline.transform_model import check_guidance, outlined, transform_plans
from lilliput.pipeline.tune import BYTES_PER_WEIGHT, TuneOptions
from lilliput.recipes.estimate import CostEstimate, TextWork, estimate, looks_before
from lilliput.recipes.float_roles import with_float_roles
from lilliput.recipes.machine import MachineSpeeds
from lilliput.recipes.making import FINGERPRINT_KEY
from lilliput.recipes.plan import PLAIN_FLOATS, Plan, resolve
from lilliput.recipes.recipe import Recipe, find_recipe, parse_method, preset_names
from lilliput.records import Role, Statistics, TensorHeader, TensorPlan
from lilliput.runtime.processors import default_threads
from lilliput.text.tokenizer_report import check_vocabulary
from lilliput.transforms import parse_transform
from lilliput.transforms.residual_rotation import ResidualRotation

if TYPE_CHECKING:
    from lilliput.text.vocabulary import Vocabulary

# --effort: how codes are chosen. Each step is justified by docs/log.md and benchmarks/quality.py.
EFFORTS = {"fast": "searched_scales", "balanced": "feedback", "best": "feedback"}
# Enough for the Hessian of 4,096 inputs; more text gains little and costs time in proportion.
STREAM_TOKENS = 65_536
# Tokens of a sequence to calibrate on, as llama-imatrix takes them.
CHUNK = 512
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
    activations: static inputs whose range the file shall hold, as `parse_static_inputs` reads them; rules of a recipe
    that name some come first.
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
    activations: str | None = None
    announce: Callable[[Plan], None] | None = None

    @property
    def stream_inputs(self) -> StreamInputs:
        """`inputs`, or what the effort asks for."""
        return self.inputs or ("both" if self.effort == "best" else "quantized")


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


def planned(
    source: ModelSource, to: str | Recipe, container: Container | None, guidance: Guidance, options: QuantizeOptions
) -> tuple[ModelSource, Plan]:
    """The model as its transforms will leave it, headers only, and the plan for that."""
    if isinstance(container, IntegerLiteRt):
        # Before anything else is asked for: no format and no statistics would help.
        check_is_encoder(source.config)
    if guidance.text:
        check_runnable(source.config)
    recipe = find_recipe(to) if isinstance(to, str) else to
    transforms = [parse_transform(words) for words in (*recipe.transforms, *options.transforms)]
    has_statistics = guidance.is_given and not guidance.text
    check_guidance(transforms, has_text=bool(guidance.text), has_statistics=has_statistics)
    source = outlined(source, transforms)
    roles = (*(container.float_roles if container is not None else ()), *options.float_roles)
    recipe = with_float_roles(recipe, roles, source)
    plan = resolve(
        source, recipe, statistics_present=guidance.is_given, method=chosen_method(guidance, options),
        inputs=_static_inputs(options),
    )  # fmt: skip
    check_ranges(plan, guidance)
    if container is not None:
        _check_mix(plan, recipe, container)
    plan = replace(plan, transforms=transform_plans(source))
    return source, _with_prediction_heads(plan, source, container)


def _static_inputs(options: QuantizeOptions) -> StaticInputs | None:
    try:
        return None if options.activations is None else parse_static_inputs(options.activations)
    except FormatError as error:
        raise RecipeError(f"--activations: {error}") from error


def check_ranges(plan: Plan, guidance: Guidance) -> None:
    """Raise CalibrationError for static inputs whose ranges nobody will see."""
    row = next((row for row in plan.rows if row.inputs is not None), None)
    if row is not None and row.inputs is not None and not guidance.text:
        raise CalibrationError(
            f"{row.name}: inputs {row.inputs.name} have a range, which is found on text; give --text FILE (or --text "
            "builtin), or leave static inputs out: the engine finds scales as inputs come"
        )


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
    measuring: Callable[[str], None] | None = None,
) -> PlanReport:
    """What `quantize` will do, from headers alone, with its exact size and what it will take.

    output: its name decides the container, as for `quantize`.  measuring: called with the name of each speed of this
    machine that is not known yet, before it is measured.  Raises ContainerError for what the container cannot hold.
    """
    guidance, options = guidance or Guidance(), options or QuantizeOptions()
    with opened(model, options.revision) as original:
        source, found, size = _sized(original, to, output, guidance, options)
        check_hessians(found, guidance)
        threads = options.threads or default_threads()
        speeds = MachineSpeeds(threads, guided=guidance.is_given, measuring=measuring)
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
    source, found = planned(original, to, wanted, guidance, options)
    notes = _container_notes(found) if wanted is None else _reading_notes(wanted, found)
    found = replace(found, warnings=(*found.warnings, *notes))
    contents, _ = contents_of(source, found, guidance)
    # As many bytes as the real keys will have: hashes and numbers are of one width whatever they say.
    keys = own_keys("0" * 64, found, guidance, expected_statistics(guidance), 0)
    contents = replace(contents, metadata={**keys, **contents.metadata})
    container = wanted or _default_container(found, source.config.family)
    parts = container.layout(contents, f"model{container.suffix}", options.split)
    return source, found, sum(part.size for part in parts)


def contents_of(source: ModelSource, plan: Plan, guidance: Guidance) -> tuple[Contents, list[str]]:
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
    headers = tuple(header_of(row) for row in plan.rows)
    sidecars = {header.name: range_specs(header.inputs) for header in headers if header.inputs is not None}
    # Ranges are of the original model, whose inputs a transform changes.
    statistics = None if plan.transforms else expected_statistics(guidance)
    contents = Contents(
        source.architecture, source.config, vocabulary, source.provenance, headers, plan.recipe, sidecars=sidecars,
        input_ranges=input_ranges(statistics), output_ranges=statistics.outputs if statistics else {},
    )  # fmt: skip
    return contents, notes


def header_of(row: TensorPlan) -> TensorHeader:
    """The header that a planned tensor will have."""
    return TensorHeader(row.name, row.shape, row.format, None if row.inputs is None else row.inputs.inputs)


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
    return int(text_chunks(source, text_files(guidance.text), tokens).size)


def text_chunks(source: ModelSource, texts: Sequence[Path], tokens: int | None) -> IntArray:
    """Token ids [chunks, chunk_size] of the text to quantize on."""
    from lilliput.calibration.data import calibration_chunks

    is_encoder = source.config.encoder is not None
    size = ENCODER_CHUNK if is_encoder else CHUNK
    size = min(size, source.config.context_length)
    chunks = calibration_chunks(source.vocabulary(), texts, chunk_size=size, tokens=tokens, has_ends=is_encoder)
    check_enough(chunks, texts)
    return chunks


def own_keys(
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


def expected_statistics(guidance: Guidance) -> Statistics | None:
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
        if not getattr(container, "holds_ranges", False) and any(row.inputs is not None for row in plan.rows):
            continue
        if all(container.holds(row.format) for row in plan.rows):
            return container
    raise ContainerError("no file format holds all number formats of this plan; quantize to fewer of them")


def default_name(source: ModelSource, contents: Contents, plan: Plan) -> Path:
    """`<Model>-<Size>-<QUANT>` with the ending of the first container that holds the plan."""
    name = file_name(source.provenance.general, contents.weights, plan.recipe)
    return Path(name.removesuffix(Gguf.suffix) + _default_container(plan, source.config.family).suffix)


def _reading_notes(container: Container, plan: Plan) -> list[str]:
    has_experts = any(len(row.shape) > 2 and row.format.name not in PLAIN_FLOATS for row in plan.rows)
    notes = reading_warnings(container.name, (row.format for row in plan.rows), has_experts=has_experts)
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
        if any(row.inputs is not None for row in plan.rows):
            return ["GGUF has no place for ranges of inputs: the output will be lilliput's own layout"]
        return []
    return [
        f"GGUF has no type for {', '.join(foreign)}: the output will be lilliput's own layout (-o NAME.safetensors), "
        "which llama.cpp does not read"
    ]


def widest_layer(source: ModelSource) -> int:
    """Inputs of the layer that has most."""
    return max(header.columns for header in source.headers.values() if len(header.shape) > 1)


def check_hessians(plan: Plan, guidance: Guidance) -> None:
    """Raise CalibrationError for a method that runs the model on text where there is none."""
    row = next((row for row in plan.rows if METHODS[row.method].needs == "hessian"), None)
    if row is not None and not guidance.text:
        raise CalibrationError(
            f"{row.name}: method '{row.method}' (--effort balanced and best) runs the model on text and takes no ready "
            "statistics; give --text FILE (or --text builtin), or --effort fast, the default without a text"
        )
