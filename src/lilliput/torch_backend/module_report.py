# SPDX-License-Identifier: Apache-2.0
"""What became of a model's modules, and the bytes that they take."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lilliput.torch_backend.linear import QuantizedLinear
from lilliput.torch_backend.stored_weight import PREFIX, StoredWeight


@dataclass(frozen=True, slots=True)
class ModuleRow:
    """One module with parameters of its own.

    scheme: <format>/<inputs>, <format> of an embedding, or "" for what stays float.  note: why it stays, or what else
    is to be said.  weights: numbers in it.  stored_bytes: in a file.  resident_bytes: in memory.
    """

    name: str
    kind: str
    scheme: str
    note: str
    weights: int
    stored_bytes: int
    resident_bytes: int

    def cells(self) -> tuple[str, str, str, str, str]:
        """Of the table."""
        return self.name, self.kind, self.scheme or "float", f"{self.stored_bytes:,}", self.note


@dataclass(frozen=True, slots=True)
class ModuleReport:
    """rows: every module with tensors of its own that a file holds, in the model's order.

    float_bytes: of the whole model with float32 in place of every weight.
    """

    rows: tuple[ModuleRow, ...]

    @property
    def float_bytes(self) -> int:
        """Four bytes for each number."""
        return 4 * sum(row.weights for row in self.rows)

    @property
    def stored_bytes(self) -> int:
        """Of all tensors as a file holds them."""
        return sum(row.stored_bytes for row in self.rows)

    @property
    def resident_bytes(self) -> int:
        """Of all tensors in memory."""
        return sum(row.resident_bytes for row in self.rows)

    @property
    def kept(self) -> tuple[ModuleRow, ...]:
        """Modules with matrices that stay float, each with its reason in `note`."""
        return tuple(row for row in self.rows if row.note and not row.scheme)

    def __str__(self) -> str:
        cells = [("module", "kind", "scheme", "bytes", "")]
        cells += [row.cells() for row in self.rows if row.scheme or row.note]
        name, kind, scheme, size, _ = (max(map(len, column)) for column in zip(*cells, strict=True))
        lines = [f"{a:{name}}  {b:{kind}}  {c:{scheme}}  {d:>{size}}  {e}".rstrip() for a, b, c, d, e in cells]
        share = self.stored_bytes / max(self.float_bytes, 1)
        lines.append(
            f"{self.stored_bytes:,} bytes stored, {share:.3f} of float32's {self.float_bytes:,}; "
            f"{self.resident_bytes:,} in memory"
        )
        return "\n".join(lines)


def size_report(model: torch.nn.Module, notes: dict[str, str] | None = None) -> ModuleReport:
    """The bytes of every module's tensors, counted once where they are shared. notes: by module name."""
    seen: set[int] = set()
    rows = []
    for name, module in model.named_modules():
        note = (notes or {}).get(name, "")
        if isinstance(module, StoredWeight):
            rows.append(_stored_row(name, module, note))
            continue
        own = [
            tensor
            for key, tensor in (*module._parameters.items(), *module._buffers.items())
            if tensor is not None and key not in module._non_persistent_buffers_set and _is_first(tensor, seen)
        ]
        if own or note:
            extra = sum(tensor.nbytes for tensor in own)
            numbers = sum(tensor.numel() for tensor in own)
            rows.append(ModuleRow(name, type(module).__name__, "", note, numbers, extra, extra))
    return ModuleReport(tuple(rows))


def _stored_row(name: str, module: StoredWeight, note: str) -> ModuleRow:
    """Planes, bias and what static or smoothed inputs need; a shared weight costs nothing here."""
    scheme = module.scheme.name if isinstance(module, QuantizedLinear) else module.number_format.name
    planes = {PREFIX + plane for plane in module.plane_names}
    tensors = (*module._parameters.items(), *module._buffers.items())
    extra = sum(tensor.nbytes for key, tensor in tensors if tensor is not None and key not in planes)
    biases = module.bias.numel() if module.bias is not None else 0
    if module.is_sharing:
        note = note or "shares its weight"
        return ModuleRow(name, type(module).__name__, scheme, note, biases, extra, extra)
    numbers = module.rows * module.columns + biases
    stored, resident = module.stored_bytes + extra, module.resident_bytes + extra
    return ModuleRow(name, type(module).__name__, scheme, note, numbers, stored, resident)


def _is_first(tensor: torch.Tensor, seen: set[int]) -> bool:
    """Whether this tensor has not been counted; remembers it."""
    if id(tensor) in seen:
        return False
    seen.add(id(tensor))
    return True
