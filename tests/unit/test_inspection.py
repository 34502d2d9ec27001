# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest
from model_files import tiny_model, write_folder

from lilliput.containers import CONTAINERS
from lilliput.containers.container import Container
from lilliput.containers.inspection import inspect, shortened
from lilliput.containers.publish import publish
from lilliput.errors import CheckpointError
from lilliput.formats import get_format


@pytest.mark.parametrize("container", CONTAINERS, ids=lambda container: container.name)
def test_a_file_shows_its_metadata_and_tensors(container: Container, tmp_path: Path) -> None:
    contents, tensors = tiny_model(get_format("q4_k"), num_hidden_layers=1)
    target = tmp_path / ("x" + container.suffix)
    publish(container, contents, tensors.values(), target)
    seen = inspect(target).to_json()
    json.dumps(seen, allow_nan=False)
    assert seen["container"] == container.name
    assert isinstance(seen["metadata"], dict)
    assert seen["metadata"]["general.name"] == "Tiny Model"
    rows = seen["tensors"]
    assert isinstance(rows, list)
    assert len(rows) == len(tensors)
    down = next(row for row in rows if isinstance(row, dict) and row["name"] == "blk.0.ffn_down.weight")
    assert down == {
        "name": "blk.0.ffn_down.weight",
        "shape": [256, 512],
        "format": "q4_k",
        "bytes": 73728,
        "bits_per_weight": 4.5,
    }


def test_a_folder_shows_its_config_and_stored_tensors(tmp_path: Path) -> None:
    seen = inspect(write_folder(tmp_path / "m", dtype="BF16", shards=2))
    assert seen.metadata["model_type"] == "llama"
    assert {tensor.format for tensor in seen.tensors} == {"bf16"}
    assert inspect(tmp_path / "m" / "model-00001-of-00002.safetensors").container == "safetensors"


def test_a_file_of_an_unknown_family_still_shows_itself(shared_data: Path) -> None:
    seen = inspect(shared_data / "gguf-vocab" / "ggml-vocab-bert-bge.gguf").to_json()
    assert isinstance(seen["metadata"], dict)
    assert seen["metadata"]["general.architecture"] == "bert"
    assert seen["metadata"]["tokenizer.ggml.tokens"]["length"] == 30522  # type: ignore[call-overload,index]


def test_long_lists_and_strange_values_are_made_printable() -> None:
    assert shortened(list(range(20))) == {"length": 20, "first": list(range(16))}
    assert shortened([1, "\udc80", float("nan")]) == [1, "\ufffd", None]


@pytest.mark.parametrize("name", ["absent.gguf", "notes.txt"])
def test_what_cannot_be_inspected_is_one_clear_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(CheckpointError, match=r"no such file or folder|not a GGUF, safetensors or ONNX file"):
        inspect(tmp_path / name)
