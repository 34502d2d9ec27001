# SPDX-License-Identifier: Apache-2.0
"""A number format whose arrays are torch tensors, for the solvers that work with Hessians on CPU or GPU.

`NumberFormat`'s arithmetic runs on torch as it is (array-api-compat); this gives it torch's types, the parameters of a
range of columns, and the fit of one block of columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import TYPE_CHECKING, cast

import numpy as np

from lilliput.arrays import Array
from lilliput.errors import FormatError
from lilliput.formats import Encoded, NumberFormat
from lilliput.methods.native_columns import NativeLines, native_lines
from lilliput.methods.searched_scales import native_encoders

if TYPE_CHECKING:
    import torch

    Tensors = Mapping[str, torch.Tensor]

# Columns decided between two updates of all later ones where the format has no blocks of its own.
FREE_BLOCK = 128
# Columns of a panel, at most: a product with fewer is bound by memory.
PANEL = 256
# Columns that the native encoder is given in one row, at most.
ENCODED_TOGETHER = 4096
IMPORTANCE_FLOOR = 1e-6


class TorchFormat:
    """unit: columns decided together.  scopes: as the format's.

    block: columns whose parameters are chosen together: the widest scope narrower than the whole row.
    panel: columns, whole blocks, between two matrix products with all the others.  threads: of native loops.
    """

    def __init__(self, number_format: NumberFormat, columns: int, *, threads: int = 1) -> None:
        self.format = number_format
        self.unit = number_format.unit
        self.scopes = number_format.scopes
        inner = [scope.columns for scope in self.scopes if scope.columns is not None]
        self.has_blocks = bool(inner)
        self.block = max(inner) if inner else _free_block(columns, self.unit)
        self.panel = _panel(columns, self.block)
        self.threads = threads
        # Names of parameters that reach beyond one block.
        self.wide = frozenset(name for scope in self.scopes if scope.columns is None for name in scope.parameters)

    def values(self, codes: torch.Tensor, parameters: Tensors, columns: slice | None = None) -> torch.Tensor:
        """Float32 values of codes [rows, n / unit]."""
        return cast("torch.Tensor", self.format.values(_array(codes), _arrays(parameters), columns))

    def nearest_codes(
        self, target: torch.Tensor, parameters: Tensors, columns: slice, metric: torch.Tensor
    ) -> torch.Tensor:
        """Codes nearest to target [rows, n] under metric [unit, unit], which single columns do not need."""
        used = _array(metric) if self.unit > 1 else None
        found = self.format.nearest_codes(_array(target), _arrays(parameters), columns, metric=used)
        return cast("torch.Tensor", found)

    def lines(self, parameters: Tensors, like: torch.Tensor) -> NativeLines | None:
        """The native form of the values of rows and columns such as `like` [rows, columns]; None where there is none.

        parameters: whole ones, or those of the block as `fit_block` and `narrowed` give them.
        """
        if self.unit > 1 or like.device.type != "cpu":
            return None
        return native_lines(self.format, _arrays(parameters), (like.shape[0], like.shape[1]))

    def linear_terms(self, codes: torch.Tensor, parameters: Tensors) -> Tensors:
        """What the values are linear in, by parameter of the outermost scope; nothing for palettes and their like."""
        try:
            return cast("Tensors", self.format.linear_terms(_array(codes), _arrays(parameters)))
        except FormatError:
            return {}

    def fit_wide(self, weight: torch.Tensor, importance: torch.Tensor) -> dict[str, torch.Tensor]:
        """Parameters of the scopes that reach beyond one block, from the whole matrix."""
        fitted: dict[str, Array] = {}
        for index, scope in enumerate(self.scopes):
            if scope.columns is None:
                fitted |= self.format.fit(_array(weight), _array(importance), scope=index, outer=fitted)
        return cast("dict[str, torch.Tensor]", fitted)

    def fit_block(self, target: torch.Tensor, importance: torch.Tensor, wide: Tensors) -> dict[str, torch.Tensor]:
        """All parameters for target [rows, block], natively where that is possible. importance: [block].

        Their columns count from the start of the block; the wide ones are among them.
        """
        scaled = (importance / importance.mean()).clamp_min(IMPORTANCE_FLOOR)
        if not wide and target.device.type == "cpu" and self.format.name in native_encoders():
            return self._fit_natively(target, scaled)
        fitted: dict[str, Array] = dict(_arrays(wide))
        for index, scope in enumerate(self.scopes):
            if scope.columns is not None:
                fitted |= self.format.fit(_array(target), _array(scaled), scope=index, outer=fitted)
        return cast("dict[str, torch.Tensor]", fitted)

    def _fit_natively(self, target: torch.Tensor, importance: torch.Tensor) -> dict[str, torch.Tensor]:
        """As `fit_block`. Rows lie side by side for it: the encoder takes groups of one row at a time into lanes."""
        import torch

        from lilliput import _native

        rows, block = target.shape
        together = min(max(ENCODED_TOGETHER // block, 1), rows)
        padded = target.new_zeros((-(-rows // together) * together, block))
        padded[:rows] = target
        blocks = _native.encode(
            self.format.name,
            padded.view(-1, together * block).numpy(),
            importance.repeat(together).numpy(),
            inf,
            self.threads,
        )
        parameters = self.format.unpack({"blocks": blocks.reshape(len(padded), -1)[:rows]}, block).parameters
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in parameters.items()}

    def narrowed(self, parameters: Tensors, start: int, stop: int) -> dict[str, torch.Tensor]:
        """Views of the parameters that columns start to stop use; wide ones stay whole."""
        found: dict[str, torch.Tensor] = {}
        for scope in self.scopes:
            for name in scope.parameters:
                whole = parameters[name]
                groups = scope.columns
                found[name] = whole if groups is None else whole[:, start // groups : -(-stop // groups)]
        return found


def to_encoded(codes: torch.Tensor, parameters: Tensors) -> Encoded:
    """Numpy on the host."""
    return Encoded(codes.cpu().numpy(), {name: tensor.cpu().numpy() for name, tensor in parameters.items()})


def _free_block(columns: int, unit: int) -> int:
    """The largest size that divides the row into equal blocks of whole units."""
    sizes = range(min(FREE_BLOCK, columns), 0, -1)
    return next((size for size in sizes if columns % size == 0 and size % unit == 0), columns)


def _panel(columns: int, block: int) -> int:
    """The largest run of whole blocks up to PANEL columns that divides the row, one block at least."""
    blocks = columns // block
    return next((n * block for n in range(max(PANEL // block, 1), 0, -1) if blocks % n == 0), block)


def _array(tensor: torch.Tensor) -> Array:
    return cast("Array", tensor)


def _arrays(tensors: Tensors) -> Mapping[str, Array]:
    return cast("Mapping[str, Array]", tensors)
