# SPDX-License-Identifier: Apache-2.0
"""The table of what other runtimes read names tests that exist, and what it warns of."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lilliput.containers import CONTAINERS, FOLDERS
from lilliput.containers.runtimes import ROWS, Reading, reading_warnings, row_of, runtimes_of
from lilliput.formats import FORMATS, get_format

TESTS = Path(__file__).resolve().parent.parent


def test_every_cell_that_claims_something_names_a_test_that_exists() -> None:
    for row in ROWS:
        for cell in row.cells:
            if cell.test or cell.reading in (Reading.RUNS, Reading.DECODES):
                file, _, name = cell.test.partition("::")
                assert f"def {name}(" in (TESTS / file).read_text(encoding="utf-8"), (row.formats, cell.runtime)
            if cell.reading in (Reading.REFUSES, Reading.NO_KERNEL):
                assert cell.note, (row.formats, cell.runtime)


def test_every_proving_file_names_a_format_of_its_row() -> None:
    for row in ROWS:
        for cell in row.cells:
            # The others ask the table of formats for every one that the container holds.
            if cell.test.startswith("external") and row.container != "gguf":
                text = (TESTS / cell.test.partition("::")[0]).read_text(encoding="utf-8")
                words = set(re.findall(r"[a-z]\w+(?:\.\d+)?", text.lower()))
                assert any(re.fullmatch(row.pattern, word) for word in words), (row.formats, cell.test)


def test_every_format_that_a_folder_holds_has_a_row() -> None:
    containers = {container.name: container for container in (*CONTAINERS, *FOLDERS)}
    floats = ("f32", "f16", "bf16", "f64", "i8", "i16", "i32", "i64")
    for name in {row.container for row in ROWS}:
        for item in FORMATS.values():
            if containers[name].holds(item) and item.name not in floats:
                assert row_of(name, item) is not None, (name, item.name)


@pytest.mark.parametrize(
    ("container", "formats", "says"),
    [
        ("compressed-tensors", ["int4_g128_asym"], "expects zero points unpacked"),
        ("compressed-tensors", ["int4_g128", "fp8_e4m3_channel"], "refuses several formats in one folder"),
        ("compressed-tensors", ["int3_g64"], "vLLM cannot use other int2 to int8"),
        ("gptq", ["int4_g128_asym"], "symmetric GPTQ alone"),
        ("gptq", ["int4_g128", "f16"], None),
        ("gguf", ["q4_k", "f32"], None),
    ],
)
def test_warnings_are_about_what_is_used(container: str, formats: list[str], says: str | None) -> None:
    found = reading_warnings(container, [get_format(name) for name in formats])
    assert (says in " ".join(found)) if says else not found


def test_quantized_experts_in_folders_are_warned_of() -> None:
    form = [get_format("int4_g32")]
    assert "transformers joins experts" in reading_warnings("gptq", form, has_experts=True)[-1]
    assert runtimes_of("gptq", form, has_experts=True) == ()
    assert runtimes_of("gguf", [get_format("q4_0")], has_experts=True)[0] == "llama.cpp"
