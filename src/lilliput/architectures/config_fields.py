# SPDX-License-Identifier: Apache-2.0
"""Typed reading of JSON-like configuration, with errors that name the field."""

from __future__ import annotations

import math
from collections.abc import Mapping

from lilliput.architectures.architecture import Json
from lilliput.errors import UnsupportedModelError


class ConfigFields:
    """Read-only view of a config.json or of GGUF metadata.

    where: the words that errors start with, such as "config.json".
    prefix: put before every name, such as "llama." in GGUF metadata.
    A field that is absent or null gives the default; a field of a wrong type is an error even where it has a default.
    """

    def __init__(self, values: Mapping[str, Json], where: str, prefix: str = "") -> None:
        self._values = values
        self._where = where
        self._prefix = prefix

    def has(self, name: str) -> bool:
        """The field is present and not null."""
        return self._values.get(self._prefix + name) is not None

    def is_written(self, name: str) -> bool:
        """The field is present, null included."""
        return self._prefix + name in self._values

    def value(self, name: str) -> Json:
        """The raw value, or None."""
        return self._values.get(self._prefix + name)

    def integer(self, name: str, default: int | None = None) -> int:
        """A positive integer; lists of one repeated value (GGUF's per-layer arrays) count as that value."""
        value = self._uniform(name)
        if value is None:
            if default is None:
                raise self.error(name, "is missing", "a positive integer")
            return default
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise self.error(name, f"is {value!r}", "a positive integer")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A finite positive number."""
        value = self.value(name)
        if value is None:
            if default is None:
                raise self.error(name, "is missing", "a positive number")
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
            raise self.error(name, f"is {value!r}", "a positive number")
        return float(value)

    def boolean(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.value(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(name, f"is {value!r}", "true or false")
        return value

    def text(self, name: str, default: str) -> str:
        """A string."""
        value = self.value(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.error(name, f"is {value!r}", "a string")
        return value

    def section(self, name: str) -> ConfigFields | None:
        """A nested object, or None."""
        value = self.value(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.error(name, f"is {value!r}", "an object")
        return ConfigFields(value, f"{self._where}, {self._prefix}{name}")

    def names(self) -> tuple[str, ...]:
        """Names of all fields, without the prefix."""
        return tuple(name.removeprefix(self._prefix) for name in self._values if name.startswith(self._prefix))

    def error(self, name: str, found: str, allowed: str) -> UnsupportedModelError:
        """The error to raise for this field: where, which, what was found, what is allowed."""
        return UnsupportedModelError(f"{self._where}: {self._prefix}{name} {found}; supported: {allowed}")

    def _uniform(self, name: str) -> Json:
        value = self.value(name)
        if not isinstance(value, list):
            return value
        if not value or any(item != value[0] for item in value):
            raise self.error(name, "differs between layers", "one value for all layers")
        return value[0]
