# SPDX-License-Identifier: Apache-2.0
"""The integers of a number format as tensors; `formats.integer_lines` says which formats have them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lilliput.formats import NumberFormat, Parameters
from lilliput.formats import integer_lines as lines_of_format
from lilliput.formats.integer_lines import has_integer_form

__all__ = ["IntegerLines", "has_integer_form", "integer_lines"]


@dataclass(frozen=True, slots=True)
class IntegerLines:
    """scale: float32 [rows, groups].  zero_point: int32 [rows, groups], None for zeros.

    levels: int8 [256], the integer of each code.
    """

    scale: torch.Tensor
    zero_point: torch.Tensor | None
    levels: torch.Tensor

    def integers(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes [rows, columns] -> int8."""
        return self.levels.to(codes.device)[codes.to(torch.int32)]


def integer_lines(number_format: NumberFormat, parameters: Parameters, rows: int, columns: int) -> IntegerLines | None:
    """The integers of a format under these parameters (numpy); None where there are none."""
    lines = lines_of_format.integer_lines(number_format, parameters, rows, columns)
    if lines is None:
        return None
    return IntegerLines(
        torch.from_numpy(lines.scale),
        None if lines.zero_point is None else torch.from_numpy(lines.zero_point),
        torch.from_numpy(lines.levels),
    )
