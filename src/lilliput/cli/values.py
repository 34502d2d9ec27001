# SPDX-License-Identifier: Apache-2.0
"""Words of the command line as values: each is parsed here once, and refused with what is allowed."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar

from lilliput.errors import RecipeError

if TYPE_CHECKING:
    from lilliput.calibration.block_stream import Precision
    from lilliput.pipeline.quantize_blocks import StreamInputs
    from lilliput.runtime.session import Activations, KvFormat

Chosen = TypeVar("Chosen")


def chosen_seed(seed: int | None) -> int:
    """The given seed, or one drawn from the system that the caller prints."""
    return secrets.randbelow(2**31) if seed is None else seed


def activation_kind(name: str) -> Activations:
    """Parse --activations: file, f32, engine, or the name of integer inputs. Raises RuntimeModelError."""
    from lilliput.runtime.integer_weights import named_inputs

    return name if name in ("file", "f32", "engine") else named_inputs(name).name


def kv_format(name: str) -> KvFormat:
    """Parse --kv. Raises RecipeError."""
    from lilliput.runtime.session import KV_FORMATS

    known: dict[str, KvFormat] = {known: known for known in KV_FORMATS}
    return _one_of("--kv", name, known)


def instruction_set(name: str) -> str | None:
    """Parse --instruction-set; None for the best. Raises RecipeError."""
    from lilliput import _native

    if not name:
        return None
    return _one_of("--instruction-set", name, {known: known for known in _native.available_instruction_sets()})


def stream_inputs(name: str | None) -> StreamInputs | None:
    """Parse --inputs. Raises RecipeError."""
    if name is None:
        return None
    known: dict[str, StreamInputs] = {"quantized": "quantized", "float": "float", "both": "both"}
    return _one_of("--inputs", name, known)


def forward_precision(name: str) -> Precision:
    """Parse --precision. Raises RecipeError."""
    known: dict[str, Precision] = {"float32": "float32", "bfloat16": "bfloat16"}
    return _one_of("--precision", name, known)


def thread_counts(words: str) -> tuple[int, ...]:
    """Parse a comma list of thread counts; empty means all cores. Raises RecipeError."""
    from lilliput.runtime.processors import default_threads

    return positive_integers(words, "--threads") if words else (default_threads(),)


def positive_integers(words: str, option: str) -> tuple[int, ...]:
    """Parse a comma list. Raises RecipeError."""
    counts = [word.strip() for word in words.split(",")]
    if not all(word.isdigit() and int(word) > 0 for word in counts):
        raise RecipeError(f"{option} '{words}' is not a comma list of positive whole numbers such as 1,2")
    return tuple(int(word) for word in counts)


def parse_bytes(text: str, option: str = "") -> int:
    """'5GB' -> 5 * 10^9, '2GiB' -> 2 * 2^30, '1000B' -> 1000. Raises RecipeError for a number without its unit, too."""
    units = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    unit = units.get(found[2].upper()) if found else None
    if found is None or unit is None:
        wrong = "is a number without a unit" if found and not found[2] else "is not a size"
        example = f"{found[1]}GB" if found and not found[2] else "5GB"
        raise RecipeError(f"{option} '{text}' {wrong}; write B, kB, MB, GB, KiB, MiB or GiB, such as {example}".strip())
    return int(float(found[1]) * unit)


def _one_of(option: str, name: str, known: Mapping[str, Chosen]) -> Chosen:
    if name not in known:
        raise RecipeError(f"unknown {option} '{name}'; known: {', '.join(known)}")
    return known[name]
