# SPDX-License-Identifier: Apache-2.0
"""JSON files of unknown content, read without trusting their shape."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from lilliput.architectures.architecture import Json
from lilliput.errors import TokenizerError
from lilliput.text.vocabulary import WHAT_STILL_WORKS

JsonObject = Mapping[str, Json]


def has_type(value: Json, name: str) -> bool:
    """Whether the value, or anything nested in it, is an object with that `type`."""
    if isinstance(value, list):
        return any(has_type(entry, name) for entry in value)
    if not isinstance(value, dict):
        return False
    return value.get("type") == name or any(has_type(entry, name) for entry in value.values())


def find_entry(value: Json, key: str) -> Json:
    """The first entry of that name in nested stages."""
    entries = value if isinstance(value, list) else list(value.values()) if isinstance(value, dict) else []
    if isinstance(value, dict) and key in value:
        return value[key]
    return next((found for found in (find_entry(entry, key) for entry in entries) if found is not None), None)


def as_object(value: Json) -> JsonObject:
    """The value where it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def as_array(value: Json) -> list[Json]:
    """The value where it is an array, else an empty one."""
    return value if isinstance(value, list) else []


def read_json(path: Path) -> JsonObject:
    """A JSON object; {} where the file is absent. Raises TokenizerError for damaged files."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise TokenizerError(f"{path.name}: not valid JSON ({error}). {WHAT_STILL_WORKS}") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{path.name}: found {type(value).__name__}, needs an object. {WHAT_STILL_WORKS}")
    return value
