# SPDX-License-Identifier: Apache-2.0
"""How a canonical tensor comes from tensors of a Hugging Face checkpoint: expressions, and what they mean on arrays."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np

from lilliput.arrays import Array, IntArray


@dataclass(frozen=True, slots=True)
class Named:
    """The checkpoint's tensor of that name, as it is."""

    name: str


@dataclass(frozen=True, slots=True)
class PermutedHeads:
    """Rows of each head reordered from halves to adjacent pairs: reshape(heads, 2, d/2).swap(1, 2)."""

    name: str
    heads: int


@dataclass(frozen=True, slots=True)
class InterleavedHeads:
    """Rows that lie as [heads, parts, d] in the checkpoint, as [parts, heads, d] here: GPT-NeoX's fused q, k and v."""

    name: str
    heads: int
    parts: int = 3


@dataclass(frozen=True, slots=True)
class Transposed:
    """A matrix that the checkpoint keeps as [in, out]: GPT-2's Conv1D."""

    name: str


@dataclass(frozen=True, slots=True)
class Shifted:
    """Every value plus `by`, in float32: norms that the checkpoint keeps as what is added to 1 (Gemma)."""

    name: str
    by: float


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows [start, end) of a matrix, or of each matrix of a stack, that has `total`."""

    name: str
    start: int
    end: int
    total: int


@dataclass(frozen=True, slots=True)
class Stacked:
    """Tensors of one shape, one after the other along a new first axis: experts that a checkpoint keeps apart."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Computed:
    """A tensor that no checkpoint holds; `values` are its float32 numbers (rope_freqs)."""

    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class FirstOf:
    """Different layouts of the same tensor: the first whose tensors the checkpoint has. A computed one may end them."""

    sources: tuple[StoredSource | Computed, ...]


StoredSource = Named | PermutedHeads | InterleavedHeads | Transposed | Shifted | Rows | Stacked
Source = StoredSource | Computed | FirstOf


def source_names(source: Source) -> tuple[str, ...]:
    """Checkpoint tensors that are read; of several layouts, those of all."""
    match source:
        case Computed():
            return ()
        case Stacked(names):
            return names
        case FirstOf(sources):
            return tuple(name for each in sources for name in source_names(each))
        case _:
            return (source.name,)


def chosen_source(source: Source, present: Collection[str]) -> StoredSource | Computed:
    """The layout that the checkpoint has; the first one where it has none."""
    if not isinstance(source, FirstOf):
        return source
    found = (each for each in source.sources if all(name in present for name in source_names(each)))
    return next(found, source.sources[0])


def stored_shape(source: StoredSource, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape that each of the checkpoint's tensors must have for a canonical tensor of `shape`."""
    match source:
        case Transposed():
            return shape[::-1]
        case Rows(total=total):
            return (total,) if len(shape) == 1 else (*shape[:-2], total, shape[-1])
        case Stacked():
            return shape[1:]
        case _:
            return shape


def row_order(source: StoredSource, rows: int) -> IntArray | None:
    """The checkpoint's row of each canonical row of a matrix or vector; None where the order is the same.

    Only for sources that do nothing else: see `arranged` for the others.
    """
    match source:
        case PermutedHeads(heads=heads):
            return _order((heads, 2, rows // heads // 2), (0, 2, 1))
        case InterleavedHeads(heads=heads, parts=parts):
            return _order((heads, parts, rows // heads // parts), (1, 0, 2))
        case _:
            return None


def arranged(source: StoredSource, read: Callable[[str], Array]) -> Array:
    """The canonical tensor. `read` gives a checkpoint tensor in its shape, of any element type; float32 for Shifted."""
    match source:
        case Transposed(name):
            return np.ascontiguousarray(read(name).T)
        case Shifted(name, by):
            return read(name) + np.float32(by)
        case Rows(name, start, end):
            stored = read(name)
            part = stored[start:end] if stored.ndim == 1 else stored[..., start:end, :]
            return np.ascontiguousarray(part)
        case Stacked(names):
            return np.stack([read(name) for name in names])
        case _:
            stored = read(source.name)
            order = row_order(source, len(stored))
            return stored if order is None else stored[order]


def checkpoint_tensors(sources: Mapping[str, Source], canonical: Mapping[str, Array]) -> dict[str, Array]:
    """The inverse: what a Hugging Face checkpoint holds, from canonical tensors; the first of several layouts.

    sources: canonical name -> expression.  Rows of one tensor are put together; all of them must be there.
    """
    found: dict[str, Array] = {}
    for name, source in sources.items():
        chosen = source.sources[0] if isinstance(source, FirstOf) else source
        if isinstance(chosen, Computed):
            continue
        values = canonical[name]
        match chosen:
            case Transposed(stored):
                found[stored] = np.ascontiguousarray(values.T)
            case Shifted(stored, by):
                found[stored] = values - np.float32(by)
            case Rows(stored, start, end):
                whole = found.setdefault(stored, np.empty(stored_shape(chosen, values.shape), values.dtype))
                whole[(slice(start, end),) if values.ndim == 1 else (..., slice(start, end), slice(None))] = values
            case Stacked(names):
                found |= dict(zip(names, values, strict=True))
            case _:
                order = row_order(chosen, len(values))
                found[chosen.name] = values if order is None else values[np.argsort(order)]
    return found


def _order(shape: tuple[int, ...], axes: tuple[int, ...]) -> IntArray:
    order: IntArray = np.arange(int(np.prod(shape)), dtype=np.int32).reshape(shape).transpose(axes).reshape(-1)
    return order
