# SPDX-License-Identifier: Apache-2.0
"""What became of a model's modules, and the bytes that they take."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lilliput.torch_backend.linear import QuantizedLinear
from lilliput.torch_backend.stored_weight import StoredWeight


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


@dataclass(frozen=True, slots=True)
class ModuleReport:
    """rows: every module with parameters or buffers of its own, in the model's order.

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
        lines = [f"{'module':40} {'kind':20} {'scheme':28} {'bytes':>12}"]
        for row in self.rows:
            if row.scheme or row.note:
                lines.append(
                    f"{row.name:40} {row.kind:20} {row.scheme or 'float':28} {row.stored_bytes:12,}  {row.note}".rstrip()
                )
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
        plain = [*module._parameters.values(), *module._buffers.values()]
        if isinstance(module, StoredWeight):
            planes = {id(module._plane(plane)) for plane in module.plane_names}
            plain = [tensor for tensor in plain if tensor is not None and id(tensor) not in planes]
        own = [tensor for tensor in plain if tensor is not None and _is_first(tensor, seen)]
        extra = sum(tensor.nbytes for tensor in own)
        numbers = sum(tensor.numel() for tensor in own)
        note = (notes or {}).get(name, "")
        if isinstance(module, StoredWeight):
            scheme = module.scheme.name if isinstance(module, QuantizedLinear) else module.number_format.name
            is_shared = bool(module._sharing)
            weights = 0 if is_shared else module.rows * module.columns
            note = note or ("shares its weight" if is_shared else "")
            stored, resident = module.stored_bytes + extra, module.resident_bytes + extra
            rows.append(ModuleRow(name, type(module).__name__, scheme, note, weights + numbers, stored, resident))
        elif own or note:
            rows.append(ModuleRow(name, type(module).__name__, "", note, numbers, extra, extra))
    return ModuleReport(tuple(rows))


def _is_first(tensor: torch.Tensor, seen: set[int]) -> bool:
    """Whether this tensor has not been counted; remembers it."""
    if id(tensor) in seen:
        return False
    seen.add(id(tensor))
    return True
