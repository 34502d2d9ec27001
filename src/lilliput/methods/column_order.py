# SPDX-License-Identifier: Apache-2.0
"""Columns in the order of their importance, for formats whose groups follow it (`formats/ordered_groups.py`).

Problem   groups of adjacent columns mix inputs that matter with inputs that do not, under one scale.
Idea      GPTQ's act-order (`desc_act`): put the columns in falling order of the Hessian's diagonal, quantize that
          matrix as any other, and keep for each column the group that it came to lie in.
Changes   none from GPTQ; any method can do it, as all that it sees is a matrix and inputs in another order.
Cost      one more copy of the Hessian, shared by the layers of one input.
Not when  the reader wants groups that are runs of columns, as all but GPTQ's do: the codes have no other place.
"""

from __future__ import annotations

from typing import cast
from weakref import WeakKeyDictionary

import numpy as np

from lilliput.arrays import Array, FloatArray
from lilliput.formats import Planes
from lilliput.formats.ordered_groups import OrderedGroups
from lilliput.methods.method import TensorMethod
from lilliput.records import NO_INPUTS, LayerInputs

_ordered: WeakKeyDictionary[LayerInputs, tuple[Array, LayerInputs]] = WeakKeyDictionary()


def quantize_in_order(
    method: TensorMethod, number_format: OrderedGroups, weight: FloatArray, inputs: LayerInputs, *, threads: int
) -> Planes:
    """What `method` makes of weight [rows, columns] with its columns by falling importance.

    Linears that share inputs share the order, as readers that join them expect. Without inputs there is none.
    """
    number_format.check_columns("weight", weight.shape[1])
    order, there = _in_order(inputs, weight.shape[1])
    moved = np.ascontiguousarray(weight[:, order], dtype=np.float32)
    return number_format.reordered(method.quantize(number_format.base, moved, there, threads=threads), order)


def _in_order(inputs: LayerInputs, columns: int) -> tuple[Array, LayerInputs]:
    """int64 [columns], and the inputs in that order, made once per object."""
    if inputs is NO_INPUTS or (inputs.hessian is None and inputs.mean_square is None):
        return np.arange(columns, dtype=np.int64), inputs
    if inputs not in _ordered:
        importance = inputs.mean_square if inputs.hessian is None else _diagonal(inputs.hessian)
        order: Array = np.argsort(-np.asarray(importance, dtype=np.float64), kind="stable")
        mean_square = None if inputs.mean_square is None else np.asarray(inputs.mean_square)[order]
        hessian = None if inputs.hessian is None else _turned(inputs.hessian, order)
        _ordered[inputs] = order, LayerInputs(inputs.tokens, mean_square, hessian)
    return _ordered[inputs]


def _diagonal(matrix: Array) -> Array:
    if isinstance(matrix, np.ndarray):
        return matrix.diagonal()
    import torch

    diagonal: Array = torch.as_tensor(matrix).diagonal().cpu().numpy()
    return diagonal


def _turned(matrix: Array, order: Array) -> Array:
    """Rows and columns of a matrix in another order."""
    if isinstance(matrix, np.ndarray):
        turned_array: Array = matrix[np.ix_(order, order)]
        return turned_array
    import torch

    turned = torch.as_tensor(matrix)
    places = torch.from_numpy(order).to(turned.device)
    return cast("Array", turned[places][:, places])
