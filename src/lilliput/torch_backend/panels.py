# SPDX-License-Identifier: Apache-2.0
"""The order in which integer weights lie in memory: 16 rows side by side, four columns at a time.

panels       int8 [panels, quads, 16, 4]: one line of 64 bytes holds four columns of 16 rows, as the kernel reads it
parameters   [panels, groups, 16]
Rows are filled up to a multiple of 32 and columns to one of 4, with zeros.
"""

from __future__ import annotations

import torch

PANEL_ROWS = 16
ROW_PADDING = 32
QUAD = 4


def to_panels(codes: torch.Tensor) -> torch.Tensor:
    """int8 [rows, columns] -> int8 [panels, quads, 16, 4]."""
    rows, columns = codes.shape
    padded = torch.nn.functional.pad(codes, (0, -columns % QUAD, 0, -rows % ROW_PADDING))
    lines = padded.view(-1, PANEL_ROWS, padded.shape[1] // QUAD, QUAD)
    return lines.permute(0, 2, 1, 3).contiguous()


def from_panels(panels: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """The inverse of `to_panels`."""
    lines = panels.permute(0, 2, 1, 3).reshape(panels.shape[0] * PANEL_ROWS, -1)
    return lines[:rows, :columns].contiguous()


def rows_of_panels(panels: torch.Tensor, rows: torch.Tensor, columns: int) -> torch.Tensor:
    """int8 [n, columns]: some rows, by their numbers [n]."""
    lines = panels[rows // PANEL_ROWS, :, rows % PANEL_ROWS]
    return lines.reshape(len(rows), -1)[:, :columns]


def to_parameter_panels(parameter: torch.Tensor) -> torch.Tensor:
    """[rows, groups] -> [panels, groups, 16]."""
    padded = torch.nn.functional.pad(parameter, (0, 0, 0, -parameter.shape[0] % ROW_PADDING))
    return padded.view(-1, PANEL_ROWS, parameter.shape[1]).permute(0, 2, 1).contiguous()


def from_parameter_panels(panels: torch.Tensor, rows: int) -> torch.Tensor:
    """The inverse of `to_parameter_panels`."""
    return panels.permute(0, 2, 1).reshape(-1, panels.shape[1])[:rows].contiguous()
