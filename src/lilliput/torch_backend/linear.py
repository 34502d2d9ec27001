# SPDX-License-Identifier: Apache-2.0
"""Linear layers whose weights are stored in a number format, and whose inputs may be integers."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch

from lilliput import _native
from lilliput.activations import FixedScale, FloatInputs, IntegerInputs, WithOutlierColumns
from lilliput.arrays import Array
from lilliput.errors import CalibrationError
from lilliput.formats.number_format import BlockFormat
from lilliput.torch_backend.operators import blocks_linear, integer_linear, native_call
from lilliput.torch_backend.scheme import LayerScheme, get_scheme
from lilliput.torch_backend.stored_weight import StoredWeight
from lilliput.torch_backend.weight_planes import made_planes

if TYPE_CHECKING:
    from lilliput.formats import Planes


class QuantizedLinear(StoredWeight):
    """y = x W^T + b, for torch.nn.Linear and transformers' Conv1D.

    bias: float parameter or None.  input_scale, input_zero_point: buffers of static inputs.
    input_factors: buffer of smoothed layers, what inputs are multiplied by.
    """

    input_scale: torch.Tensor | None
    input_zero_point: torch.Tensor | None
    input_factors: torch.Tensor | None

    def __init__(self, scheme: LayerScheme, in_features: int, out_features: int, *, has_bias: bool) -> None:
        """A layer without content, to be loaded."""
        super().__init__(scheme.weight, out_features, in_features)
        self.scheme = scheme
        self.in_features, self.out_features = in_features, out_features
        integers = scheme.inputs.base if isinstance(scheme.inputs, WithOutlierColumns) else scheme.inputs
        self._integers_name = integers.name
        if isinstance(integers, IntegerInputs):
            integers.groups(in_features)
        self.bias = torch.nn.Parameter(torch.empty(out_features, device="meta")) if has_bias else None
        self.register_buffer("input_scale", _empty((), torch.float32) if scheme.inputs.is_static else None)
        self.register_buffer("input_zero_point", _empty((), torch.int32) if scheme.inputs.is_static else None)
        self.register_buffer("input_factors", _empty((in_features,), torch.float32) if scheme.smoothing > 0 else None)
        self._fixed: tuple[float, ...] | None = None
        self._has_blocks_kernel = isinstance(scheme.weight, BlockFormat) and scheme.weight.name in _native.formats()

    @classmethod
    def from_float(
        cls,
        linear: torch.nn.Module,
        scheme: LayerScheme | str,
        *,
        fixed: FixedScale | None = None,
        factors: torch.Tensor | None = None,
    ) -> QuantizedLinear:
        """Quantize one layer. fixed: for static inputs.  factors: [in_features], which inputs are multiplied by.

        Raises FormatError where its rows do not divide into the format's groups, CalibrationError without `fixed`.
        """
        scheme = get_scheme(scheme) if isinstance(scheme, str) else scheme
        weight = float_weight(linear)
        if factors is not None:
            weight = weight / factors.to(weight)
        return cls.from_planes(linear, scheme, made_planes(scheme.weight, weight), fixed=fixed, factors=factors)

    @classmethod
    def from_planes(
        cls,
        linear: torch.nn.Module,
        scheme: LayerScheme,
        planes: Planes,
        *,
        fixed: FixedScale | None = None,
        factors: torch.Tensor | None = None,
    ) -> QuantizedLinear:
        """As `from_float`, with the weight quantized already."""
        out_features, in_features = float_weight(linear).shape
        bias = cast("torch.Tensor | None", linear.bias)
        made = cls(scheme, in_features, out_features, has_bias=bias is not None)
        if bias is not None:
            made.bias = torch.nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
        made.set_planes(planes)
        if scheme.inputs.is_static:
            if fixed is None:
                raise CalibrationError(f"{scheme.name}: static inputs need ranges; give calibration data")
            made.input_scale = torch.tensor(fixed.scale, dtype=torch.float32)
            made.input_zero_point = torch.tensor(fixed.zero_point, dtype=torch.int32)
        if factors is not None:
            made.input_factors = factors.detach().to(torch.float32).clone()
        made.to(cast("torch.Tensor", linear.weight).device)
        made.prepare()
        return made.train(linear.training)

    def prepare(self) -> None:
        """Lay the weight out for the kernel."""
        super().prepare()
        if self.scheme.is_integer:
            self.execution()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """X [..., in_features] -> [..., out_features], in the type of x."""
        if self.input_factors is not None:
            x = x * self.input_factors.to(x.dtype)
        inputs = self.scheme.inputs
        if isinstance(inputs, IntegerInputs):
            return self._integer_product(x, self.bias)
        if isinstance(inputs, WithOutlierColumns):
            return self._split_product(x, inputs)
        if isinstance(inputs, FloatInputs):
            flat = cast("Array", x.reshape(-1, self.in_features).float())
            x = cast("torch.Tensor", inputs.rounded(flat, self._fixed_scale())).to(x.dtype).view(x.shape)
        return self._float_product(x, self.bias)

    def _integer_product(self, x: torch.Tensor, bias: torch.nn.Parameter | None) -> torch.Tensor:
        if x.device.type == "meta":
            return x.new_empty((*x.shape[:-1], self.rows))
        view = self.execution()
        fixed = self._fixed_inputs()
        # Without the operator's bookkeeping, where nobody traces, differentiates or wraps: it would take as long as a
        # small layer.
        is_plain = type(x) is torch.Tensor and x.device.type == "cpu" and not torch.compiler.is_compiling()
        if view.bound is not None and is_plain and not (torch.is_grad_enabled() and x.requires_grad):
            plain_bias = None if bias is None else bias.detach()
            shape = (self.rows, self.columns)
            return native_call(view.bound, x.detach(), plain_bias, shape, self._integers_name, fixed)
        sizes = [self.rows, self.columns]
        product = integer_linear(x, list(view.weight), bias, sizes, self._integers_name, list(fixed))
        return cast("torch.Tensor", product)

    def _split_product(self, x: torch.Tensor, inputs: WithOutlierColumns) -> torch.Tensor:
        """Columns with outliers as floats against the decoded weight, the others as integers."""
        is_outlier = cast("torch.Tensor", inputs.outliers(cast("Array", x.reshape(-1, self.in_features))))
        whole = self._integer_product(x.masked_fill(is_outlier, 0.0), self.bias)
        columns = is_outlier.nonzero()[:, 0]
        if not len(columns):
            return whole
        weight = self.dequantized_weight()[:, columns].to(x.dtype)
        return whole + torch.nn.functional.linear(x[..., columns], weight)

    def _float_product(self, x: torch.Tensor, bias: torch.nn.Parameter | None) -> torch.Tensor:
        if self._has_blocks_kernel and x.device.type == "cpu":
            name = self.number_format.name
            return cast("torch.Tensor", blocks_linear(x, self._plane("blocks"), bias, name, True))
        return torch.nn.functional.linear(x, self.dequantized_weight().to(x.dtype), bias)

    def _fixed_scale(self) -> FixedScale | None:
        fixed = self._fixed_inputs()
        return FixedScale(fixed[0], int(fixed[1])) if fixed else None

    def _fixed_inputs(self) -> tuple[float, ...]:
        """Static scale and zero point as numbers, read from the buffers once."""
        if self._fixed is None:
            self._fixed = ()
            if self.input_scale is not None and self.input_zero_point is not None:
                self._fixed = (self.input_scale.item(), self.input_zero_point.item())
        return self._fixed

    def _forget(self) -> None:
        super()._forget()
        self._fixed = None

    def extra_repr(self) -> str:
        """Shape and scheme."""
        return f"{self.in_features}, {self.out_features}, {self.scheme.name}, bias={self.bias is not None}"


def float_weight(module: torch.nn.Module) -> torch.Tensor:
    """The weight of a linear layer, [out_features, in_features]; transformers' Conv1D keeps it transposed."""
    weight = cast("torch.Tensor", module.weight).detach()
    return weight.T if type(module).__name__ == "Conv1D" else weight


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Without content, to be loaded."""
    return torch.empty(shape, dtype=dtype, device="meta")
