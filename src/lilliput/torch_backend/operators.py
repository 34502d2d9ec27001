# SPDX-License-Identifier: Apache-2.0
"""The operators behind the modules, as PyTorch knows them: opaque to torch.compile, with shapes for its tracing.

lilliput::integer_linear   integer inputs times integer weights; on CPU the native kernel, elsewhere `reference`
lilliput::blocks_linear    ggml's blocks on CPU, with float inputs or the engine's own int8 ones
lilliput::decode           stored planes of any format -> float32
"""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from lilliput import _native
from lilliput.activations import FixedScale, IntegerInputs
from lilliput.activations.native_input import native_input
from lilliput.arrays import Array
from lilliput.formats import get_format
from lilliput.formats.native_decode import decode as decode_planes
from lilliput.torch_backend.panels import from_panels, from_parameter_panels

# Columns whose products, at most 255 * 255 each, sum exactly in float32, TF32 inputs included.
EXACT_COLUMNS = 256
_NATIVE_TYPES = (torch.float32, torch.bfloat16)


@torch.library.custom_op("lilliput::integer_linear", mutates_args=())
def integer_linear(
    x: torch.Tensor,
    weight: Sequence[torch.Tensor],
    bias: torch.Tensor | None,
    shape: Sequence[int],
    inputs: str,
    fixed: Sequence[float],
) -> torch.Tensor:
    """X [..., columns] -> [..., rows].

    weight: panels, scale and, where there are any, zero points, as `panels` lays them out.  shape: rows and columns.
    inputs: name of integer inputs.  fixed: scale and zero point of static ones, or nothing.
    """
    if x.device.type == "cpu":
        return native_linear(x, weight, bias, shape, inputs, fixed)
    return reference_linear(x, weight, bias, shape, inputs, fixed)


@integer_linear.register_fake
def _(
    x: torch.Tensor,
    weight: Sequence[torch.Tensor],
    bias: torch.Tensor | None,
    shape: Sequence[int],
    inputs: str,
    fixed: Sequence[float],
) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], shape[0]))


def native_linear(
    x: torch.Tensor,
    weight: Sequence[torch.Tensor],
    bias: torch.Tensor | None,
    shape: Sequence[int],
    inputs: str,
    fixed: Sequence[float],
) -> torch.Tensor:
    """`integer_linear` by the native kernel, on the arrays where they lie."""
    rows, columns = shape
    bound = _bound_weight(weight, rows, columns)
    plain_bias = None if bias is None else bias.detach()
    return native_call(bound, x.detach(), plain_bias, (rows, columns), inputs, tuple(fixed))


def native_call(
    bound: _native.IntegerWeight,
    x: torch.Tensor,
    bias: torch.Tensor | None,
    shape: tuple[int, int],
    inputs: str,
    fixed: tuple[float, ...],
) -> torch.Tensor:
    """The kernel on x [..., columns]; other types than float32 and bfloat16 are converted and converted back."""
    dtype = x.dtype
    if dtype not in _NATIVE_TYPES:
        return native_call(bound, x.float(), bias, shape, inputs, fixed).to(dtype)
    rows, columns = shape
    flat = x.reshape(-1, columns)
    if flat.stride(1) != 1:
        flat = flat.contiguous()
    out = torch.empty((flat.shape[0], rows), dtype=dtype)
    if not out.numel():
        return out.view(*x.shape[:-1], rows)
    entering, leaving = (flat.numpy(), out.numpy()) if dtype == torch.float32 else (_bits(flat), _bits(out))
    added = None if bias is None else bias.float().numpy()
    bound.multiply(entering, _native_inputs(inputs, columns, fixed), leaving, added, torch.get_num_threads())
    return out.view(*x.shape[:-1], rows)


def _bits(values: torch.Tensor) -> NDArray[np.uint16]:
    """bfloat16, which NumPy has not, as its bits; the same memory."""
    return cast("NDArray[np.uint16]", values.view(torch.uint16).numpy())


def reference_linear(
    x: torch.Tensor,
    weight: Sequence[torch.Tensor],
    bias: torch.Tensor | None,
    shape: Sequence[int],
    inputs: str,
    fixed: Sequence[float],
) -> torch.Tensor:
    """`integer_linear` in plain PyTorch, on any device: the same integers and, in float32, the same bits."""
    rows, columns = shape
    kind = integer_inputs(inputs)
    flat = x.detach().reshape(-1, columns).float()
    entered = kind.quantize(cast("Array", flat), FixedScale(fixed[0], int(fixed[1])) if fixed else None)
    codes, input_scale, input_zero = (
        cast("torch.Tensor", part) for part in (entered.codes, entered.scale, entered.zero_point)
    )
    weight_scale = from_parameter_panels(weight[1], rows)
    weight_zero = from_parameter_panels(weight[2], rows) if len(weight) > 2 else None
    integers = from_panels(weight[0], rows, columns)
    groups = max(weight_scale.shape[1], input_scale.shape[1])
    total: torch.Tensor | None = None
    for group in range(groups):
        span = slice(group * columns // groups, (group + 1) * columns // groups)
        mine = group if weight_scale.shape[1] > 1 else 0
        yours = group if input_scale.shape[1] > 1 else 0
        entering = codes[:, span] - input_zero[:, yours, None]
        against = integers[:, span].to(torch.int32)
        if weight_zero is not None:
            against = against - weight_zero[:, mine, None]
        part = _exact_product(entering, against).float() * weight_scale[:, mine]
        if input_scale.shape[1] > 1:
            part = part * input_scale[:, yours, None]
        total = part if total is None else total + part
    assert total is not None
    if input_scale.shape[1] == 1:
        total = total * input_scale
    if bias is not None:
        total = total + bias.detach().float()
    return total.to(x.dtype).view(*x.shape[:-1], rows)


def _exact_product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """int32 [n, k] times int32 [m, k] transposed, magnitudes up to 255: int32 [n, m], by exact float products."""
    total = torch.zeros((left.shape[0], right.shape[0]), dtype=torch.int32, device=left.device)
    with torch.autocast(left.device.type, enabled=False):
        for start in range(0, left.shape[1], EXACT_COLUMNS):
            span = slice(start, start + EXACT_COLUMNS)
            total += (left[:, span].float() @ right[:, span].float().T).to(torch.int32)
    return total


def integer_inputs(name: str) -> IntegerInputs:
    """The integer inputs of that name."""
    from lilliput.activations import get_input_format

    found = get_input_format(name)
    assert isinstance(found, IntegerInputs)
    return found


_INPUTS: dict[tuple[str, int, tuple[float, ...]], _native.IntegerInput] = {}
# Native objects that outlive the interpreter's modules would be reported as leaks.
atexit.register(_INPUTS.clear)


def _native_inputs(name: str, columns: int, fixed: tuple[float, ...]) -> _native.IntegerInput:
    """What the kernel needs to know of the inputs; few, and asked for at each call."""
    key = (name, columns, fixed)
    found = _INPUTS.get(key)
    if found is None:
        scale = FixedScale(fixed[0], int(fixed[1])) if fixed else None
        found = _INPUTS[key] = native_input(integer_inputs(name), columns, scale)
    return found


def bind_weight(weight: Sequence[torch.Tensor], rows: int, columns: int) -> _native.IntegerWeight:
    """The kernel's view of tensors on the CPU, which lives as long as they are not needed elsewhere."""
    # Detached, because the view must not keep the tensors themselves alive.
    panels, scale, *rest = (part.detach().numpy() for part in weight)
    return _native.IntegerWeight(panels, scale, rest[0] if rest else None, rows, columns)


Places = tuple[int, ...]
_BOUND: dict[int, tuple[weakref.ref[torch.Tensor], Places, _native.IntegerWeight]] = {}
atexit.register(_BOUND.clear)


def _bound_weight(weight: Sequence[torch.Tensor], rows: int, columns: int) -> _native.IntegerWeight:
    """The kernel's view of these tensors, kept as long as the panels live and all lie where they lay."""
    panels = weight[0]
    key = panels.data_ptr()
    places = (*(part.data_ptr() for part in weight), rows, columns)
    kept = _BOUND.get(key)
    if kept is not None and kept[0]() is panels and kept[1] == places:
        return kept[2]
    bound = bind_weight(weight, rows, columns)
    _BOUND[key] = (weakref.ref(panels, lambda _: _BOUND.pop(key, None)), places, bound)
    return bound


def _refuse_gradient(_context: object, *_gradients: torch.Tensor | None) -> None:
    raise RuntimeError(
        "a quantized layer has no gradient (autograd): codes cannot be trained. Train the float model and quantize it "
        "afterwards, run this one under torch.no_grad(), or keep the layers that are to be trained: "
        "quantize_(model, scheme, keep=[names])"
    )


@torch.library.custom_op("lilliput::blocks_linear", mutates_args=())
def blocks_linear(
    x: torch.Tensor, blocks: torch.Tensor, bias: torch.Tensor | None, number_format: str, exact_input: bool
) -> torch.Tensor:
    """X [..., columns] times ggml blocks [rows, row bytes], on CPU, by the engine's kernels.

    exact_input: float32 inputs; otherwise the int8 codes that the engine's kernel of the format wants.
    """
    flat = x.detach().reshape(-1, x.shape[-1]).float().contiguous()
    if not len(flat):
        return x.new_empty((*x.shape[:-1], len(blocks)))
    isa = _native.available_instruction_sets()[-1]
    product = _native.matmul(
        number_format, blocks.numpy(), len(blocks), flat.numpy(), isa, exact_input, torch.get_num_threads()
    )
    result = torch.from_numpy(product)
    if bias is not None:
        result += bias.detach().float()
    return result.to(x.dtype).view(*x.shape[:-1], -1)


@blocks_linear.register_fake
def _(
    x: torch.Tensor, blocks: torch.Tensor, bias: torch.Tensor | None, number_format: str, exact_input: bool
) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], blocks.shape[0]))


torch.library.register_autograd("lilliput::integer_linear", _refuse_gradient)
torch.library.register_autograd("lilliput::blocks_linear", _refuse_gradient)


@torch.library.custom_op("lilliput::decode", mutates_args=())
def decode(planes: Sequence[torch.Tensor], number_format: str, columns: int) -> torch.Tensor:
    """Stored planes, in the order in which the format names them -> float32 [rows, columns], on their device."""
    kind = get_format(number_format)
    arrays = {name: plane.cpu().numpy() for name, plane in zip(kind.stored_planes(1, columns), planes, strict=True)}
    values = decode_planes(kind, arrays, columns, threads=torch.get_num_threads())
    return torch.from_numpy(np.ascontiguousarray(values)).to(planes[0].device)


@decode.register_fake
def _(planes: Sequence[torch.Tensor], number_format: str, columns: int) -> torch.Tensor:
    return planes[0].new_empty((planes[0].shape[0], columns), dtype=torch.float32)
