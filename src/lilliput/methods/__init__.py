# SPDX-License-Identifier: Apache-2.0
"""Methods: how codes are chosen. To add one, write its file and add one line here."""

from __future__ import annotations

from lilliput.methods.cast import Copy
from lilliput.methods.method import TensorMethod

__all__ = ["METHODS", "TensorMethod"]

_ALL: tuple[TensorMethod, ...] = (
    Copy(),
)  # fmt: skip
METHODS: dict[str, TensorMethod] = {method.name: method for method in _ALL}
