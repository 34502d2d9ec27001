# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from model_files import tiny_model

from lilliput.containers import open_model
from lilliput.containers.container import Contents, Split
from lilliput.containers.gguf import Gguf
from lilliput.containers.gguf_model import GgufModel
from lilliput.errors import ContainerError
from lilliput.formats import get_format
from lilliput.records import TensorHeader

SMALL = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
F32 = get_format("f32")


def header_only(path: Path, contents: Contents) -> Path:
    (part,) = Gguf().layout(contents, path.name, Split())
    path.write_bytes(part.prefix + bytes(part.size - len(part.prefix)))
    return path


def test_missing_unknown_and_misshapen_tensors_are_named(tmp_path: Path) -> None:
    contents, _ = tiny_model(**SMALL)
    headers = contents.headers
    norm = next(header for header in headers if header.name == "output_norm.weight")
    others = tuple(header for header in headers if header is not norm)
    for changed, says in (
        (others, "1 tensors missing that llama needs: output_norm.weight"),
        ((*headers, TensorHeader("blk.0.secret.weight", (32,), F32)), "'blk.0.secret.weight' is not part of llama"),
        ((*others, replace(norm, shape=(16,))), r"'output_norm.weight' has shape \[16\], the metadata implies \[32\]"),
    ):
        path = header_only(tmp_path / "x.gguf", replace(contents, headers=changed))
        with pytest.raises(ContainerError, match=says):
            open_model(path)


def test_copies_of_rotary_frequencies_are_ignored(tmp_path: Path) -> None:
    contents, _ = tiny_model(**SMALL)
    headers = (*contents.headers, TensorHeader("blk.0.attn_rot_embd.weight", (8,), F32))
    model = GgufModel(header_only(tmp_path / "x.gguf", replace(contents, headers=headers)))
    assert "blk.0.attn_rot_embd.weight" not in model.headers
    assert model.weight_files == (tmp_path / "x.gguf",)
    assert model.source_name("output.weight") == "output.weight"


def test_an_output_that_is_absent_is_tied(tmp_path: Path) -> None:
    contents, _ = tiny_model(**SMALL)
    headers = tuple(header for header in contents.headers if header.name != "output.weight")
    model = open_model(header_only(tmp_path / "x.gguf", replace(contents, headers=headers)))
    assert model.config.tied


def test_a_format_that_gguf_has_no_type_for_is_refused_before_any_work() -> None:
    class Ternary(type(get_format("q8_0"))):  # type: ignore[misc]
        name = "own_ternary"

    contents, _ = tiny_model(**SMALL)
    headers = (replace(contents.headers[0], format=Ternary()), *contents.headers[1:])
    assert not Gguf().holds(Ternary())
    with pytest.raises(ContainerError, match="GGUF has no type for OWN_TERNARY; give -o NAME"):
        Gguf().layout(replace(contents, headers=headers), "x.gguf", Split())
