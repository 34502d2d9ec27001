# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from model_files import write_folder

from lilliput.containers import open_model
from lilliput.errors import LilliputError

PLACE = st.tuples(st.sampled_from(["config.json", "model.safetensors"]), st.integers(0, 4000), st.integers(0, 255))


@cache
def folder_bytes() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as name:
        folder = write_folder(
            Path(name), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=4
        )
        return {path.name: path.read_bytes() for path in folder.iterdir()}


@settings(max_examples=300, deadline=None)
@given(st.lists(PLACE, min_size=1, max_size=4), st.booleans())
def test_a_mutated_folder_opens_or_says_why_not(places: list[tuple[str, int, int]], is_cut: bool) -> None:
    files = {name: bytearray(data) for name, data in folder_bytes().items()}
    for name, place, value in places:
        files[name][place % len(files[name])] = value
    if is_cut:
        name, place, _ = places[0]
        del files[name][place % len(files[name]) :]
    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            (Path(folder) / name).write_bytes(data)
        try:
            model = open_model(folder)
            for name in model.headers:
                model.tensor(name)
        except LilliputError as failure:
            assert "\n" not in str(failure)  # noqa: PT017  success is legal too
