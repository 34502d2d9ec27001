# SPDX-License-Identifier: Apache-2.0
"""One quantization, several files: codes are chosen once, and every container gets the same.

The model is quantized into our own layout, which holds every format, and moved from there into each output as `convert`
moves: exactly wherever the formats agree, with a stated bound where a scale is rounded, and never with codes chosen
anew. What has no place in one of the containers is refused before anything is quantized.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from lilliput import workflows
from lilliput.checkpoints.model_source import ModelSource
from lilliput.containers import container_for
from lilliput.converting import ConvertOptions, ConvertResult, convert_all, planned_outputs
from lilliput.errors import PublishError, RecipeError
from lilliput.fitting import FitOptions
from lilliput.formats import get_format
from lilliput.pipeline.repack import has_place
from lilliput.planning import header_of
from lilliput.recipes.ledger import ledger_path, read_ledger
from lilliput.recipes.plan import PLAIN_FLOATS, Plan
from lilliput.recipes.recipe import Recipe
from lilliput.records import QuantizedTensor, Role
from lilliput.search.choices import NARROW_FORMATS, RUNTIMES, WIDE_FORMATS
from lilliput.text.vocabulary import Vocabulary
from lilliput.workflows import Guidance, PathLike, Progress, QuantizeOptions

# What a search can choose among where its runtime's own formats have no place in every output: one scale a row, which
# every container of integers holds.
SHARED_EXAMPLES = "INT4_CHANNEL,INT5_CHANNEL,INT6_CHANNEL,INT7_CHANNEL"


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What `quantize_all` wrote. warnings: of the quantization; each output has notes of its own."""

    outputs: tuple[ConvertResult, ...]
    bits_per_weight: float
    warnings: tuple[str, ...]

    @property
    def is_within_bound(self) -> bool:
        """Whether every output is as near to the quantized model as was said."""
        return all(output.is_within_bound for output in self.outputs)


def quantize_all(
    model: PathLike,
    to: str | Recipe,
    outputs: Sequence[PathLike],
    *,
    guidance: Guidance | None = None,
    options: QuantizeOptions | None = None,
    progress: Progress | None = None,
) -> ExportResult:
    """Quantize `model` once and write it into several containers, each reopened and compared with the same reference.

    outputs: as `quantize` takes one.  progress: called with (weights done, weights in all), for each file anew.
    Raises LilliputError; what is refused leaves nothing.
    """
    options = options or QuantizeOptions()
    targets = [Path(output) for output in outputs]
    reference = _reference_name(targets[0])
    with ExitStack() as stack:
        source = stack.enter_context(workflows.opened(model, options.revision))
        base = source.path if source.container == "huggingface" else None
        moving = ConvertOptions(
            base=base, force=options.force, split=options.split, threads=options.threads, is_unmade=True
        )

        def announce(plan: Plan) -> None:
            nonlocal moving
            if not plan.transforms:
                # Ranges are of the original model, whose inputs a transform changes.
                moving = replace(moving, guidance=guidance or moving.guidance)
            with ExitStack() as planned:
                planned_outputs(_PlannedModel(source, plan), targets, moving, planned)
            if options.announce is not None:
                options.announce(plan)

        chosen = replace(options, announce=announce, force=True, float_roles=_float_roles(targets))
        stack.enter_context(_removed(reference))
        quantized = workflows.quantize(model, to, reference, guidance=guidance, options=chosen, progress=progress)
        made = replace(read_ledger(quantized.ledger), model=Path(str(model)).name)
        written = convert_all(reference, targets, moving, made=made, progress=progress)
    return ExportResult(tuple(written), quantized.bits_per_weight, quantized.warnings)


def shared_formats(outputs: Sequence[Path], options: FitOptions) -> tuple[str, ...]:
    """Formats that a search may choose among, so that what it writes to the first output moves to all others.

    Raises RecipeError where one that was asked for, or all of them, have no place in an output; PublishError for an
    output that exists.
    """
    first, *others = outputs
    containers = [container_for(output) for output in others]
    if not getattr(container_for(first), "is_read", True):
        raise RecipeError(
            f"{first.name}: other outputs are made from the first, and this kind is not read here; name another first"
        )
    for output in others:
        if output.exists() and not options.force:
            raise PublishError(f"{output} exists already; pass --force to replace it or choose another output")
    default = RUNTIMES[options.runtime].files.get(first.suffix) if options.runtime in RUNTIMES else None
    names = options.formats or default or dict.fromkeys((*WIDE_FORMATS, *NARROW_FORMATS))
    kept = []
    for name in names:
        missing = next((item.name for item in containers if not has_place(get_format(name), item)), None)
        if missing is None:
            kept.append(name)
        elif options.formats:
            raise RecipeError(f"--formats {name.upper()}: its codes have no place in a {missing} output; leave it out")
    if all(name in PLAIN_FLOATS for name in kept):
        raise RecipeError(
            f"no format of --for {options.runtime} has a place in all of {', '.join(map(str, outputs))}; "
            f"give --formats, such as {SHARED_EXAMPLES}"
        )
    return tuple(kept)


def move_all(
    made: Path, outputs: Sequence[Path], model: PathLike | None, options: FitOptions, progress: Progress | None = None
) -> list[ConvertResult]:
    """Write a file that a search made into other containers. model: what it was made from, for folders' side files."""
    base = model if model is not None and Path(str(model)).is_dir() else None
    moving = ConvertOptions(base=base, force=options.force, threads=options.threads)
    return convert_all(made, outputs, moving, made=read_ledger(ledger_path(made)), progress=progress)


def _reference_name(first: Path) -> Path:
    return first.with_name(f".{first.name}.reference.safetensors")


def _float_roles(targets: Sequence[Path]) -> tuple[Role, ...]:
    """What one of the containers keeps in floats stays so in all: they hold the same model."""
    roles = [role for target in targets for role in container_for(target).float_roles]
    return tuple(dict.fromkeys(roles))


@contextmanager
def _removed(reference: Path) -> Iterator[None]:
    """Remove the quantized model and its ledger at the end, whatever happens."""
    try:
        yield
    finally:
        reference.unlink(missing_ok=True)
        ledger_path(reference).unlink(missing_ok=True)


class _PlannedModel:
    """A model as its quantization will leave it: headers that say so, and the tensors that it has now."""

    def __init__(self, source: ModelSource, plan: Plan) -> None:
        self._source = source
        self.headers = {row.name: header_of(row) for row in plan.rows}
        self._names = {row.name: row.source_name for row in plan.rows}
        self.path = source.path
        self.container = "lilliput"
        self.architecture = source.architecture
        heads = [row.name for row in plan.rows if row.role is Role.OUTPUT]
        self.config = replace(source.config, tied=source.config.tied and not heads)
        self.provenance = source.provenance
        self.weight_files = source.weight_files

    def source_name(self, name: str) -> str:
        """As the plan has it."""
        return self._names[name]

    def tensor(self, name: str) -> QuantizedTensor:
        """Of the model as it is."""
        return self._source.tensor(name)

    def release(self, name: str) -> None:
        """Nothing is kept."""

    def vocabulary(self) -> Vocabulary:
        """The model's."""
        return self._source.vocabulary()

    def fingerprint(self) -> str:
        """The model's."""
        return self._source.fingerprint()

    def close(self) -> None:
        """The model is its owner's to close."""
