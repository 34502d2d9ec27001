# SPDX-License-Identifier: Apache-2.0
"""A module whose weight is stored in a number format: what linear layers and embeddings share.

The planes of the format are buffers, `weight_codes`, `weight_scale` …, as our files have them; they follow the module
to devices and into state dicts. Codes of 8-bit integers that meet integer inputs lie in memory as the kernel reads
them (`panels`) and nowhere else; state dicts show them in rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch

from lilliput import _native
from lilliput.arrays import Array
from lilliput.errors import FormatError
from lilliput.formats import NumberFormat, Planes
from lilliput.formats.scoped_number import ScopedNumber
from lilliput.torch_backend.integer_form import IntegerLines, has_integer_form, integer_lines
from lilliput.torch_backend.operators import bind_weight, decode
from lilliput.torch_backend.panels import from_panels, rows_of_panels, to_panels, to_parameter_panels

PREFIX = "weight_"


@dataclass(frozen=True, slots=True)
class Execution:
    """What the integer kernel needs of a weight; made from the planes, never saved.

    weight: panels, scale and, where there are any, zero points.  bound: the kernel's view of them, on CPU.
    """

    weight: tuple[torch.Tensor, ...]
    bound: _native.IntegerWeight | None

    @property
    def panels(self) -> torch.Tensor:
        """int8 [panels, quads, 16, 4]."""
        return self.weight[0]


class StoredWeight(torch.nn.Module):
    """rows, columns: of the weight.  number_format: of its planes."""

    number_format: NumberFormat
    bias: torch.nn.Parameter | None

    def __init__(self, number_format: NumberFormat, rows: int, columns: int) -> None:
        """Planes without content, on the meta device, until they are given or loaded."""
        super().__init__()
        number_format.check_columns("weight", columns)
        self.number_format, self.rows, self.columns = number_format, rows, columns
        # The module that this one shares its weight with; not registered, or it would be saved twice.
        self._sharing: list[StoredWeight] = []
        # Whether every code is one byte and stands for an integer.
        self._is_bytes = _has_byte_codes(number_format)
        self._execution: Execution | None = None
        self._lines: IntegerLines | None = None
        for name, spec in number_format.stored_planes(rows, columns).items():
            dtype = torch.from_numpy(np.zeros(0, spec.dtype)).dtype
            self.register_buffer(PREFIX + name, torch.empty(spec.shape, dtype=dtype, device="meta"))

    # ---- planes ----

    @property
    def plane_names(self) -> list[str]:
        """As the format names them."""
        return list(self.number_format.stored_planes(self.rows, self.columns))

    def planes(self) -> dict[str, torch.Tensor]:
        """Stored planes by name, codes in rows."""
        found = {name: self._plane(name) for name in self.plane_names}
        if self.is_paneled:
            found["codes"] = _unsigned(from_panels(found["codes"], self.rows, self.columns))
        return found

    def set_planes(self, planes: Planes) -> None:
        """Take planes (numpy) as a method made them."""
        for name in self.plane_names:
            self._buffers[PREFIX + name] = torch.from_numpy(np.array(planes[name]))
        self._forget()

    def prepare(self) -> None:
        """Be ready after loading: planes in the types that the format declares, shared ones found again."""
        self._forget()
        if self._sharing:
            self._follow()
            return
        for name, spec in self.number_format.stored_planes(self.rows, self.columns).items():
            dtype = torch.from_numpy(np.zeros(0, spec.dtype)).dtype
            if not (name == "codes" and self.is_paneled):
                self._buffers[PREFIX + name] = self._plane(name).to(dtype)
        if self._is_bytes:
            self.integer_lines()

    @property
    def is_paneled(self) -> bool:
        """Whether codes lie in memory as the kernel reads them."""
        codes = self._buffers.get(PREFIX + "codes")
        return codes is not None and codes.dim() == 4

    @property
    def is_sharing(self) -> bool:
        """Whether another module holds this one's weight."""
        return bool(self._sharing)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the planes in a file; 0 where another module holds them."""
        return 0 if self._sharing else self.number_format.stored_bytes(self.rows, self.columns)

    @property
    def resident_bytes(self) -> int:
        """Bytes of the weight in memory: planes, and what the kernel needs beside them."""
        if self._sharing:
            return 0
        total = sum(self._plane(name).nbytes for name in self.plane_names)
        if self._execution is not None:
            total += sum(part.nbytes for part in self._execution.weight)
            total -= self._execution.panels.nbytes if self.is_paneled else 0
        return total

    def share_weight(self, owner: StoredWeight) -> None:
        """Use the weight of another module, which alone saves it. Raises FormatError where it does not fit."""
        if (owner.number_format, owner.rows, owner.columns) != (self.number_format, self.rows, self.columns):
            raise FormatError("only weights of one format and shape can be shared")
        self._sharing = [owner]
        for name in self.plane_names:
            self._non_persistent_buffers_set.add(PREFIX + name)
        self._follow()

    def _follow(self) -> None:
        """Point at the owner's tensors again, which may have been loaded or moved."""
        if self._sharing:
            for name in self.plane_names:
                self._buffers[PREFIX + name] = self._sharing[0]._plane(name)

    def _is_current(self) -> bool:
        owner = self._sharing[0]
        return all(self._plane(name) is owner._plane(name) for name in self.plane_names)

    def _plane(self, name: str) -> torch.Tensor:
        plane = self._buffers[PREFIX + name]
        assert plane is not None
        return plane

    # ---- values ----

    @property
    def weight(self) -> WeightView:
        """Looks like the float weight to code that asks for its type, shape or values; decoded when values are used."""
        return WeightView(self)

    def dequantized_weight(self) -> torch.Tensor:
        """float32 [rows, columns]."""
        if self._is_bytes:
            return self._values_of(self._integers(), slice(None))
        return cast("torch.Tensor", decode(list(self.planes().values()), self.number_format.name, self.columns))

    def dequantized_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """float32 [n, columns] of rows by their numbers [n]."""
        if self._is_bytes:
            codes = self._plane("codes")
            taken = rows_of_panels(codes, rows, self.columns) if self.is_paneled else _signed(codes[rows])
            return self._values_of(taken, rows)
        planes = self.planes()
        for name, plane in planes.items():
            if self.number_format.row_step == 1 or name == "codes":
                planes[name] = plane.index_select(0, rows)
        return cast("torch.Tensor", decode(list(planes.values()), self.number_format.name, self.columns))

    def _integers(self) -> torch.Tensor:
        codes = self._plane("codes")
        return from_panels(codes, self.rows, self.columns) if self.is_paneled else _signed(codes)

    def _values_of(self, integers: torch.Tensor, rows: torch.Tensor | slice) -> torch.Tensor:
        """Float32 values of the integers of some rows: scale * (integer - zero_point)."""
        lines = self.integer_lines()
        level = integers.to(torch.float32)
        repeat = self.columns // lines.scale.shape[1]
        if lines.zero_point is not None:
            level = level - _spread(lines.zero_point[rows].to(torch.float32), repeat)
        return level * _spread(lines.scale[rows], repeat)

    # ---- the kernel's view ----

    def integer_lines(self) -> IntegerLines:
        """Scales and zero points as the kernel means them, on the device of the planes."""
        if self._lines is None:
            made = self._make_lines()
            device = self._plane(self.plane_names[0]).device
            zero_point = None if made.zero_point is None else made.zero_point.to(device)
            self._lines = IntegerLines(made.scale.to(device), zero_point, made.levels.to(device))
        return self._lines

    def _make_lines(self) -> IntegerLines:
        planes = {name: self._plane(name).cpu().numpy() for name in self.plane_names if name != "codes"}
        if isinstance(self.number_format, ScopedNumber):
            parameters: Mapping[str, Array] = planes
        else:
            parameters = self.number_format.unpack(planes, self.columns).parameters
        lines = integer_lines(self.number_format, parameters, self.rows, self.columns)
        assert lines is not None, "asked only of formats that have an integer form"
        return lines

    def pack_(self) -> None:
        """Lay byte codes out as the kernel reads them, in place of the rows."""
        if self._sharing:
            self._sharing[0].pack_()
            self._follow()
        elif self._is_bytes and not self.is_paneled and self._plane("codes").device.type != "meta":
            self._buffers[PREFIX + "codes"] = to_panels(_signed(self._plane("codes")))
            self._execution = None

    def unpack_(self) -> None:
        """Back to rows."""
        if self.is_paneled and not self._sharing:
            self._buffers[PREFIX + "codes"] = self.planes()["codes"]
            self._execution = None

    def execution(self) -> Execution:
        """The kernel's view; made at the first call, and again where a shared weight has changed hands."""
        if self._sharing and not self._is_current():
            self._follow()
            self._forget()
        if self._execution is None:
            self._execution = self._make_execution()
        return self._execution

    @torch._dynamo.disable  # type: ignore[untyped-decorator, no-untyped-call, unused-ignore]
    def _make_execution(self) -> Execution:
        self.pack_()
        lines = self.integer_lines()
        if self.is_paneled:
            panels = self._plane("codes")
        else:
            arrays = {name: plane.cpu().numpy() for name, plane in self.planes().items()}
            codes = torch.from_numpy(np.asarray(self.number_format.unpack(arrays, self.columns).codes))
            panels = to_panels(lines.integers(codes.to(lines.levels.device)))
        parameters = (lines.scale,) if lines.zero_point is None else (lines.scale, lines.zero_point)
        weight = (panels, *map(to_parameter_panels, parameters))
        is_here = panels.device.type == "cpu"
        return Execution(weight, bind_weight(weight, self.rows, self.columns) if is_here else None)

    def _forget(self) -> None:
        self._execution = None
        self._lines = None

    # ---- what PyTorch does with modules ----

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> StoredWeight:
        """Moves follow; casts do not: `model.half()` must not round scales."""
        kept = {name: self._plane(name) for name in self.plane_names}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, before in kept.items():
            after = self._plane(name)
            if after.dtype != before.dtype:
                self._buffers[PREFIX + name] = before.to(after.device)
        self._follow()
        self._forget()
        return self

    def _save_to_state_dict(self, destination: dict[str, object], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        key = f"{prefix}{PREFIX}codes"
        if self.is_paneled and key in destination:
            destination[key] = self.planes()["codes"]

    def _load_from_state_dict(self, *args: object) -> None:
        was_paneled = self.is_paneled
        self.unpack_()
        super()._load_from_state_dict(*args)
        self._forget()
        if was_paneled:
            self.pack_()

    def __getstate__(self) -> dict[str, object]:
        # The kernel's view points into memory; a copy makes its own.
        return {**self.__dict__, "_execution": None}


class WeightView:
    """Stands where a float weight would: knows its type and shape, and decodes when a function wants its values."""

    # transformers asks before it initializes the weights of a module that looks like one of torch's.
    _is_hf_initialized = True

    def __init__(self, owner: StoredWeight) -> None:
        self._owner = owner

    @property
    def dtype(self) -> torch.dtype:
        """Of computing: what an embedding gives, what a bias has, or float32."""
        looked_up = getattr(self._owner, "output_dtype", None)
        if isinstance(looked_up, torch.dtype):
            return looked_up
        bias = getattr(self._owner, "bias", None)
        return bias.dtype if isinstance(bias, torch.Tensor) else torch.float32

    @property
    def device(self) -> torch.device:
        """Of the planes."""
        return self._owner._plane(self._owner.plane_names[0]).device

    @property
    def shape(self) -> torch.Size:
        """Rows and columns."""
        return torch.Size((self._owner.rows, self._owner.columns))

    @property
    def requires_grad(self) -> bool:
        """Never."""
        return False

    def __getattr__(self, name: str) -> object:
        return getattr(self._owner.dequantized_weight().to(self.dtype), name)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Run a function of PyTorch on the decoded weight; of an embedding only on the rows that are looked up."""

        def plain(value: object) -> object:
            if isinstance(value, WeightView):
                return value._owner.dequantized_weight().to(value.dtype)
            return type(value)(map(plain, value)) if isinstance(value, list | tuple) else value

        if func is torch.nn.functional.embedding and isinstance(args[1], WeightView):
            ids, view = cast("torch.Tensor", args[0]), args[1]
            found = view._owner.dequantized_rows(ids.reshape(-1)).to(view.dtype)
            return found.view(*ids.shape, view._owner.columns)
        return func(*map(plain, args), **{name: plain(value) for name, value in (kwargs or {}).items()})


def _has_byte_codes(number_format: NumberFormat) -> bool:
    return isinstance(number_format, ScopedNumber) and number_format.code_bits == 8 and has_integer_form(number_format)


def _signed(codes: torch.Tensor) -> torch.Tensor:
    """uint8 codes -> int8: less 128."""
    return (codes ^ 0x80).view(torch.int8)


def _unsigned(codes: torch.Tensor) -> torch.Tensor:
    return codes.view(torch.uint8) ^ 0x80


def _spread(parameter: torch.Tensor, repeat: int) -> torch.Tensor:
    return parameter if parameter.shape[1] == 1 else parameter.repeat_interleave(repeat, dim=1)
