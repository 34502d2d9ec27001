# SPDX-License-Identifier: Apache-2.0
"""Move a quantized model into another container: which format each tensor takes there, and the tensors in it.

Codes are never chosen anew here unless that is asked for. What a tensor becomes is decided from headers, exact formats
first, then those that round only scales; every tensor is compared with its original, so that what is reported was
measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from lilliput.architectures.architecture import TensorEntry
from lilliput.checkpoints.model_source import ModelSource
from lilliput.containers.container import Container
from lilliput.containers.runtimes import SUGGESTED
from lilliput.errors import ContainerError
from lilliput.formats import FORMATS, NumberFormat, Planes, find_format, get_format
from lilliput.formats.integer_grid import Fit, fit, moved, rounding_bound
from lilliput.formats.native_decode import decode
from lilliput.methods import METHODS
from lilliput.pipeline.quantize_tensors import quantize_tensor, slab_rows
from lilliput.recipes.plan import PLAIN_FLOATS, VECTOR_ROLES
from lilliput.records import NO_INPUTS, LayerInputs, QuantizedTensor, Role, Statistics, TensorHeader, TensorPlan

Settle = Callable[[QuantizedTensor], QuantizedTensor]
_REGIONS = ("g256", "g128", "g64", "g32", "g16", "channel", "tensor")
# Half a step, over the number.
_FLOAT_ROUNDING = {"f16": 2.0**-11, "bf16": 2.0**-8}
# Exact floats of what a container cannot hold quantized.
_DECODED = "f32"


class Move(StrEnum):
    """What happens to one tensor.

    KEPT: same format.  REPACKED: other format, same values.  ROUNDED: same codes, rounded scales or minimums.
    DECODED: as floats.  REQUANTIZED: codes chosen anew.
    """

    KEPT = "kept"
    REPACKED = "repacked"
    ROUNDED = "rounded"
    DECODED = "decoded"
    REQUANTIZED = "requantized"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked for.

    format: of quantized layers, None for the smallest exact one.  may_requantize: where no codes can be kept.
    is_unmade: the model is still to be quantized, so that advice is about what to.
    """

    format: NumberFormat | None = None
    may_requantize: bool = False
    is_unmade: bool = False


@dataclass(frozen=True, slots=True)
class TensorMove:
    """The plan of one tensor. row: as any plan has it.  source_format: what it is now."""

    row: TensorPlan
    source_format: NumberFormat
    move: Move


@dataclass(frozen=True, slots=True)
class Moved:
    """One tensor in its new format, and how far the values that its file gives back are from the original's.

    max_error: largest difference over the largest magnitude.  rms_error: root mean square over that of the values.
    """

    tensor: QuantizedTensor
    plan: TensorMove
    max_error: float
    rms_error: float

    @property
    def is_exact(self) -> bool:
        """Whether every value is the same."""
        return self.max_error == 0.0

    @property
    def bound(self) -> float | None:
        """What `max_error` cannot exceed; None where codes were chosen anew."""
        move = self.plan.move
        if move is Move.REQUANTIZED:
            return None
        if move is Move.DECODED:
            return _FLOAT_ROUNDING.get(self.plan.row.format.name, 0.0)
        return rounding_bound(self.plan.source_format, self.plan.row.format) if move is Move.ROUNDED else 0.0


def plan_moves(source: ModelSource, container: Container, wanted: Wanted) -> tuple[TensorMove, ...]:
    """What every tensor becomes. Raises ContainerError naming the first that has no place without requantizing."""
    table = {entry.name: entry for entry in source.architecture.tensor_table(source.config)}
    headers = [
        header
        for name, header in source.headers.items()
        if name not in table or table[name].tied_to not in source.headers
    ]
    common = _common_format(container, _layers(headers, table, container), wanted)
    moves = [_plan_one(source, container, header, table.get(header.name), wanted, common) for header in headers]
    return tuple(moves)


def moved_tensors(
    source: ModelSource, moves: Iterable[TensorMove], statistics: Statistics | None, settle: Settle, *, threads: int
) -> Iterator[Moved]:
    """Each tensor in its new format, compared with its original, in order. settle: as the container stores it."""
    for plan in moves:
        name = plan.row.name
        yield _moved(source.tensor(name), plan, statistics, settle, threads)
        source.release(name)


def _layers(
    headers: Sequence[TensorHeader], table: Mapping[str, TensorEntry], container: Container
) -> list[TensorHeader]:
    """Quantized tensors that the container is to hold quantized."""
    return [
        header
        for header in headers
        if header.format.name not in PLAIN_FLOATS and not _stays_float(table.get(header.name), container)
    ]


def _stays_float(entry: TensorEntry | None, container: Container) -> bool:
    return entry is not None and entry.role in container.float_roles


def _common_format(container: Container, layers: Sequence[TensorHeader], wanted: Wanted) -> NumberFormat | None:
    """The one format of a container that has one for all layers; None where each has its own."""
    if not getattr(container, "has_one_format", False):
        return None
    if wanted.format is not None:
        return wanted.format
    for level in (Fit.EXACT, Fit.ROUNDED):
        for candidate in _candidates(container):
            fits = {fit(header.format, candidate, header.columns) for header in layers}
            if fits and None not in fits and (level is Fit.ROUNDED or fits == {Fit.EXACT}):
                return candidate
    if wanted.may_requantize:
        return _default_format(container)
    return None


def _plan_one(
    source: ModelSource,
    container: Container,
    header: TensorHeader,
    entry: TensorEntry | None,
    wanted: Wanted,
    common: NumberFormat | None,
) -> TensorMove:
    is_vector = len(header.shape) < 2 or (entry is not None and entry.role in VECTOR_ROLES)
    if is_vector or header.format.name in PLAIN_FLOATS:
        chosen, move = _float_place(container, header, is_vector=is_vector)
    elif _stays_float(entry, container) and not (common is None and container.holds(header.format) and _head(entry)):
        chosen, move = get_format(_DECODED), Move.DECODED
    else:
        chosen, move = _place(container, header, wanted, common)
    reason = f"{header.format.name.upper()} {move.value}"
    method = "copy" if move is not Move.REQUANTIZED else "searched_scales"
    row = TensorPlan(
        name=header.name,
        source_name=source.source_name(header.name),
        shape=header.shape,
        role=entry.role if entry is not None else Role.OTHER,
        format=chosen,
        method=method,
        reason=reason,
        runtime_group=entry.runtime_group if entry is not None else None,
    )
    return TensorMove(row, header.format, move)


def _head(entry: TensorEntry | None) -> bool:
    return entry is not None and entry.role is Role.OUTPUT


def _float_place(container: Container, header: TensorHeader, *, is_vector: bool) -> tuple[NumberFormat, Move]:
    if container.holds(header.format) and not (is_vector and container.name == "gguf"):
        return header.format, Move.KEPT
    # Vectors of a GGUF are F32: its readers take no other.
    is_same = header.format.name == _DECODED
    return get_format(_DECODED), Move.KEPT if is_same else Move.REPACKED


def _place(
    container: Container, header: TensorHeader, wanted: Wanted, common: NumberFormat | None
) -> tuple[NumberFormat, Move]:
    """Format and move of one quantized layer. Raises ContainerError."""
    asked = common or wanted.format
    if asked is not None:
        if asked.name in PLAIN_FLOATS:
            return asked, Move.DECODED
        found = fit(header.format, asked, header.columns)
        if found is not None:
            return asked, _move(header.format, asked, found)
        if wanted.may_requantize:
            return _dividing(asked, header), Move.REQUANTIZED
        raise _no_place(container, header, asked, wanted)
    if container.holds(header.format):
        return header.format, Move.KEPT
    for level in (Fit.EXACT, Fit.ROUNDED):
        for candidate in _candidates(container):
            if fit(header.format, candidate, header.columns) is level:
                return candidate, _move(header.format, candidate, level)
    if wanted.may_requantize:
        return _dividing(_default_format(container), header), Move.REQUANTIZED
    raise _no_place(container, header, None, wanted)


def _default_format(container: Container) -> NumberFormat:
    """What layers are rounded to where nothing was asked for."""
    return get_format(SUGGESTED[container.name])


def _dividing(wanted: NumberFormat, header: TensorHeader) -> NumberFormat:
    return wanted if header.columns % wanted.block_size == 0 else get_format(_DECODED)


def _move(source: NumberFormat, target: NumberFormat, found: Fit) -> Move:
    if source.name == target.name:
        return Move.KEPT
    return Move.REPACKED if found is Fit.EXACT else Move.ROUNDED


def _no_place(container: Container, header: TensorHeader, asked: NumberFormat | None, wanted: Wanted) -> ContainerError:
    where = f"as {asked.name.upper()}" if asked is not None else f"in {container.suffix}"
    fact = f"tensor '{header.name}' is {header.format.name.upper()}, whose codes have no place {where}"
    held = getattr(container, "holds_text", "")
    if wanted.is_unmade:
        rows = f" in rows of {header.columns} weights" if has_place(header.format, container) else ""
        return ContainerError(
            f"{fact}{rows}; " + (f"{held}; " if held else "") + "choose a format with --to that every output holds"
        )
    # Folders of quantized weights are refused by their readers where no layer is quantized.
    floats = "" if getattr(container, "needs_quantized", False) else "--format F16 to store floats, "
    return ContainerError(
        f"{fact}; pass --requantize to choose codes anew (better from the original model: lilliput quantize), "
        f"{floats}or another container" + (f"; {held}" if held else "")
    )


def has_place(number_format: NumberFormat, container: Container) -> bool:
    """Whether codes of a format can be kept in a container, exactly or with rounded scales."""
    if number_format.name in PLAIN_FLOATS or container.holds(number_format):
        return True
    # Rows of every format's blocks.
    columns = 4096
    return any(fit(number_format, candidate, columns) is not None for candidate in _candidates(container))


def _candidates(container: Container) -> list[NumberFormat]:
    """Integer formats that the container holds, the smallest first; of one size the simplest first."""
    names = [f"int{bits}_{region}{kind}" for kind in ("", "_narrow", "_asym", "_affine")
             for bits in range(2, 9) for region in _REGIONS if kind != "_affine" or region.startswith("g")]  # fmt: skip
    made = [find_format(name) for name in names]
    known = [*FORMATS.values(), *(number_format for number_format in made if number_format is not None)]
    held = {item.name: item for item in known if item.name not in PLAIN_FLOATS and container.holds(item)}
    return sorted(held.values(), key=lambda item: item.bits_per_weight)


def _moved(
    tensor: QuantizedTensor, plan: TensorMove, statistics: Statistics | None, settle: Settle, threads: int
) -> Moved:
    if plan.move is Move.REQUANTIZED:
        made, _ = quantize_tensor(tensor, plan.row, _inputs(plan.row, statistics), threads=threads)
    elif plan.move is Move.KEPT:
        made = QuantizedTensor(tensor.name, tensor.shape, plan.row.format, tensor.planes)
    else:
        parts = [_moved_rows(tensor, plan, part) for part in _cuts(tensor, plan.row.format)]
        made = QuantizedTensor(tensor.name, tensor.shape, plan.row.format, plan.row.format.joined_rows(parts))
    made = replace(made, sidecars=tensor.sidecars)
    errors = _errors(tensor, settle(made), threads)
    if errors[0] > 0.0 and plan.move in (Move.KEPT, Move.REPACKED):
        # The container keeps scales in a unit of its own.
        plan = replace(plan, move=Move.ROUNDED)
    return Moved(made, plan, *errors)


def _inputs(row: TensorPlan, statistics: Statistics | None) -> LayerInputs:
    found = statistics.inputs.get(row.name) if statistics is not None else None
    return LayerInputs(found.tokens, found.input_mean_square) if found is not None and found.tokens else NO_INPUTS


def _cuts(tensor: QuantizedTensor, target: NumberFormat) -> Iterator[tuple[int, int]]:
    step = slab_rows(tensor.format, target, tensor.rows, tensor.columns)
    for start in range(0, tensor.rows, step):
        yield start, min(start + step, tensor.rows)


def _rows(tensor: QuantizedTensor, start: int, end: int) -> Planes:
    planes = tensor.planes
    if "blocks" in planes:
        planes = {"blocks": np.asarray(planes["blocks"]).reshape(tensor.rows, -1)}
    return tensor.format.row_range(planes, start, end)


def _moved_rows(tensor: QuantizedTensor, plan: TensorMove, cut: tuple[int, int]) -> Planes:
    part, target = _rows(tensor, *cut), plan.row.format
    if target.name in PLAIN_FLOATS:
        return METHODS["copy"].quantize(target, decode(tensor.format, part, tensor.columns), NO_INPUTS, threads=1)
    return moved(part, tensor.format, target, tensor.columns)


def _errors(tensor: QuantizedTensor, made: QuantizedTensor, threads: int) -> tuple[float, float]:
    """Largest difference over the largest magnitude, and the root mean square of differences over that of values."""
    if made.planes is tensor.planes:
        return 0.0, 0.0
    largest = difference = 0.0
    squares = energy = 0.0
    for cut in _cuts(tensor, made.format):
        before = decode(tensor.format, _rows(tensor, *cut), tensor.columns, threads=threads)
        after = decode(made.format, _rows(made, *cut), tensor.columns, threads=threads)
        gap = np.abs(after - before)
        largest, difference = max(largest, float(np.abs(before).max())), max(difference, float(gap.max()))
        squares += float(np.square(gap, dtype=np.float64).sum())
        energy += float(np.square(before, dtype=np.float64).sum())
    if difference == 0.0:
        return 0.0, 0.0
    return difference / (largest or 1.0), float(np.sqrt(squares / (energy or 1.0)))
