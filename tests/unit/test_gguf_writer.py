# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from model_files import tiny_model

from lilliput.checkpoints.model_source import Provenance
from lilliput.containers.container import Split
from lilliput.containers.gguf_metadata import file_metadata, file_name, size_label
from lilliput.containers.gguf_reader import GgufFile
from lilliput.containers.gguf_types import ValueType, file_type_number
from lilliput.containers.gguf_writer import gguf_layout, write_float_arrays
from lilliput.errors import ContainerError
from lilliput.formats import get_format
from lilliput.records import TensorHeader

F32 = get_format("f32")


def header_of(path: Path, **metadata: object) -> GgufFile:
    (part,) = gguf_layout(metadata, [], "x")  # type: ignore[arg-type]
    path.write_bytes(part.prefix)
    return GgufFile(path)


def test_values_have_the_types_that_llama_cpp_insists_on(tmp_path: Path) -> None:
    values = {
        "a.count": 7,
        "a.negative": -7,
        "a.large": 1 << 40,
        "a.number": 0.5,
        "a.flag": True,
        "a.text": "größe",
        "split.count": 3,
        "split.tensors.count": 9,
    }
    file = header_of(tmp_path / "x", **values)
    assert file.metadata == values
    assert [kind.name for kind in file.value_types.values()] == [
        *("UINT32", "INT32", "UINT64", "FLOAT32", "BOOL", "STRING", "UINT16", "INT32"),
    ]


def test_lists_are_read_back_by_the_reference_reader(tmp_path: Path) -> None:
    lists = {
        "a.integers": [1, -2, 3],
        "a.numbers": [1.5, 2],
        "a.flags": [True, False],
        "a.texts": ["x", "", "ß"],
        "tokenizer.ggml.scores": [0, -1],
        "tokenizer.ggml.precompiled_charsmap": [0, 200],
    }
    header_of(tmp_path / "x", **lists)
    reader = gguf.GGUFReader(tmp_path / "x")
    for name, values in lists.items():
        assert reader.fields[name].contents() == values
    kinds = {name: reader.fields[name].types[1].name for name in lists}
    assert list(kinds.values()) == ["INT32", "FLOAT32", "BOOL", "STRING", "FLOAT32", "UINT8"]


def test_nothing_and_empty_lists_are_left_out(tmp_path: Path) -> None:
    assert header_of(tmp_path / "x", a=None, b=[], c=1).metadata == {"c": 1}


@pytest.mark.parametrize("value", [{"a": 1}, [1, "x"], [None], 1 << 70, [[1]]])
def test_a_value_that_gguf_cannot_hold_names_its_key(value: object) -> None:
    with pytest.raises(ContainerError, match=r"metadata key 'some\.key'"):
        gguf_layout({"some.key": value}, [], "x")  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("name", "shape", "says"),
    [
        ("n" * 64, (2, 2), "GGUF names may have 63 bytes"),
        ("a", (1, 1, 1, 1, 1), "cannot hold the shape"),
        ("a", (0, 2), "cannot hold the shape"),
    ],
)
def test_a_tensor_that_gguf_cannot_hold_is_named(name: str, shape: tuple[int, ...], says: str) -> None:
    with pytest.raises(ContainerError, match=says):
        gguf_layout({}, [TensorHeader(name, shape, F32)], "x")


def test_ragged_rows_are_refused() -> None:
    with pytest.raises(ContainerError, match="rows of 33 weights are no multiple of Q8_0's block of 32"):
        gguf_layout({}, [TensorHeader("a", (2, 33), get_format("q8_0"))], "x")


def test_parts_are_cut_by_padded_bytes_and_by_count() -> None:
    headers = [TensorHeader(name, (3,), F32) for name in "abcde"]
    by_size = gguf_layout({"k": 1}, headers, "m.gguf", Split(max_bytes=64))
    assert [[tensor.header.name for tensor in part.tensors] for part in by_size] == [["a", "b"], ["c", "d"], ["e"]]
    assert by_size[2].file_name == "m-00003-of-00003.gguf"
    by_count = gguf_layout({}, headers, "m.gguf", Split(max_tensors=4))
    assert [len(part.tensors) for part in by_count] == [4, 1]
    # A tensor above the limit still gets a part of its own.
    assert len(gguf_layout({}, headers, "m.gguf", Split(max_bytes=1))) == 5
    assert [part.file_name for part in gguf_layout({}, headers, "m.gguf", Split(max_bytes=1 << 20))] == ["m.gguf"]


def test_float_arrays_are_read_back(tmp_path: Path) -> None:
    arrays = {"a.in_sum2": np.arange(7, dtype=np.float32), "a.counts": np.array([[3.0]], dtype=np.float32)}
    write_float_arrays(tmp_path / "x.gguf", {"general.type": "imatrix"}, arrays)
    file = GgufFile(tmp_path / "x.gguf")
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "x.gguf").tensors}
    for name, array in arrays.items():
        assert np.array_equal(file.float32(name), array)
        assert np.array_equal(theirs[name].data.reshape(array.shape), array)


def test_consumers_find_every_key_they_look_for(tmp_path: Path) -> None:
    contents, _ = tiny_model()
    (tmp_path / "LICENSE").write_text("be kind")
    (tmp_path / "generation_config.json").write_text("{}")
    (tmp_path / "README.md").write_text("prose")
    general = {"name": "Tiny", "license": "mit", "base_model.count": 1, "base_model.0.name": "Base"}
    provenance = Provenance(general, {"some.key": 1}, tuple(sorted(tmp_path.iterdir())))
    contents = replace(contents, provenance=provenance, preset="Q4_K_M", metadata={"quantize.imatrix.chunks_count": 12})
    metadata = file_metadata(contents)
    expected = {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": "Tiny",
        "general.license": "mit",
        "general.base_model.count": 1,
        "general.base_model.0.name": "Base",
        "general.quantized_by": "lilliput",
        "general.file_type": 15,
        "general.quantization_version": 2,
        "general.alignment": 32,
        "llama.context_length": 128,
        "llama.block_count": 2,
        "llama.attention.head_count_kv": 2,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.chat_template": "{{ messages }}",
        "quantize.imatrix.chunks_count": 12,
        "some.key": 1,
        "lilliput.side_file.LICENSE": "be kind",
        "lilliput.side_file.generation_config.json": "{}",
    }
    assert {name: metadata.get(name) for name in expected} == expected
    assert "lilliput.side_file.README.md" not in metadata
    tokens = metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    assert len(tokens) == 64


@pytest.mark.parametrize(
    ("weights", "label"),
    [(260_032, "260K"), (1_235_814_400, "1.2B"), (8_030_261_248, "8.0B"), (999, "1.0K"), (70_553_706_496, "71B")],
)
def test_size_labels_have_two_digits_at_least(weights: int, label: str) -> None:
    assert size_label(weights) == label


@pytest.mark.parametrize(
    ("general", "expected"),
    [
        ({"name": "Tiny Model"}, "Tiny-Model-260K-Q4_K_M.gguf"),
        ({"name": "Llama-3.2-1B-Instruct", "size_label": "1B"}, "Llama-3.2-1B-Instruct-Q4_K_M.gguf"),
        ({"name": "a/b c"}, "a-b-c-260K-Q4_K_M.gguf"),
        ({}, "model-260K-Q4_K_M.gguf"),
    ],
)
def test_file_names_follow_the_hubs_practice(general: dict[str, str], expected: str) -> None:
    assert file_name(general, 260_032, "q4_k_m") == expected


def test_file_types_of_presets_types_and_unknown_mixes() -> None:
    assert [file_type_number(name) for name in ("Q4_K_M", "q4_k", "f16", "my-mix")] == [15, 15, 1, 1024]
    assert ValueType(4).name == "UINT32"
