# SPDX-License-Identifier: Apache-2.0
"""How long work says where it is: called with (steps done, steps in all)."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
