# SPDX-License-Identifier: Apache-2.0
"""Any metadata that GGUF can hold comes back as it went in, and any tensor layout is read where it was placed."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lilliput.architectures.architecture import Json
from lilliput.containers.container import Split
from lilliput.containers.gguf_reader import GgufFile
from lilliput.containers.gguf_writer import gguf_layout
from lilliput.formats import FORMATS, get_format
from lilliput.records import TensorHeader

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
FLOAT32 = st.floats(width=32, allow_nan=False).map(lambda number: float(str(np.float32(number))))
INTEGER = st.integers(-(1 << 63), (1 << 64) - 1)
VALUE = st.one_of(
    TEXT,
    st.booleans(),
    INTEGER,
    FLOAT32,
    st.lists(TEXT, min_size=1, max_size=5),
    st.lists(st.booleans(), min_size=1, max_size=5),
    st.lists(st.integers(-(1 << 31), (1 << 31) - 1), min_size=1, max_size=5),
)
SHAPE = st.lists(st.integers(1, 5), min_size=1, max_size=4)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(TEXT.filter(lambda key: key not in ("", "general.alignment")), VALUE, max_size=8))
def test_metadata_survives(metadata: dict[str, Json]) -> None:
    (part,) = gguf_layout(metadata, [], "x.gguf")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.gguf"
        path.write_bytes(part.prefix)
        assert GgufFile(path).metadata == metadata


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(SHAPE, st.sampled_from(["f32", "f16", "q8_0", "q4_k", "iq1_s"])), min_size=1, max_size=6),
    st.integers(1, 4000),
)
def test_tensors_are_read_where_they_were_placed(tensors: list[tuple[list[int], str]], max_bytes: int) -> None:
    headers = [
        TensorHeader(f"t{index}", (*shape[:-1], shape[-1] * FORMATS[name].block_size), get_format(name))
        for index, (shape, name) in enumerate(tensors)
    ]
    parts = gguf_layout({"a": "b"}, headers, "x.gguf", Split(max_bytes=max_bytes))
    seen: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for part in parts:
            path = Path(folder) / part.file_name
            path.write_bytes(part.prefix + bytes(part.size - len(part.prefix)))
            file = GgufFile(path)
            for placed, found in zip(part.tensors, file.tensors.values(), strict=True):
                (piece,) = placed.pieces
                assert (found.start, found.nbytes) == (piece.start, piece.nbytes)
                assert found.shape == placed.header.shape
                assert found.start % 32 == 0
                seen.append(found.name)
    assert seen == [header.name for header in headers]
