# SPDX-License-Identifier: Apache-2.0
"""Whatever happens to a file's bytes, opening it succeeds or says in one line why not."""

from __future__ import annotations

import tempfile
import tracemalloc
from functools import cache
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from model_files import tiny_model

from lilliput.containers import CONTAINERS, open_model
from lilliput.containers.container import Split
from lilliput.errors import LilliputError

MUTATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.integers(0, 1 << 16), st.integers(0, 255)),
        st.tuples(st.just("cut"), st.integers(0, 1 << 16), st.just(0)),
        st.tuples(st.just("insert"), st.integers(0, 1 << 16), st.integers(0, 255)),
        st.tuples(st.just("huge"), st.integers(0, 1 << 16), st.integers(0, 7)),
    ),
    min_size=1,
    max_size=4,
)


@cache
def header_of(container_name: str) -> tuple[bytes, int]:
    """A valid file's header, and how many bytes follow it."""
    container = next(item for item in CONTAINERS if item.name == container_name)
    contents, _ = tiny_model(hidden_size=32, intermediate_size=32, num_hidden_layers=1)
    (part,) = container.layout(contents, "x" + container.suffix, Split())
    return part.prefix, part.size - len(part.prefix)


def mutated(data: bytes, mutations: list[tuple[str, int, int]]) -> bytes:
    raw = bytearray(data)
    for kind, place, value in mutations:
        position = place % max(len(raw), 1)
        if kind == "set" and raw:
            raw[position] = value
        elif kind == "cut":
            del raw[position:]
        elif kind == "insert":
            raw[position:position] = bytes([value])
        elif kind == "huge":
            raw[position : position + 8] = (0xFFFF_FFFF_FFFF_FFFF >> (8 * value)).to_bytes(8, "little")
    return bytes(raw)


def check(container_name: str, suffix: str, mutations: list[tuple[str, int, int]]) -> None:
    prefix, size = header_of(container_name)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("x" + suffix)
        path.write_bytes(mutated(prefix, mutations) + bytes(size))
        tracemalloc.start()
        try:
            model = open_model(path)
            model.vocabulary()
            for name in model.headers:
                model.tensor(name)
            model.close()
        except LilliputError as failure:
            assert "\n" not in str(failure)  # noqa: PT017  success is legal too
        finally:
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
    # A header of n bytes may cost a small multiple of n in Python objects, never what its counts claim.
    assert peak < 64 * (len(prefix) + size) + (4 << 20)


@settings(max_examples=300, deadline=None)
@given(MUTATIONS)
def test_a_mutated_gguf_opens_or_says_why_not(mutations: list[tuple[str, int, int]]) -> None:
    check("gguf", ".gguf", mutations)


@settings(max_examples=300, deadline=None)
@given(MUTATIONS)
def test_a_mutated_file_of_our_own_layout_opens_or_says_why_not(mutations: list[tuple[str, int, int]]) -> None:
    check("lilliput", ".safetensors", mutations)
