# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from model_files import tiny_model, write_folder

from lilliput.containers import open_model
from lilliput.containers.container import Split
from lilliput.containers.lilliput_safetensors import LilliputModel, LilliputSafetensors
from lilliput.containers.publish import publish
from lilliput.errors import CheckpointError, ContainerError, TokenizerError
from lilliput.formats import get_format

SMALL = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
Header = dict[str, dict[str, object]]


def rewritten(path: Path, change: Callable[[Header], None]) -> Path:
    """The file with a changed header, padded as its writer pads it."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header: Header = json.loads(raw[8 : 8 + length])
    change(header)
    changed = json.dumps(header, separators=(",", ":")).encode()
    path.write_bytes(len(changed).to_bytes(8, "little") + changed + raw[8 + length :])
    return path


@pytest.fixture
def own(tmp_path: Path) -> Path:
    contents, tensors = tiny_model(get_format("q8_0"), **SMALL)
    return publish(LilliputSafetensors(), contents, tensors.values(), tmp_path / "x.safetensors").paths[0]


def set_metadata(key: str, value: object) -> Callable[[Header], None]:
    def change(header: Header) -> None:
        header["__metadata__"][key] = value if isinstance(value, str) else json.dumps(value)

    return change


def edit_metadata(key: str, edit: Callable[[dict[str, object]], None]) -> Callable[[Header], None]:
    def change(header: Header) -> None:
        value = json.loads(str(header["__metadata__"][key]))
        edit(value)
        header["__metadata__"][key] = json.dumps(value)

    return change


DOWN = "blk.0.ffn_down.weight"
BAD = {
    "newer version": (
        set_metadata("lilliput.version", "2"),
        "layout version 2, this lilliput reads version 1; upgrade",
    ),
    "no version": (set_metadata("lilliput.version", ""), "not a file of lilliput's own layout"),
    "no config": (
        lambda header: header["__metadata__"].pop("lilliput.config"),
        "metadata 'lilliput.config' is missing",
    ),
    "config not JSON": (set_metadata("lilliput.config", "{"), "'lilliput.config' is not valid JSON"),
    "config a list": (set_metadata("lilliput.config", []), "'lilliput.config' is not a JSON object"),
    "config field": (
        edit_metadata("lilliput.config", lambda config: config.update(hidden_size="wide")),
        "'lilliput.config', field hidden_size",
    ),
    "no such format": (
        edit_metadata("lilliput.tensors", lambda rows: rows.update({DOWN: {"format": "q9_9", "shape": [32, 32]}})),
        f"tensor '{DOWN}': unknown number format 'q9_9'",
    ),
    "ragged row": (
        edit_metadata("lilliput.tensors", lambda rows: rows.update({DOWN: {"format": "q4_k", "shape": [32, 32]}})),
        "row length 32 is not a multiple of",
    ),
    "no shape": (
        edit_metadata("lilliput.tensors", lambda rows: rows.update({DOWN: {"format": "f32"}})),
        f"tensor '{DOWN}' needs a format and a shape",
    ),
    "other shape": (
        edit_metadata("lilliput.tensors", lambda rows: rows.update({DOWN: {"format": "q8_0", "shape": [31, 32]}})),
        f"plane '{DOWN}.blocks' is U8 [32, 34], Q8_0 [31, 32] implies [31, 34]",
    ),
    "unlisted array": (
        edit_metadata("lilliput.tensors", lambda rows: rows.pop(DOWN)),
        f"arrays and tensor list disagree on '{DOWN}.blocks'",
    ),
    "unknown tensor": (
        edit_metadata("lilliput.tensors", lambda rows: rows.update({"x": {"format": "q8_0", "shape": [32, 32]}})),
        "tensor 'x' has no plane 'blocks'",
    ),
    "missing sidecar": (
        edit_metadata("lilliput.tensors", lambda rows: rows[DOWN].update(sidecars=["order"])),  # type: ignore[attr-defined]
        f"disagree on '{DOWN}.sidecar.order'",
    ),
    "config of another size": (
        edit_metadata("lilliput.config", lambda config: config.update(ffn_size=64)),
        "is not part of llama as its config describes it",
    ),
    "config with a layer more": (
        edit_metadata("lilliput.config", lambda config: config.update(layers=2)),
        "tensor 'blk.1.attn_norm.weight' is missing",
    ),
}


@pytest.mark.parametrize("case", BAD, ids=list(BAD))
def test_a_file_that_contradicts_itself_is_one_clear_line(own: Path, case: str) -> None:
    change, says = BAD[case]
    rewritten(own, change)
    with pytest.raises(ContainerError) as caught:
        LilliputModel(own)
    assert says in str(caught.value)
    assert str(caught.value).startswith("x.safetensors: ")


def test_a_truncated_file_is_one_clear_line(own: Path) -> None:
    own.write_bytes(own.read_bytes()[:-10])
    with pytest.raises(ContainerError, match=r"x.safetensors: truncated"):
        open_model(own)


def test_a_file_written_again_by_another_tool_still_opens(own: Path) -> None:
    before = open_model(own).fingerprint()
    # One more byte of header moves every array off its aligned place.
    rewritten(own, lambda header: header["__metadata__"].update(note="x"))
    model = LilliputModel(own)
    assert model.fingerprint() == before
    assert model.weight_files == (own,)
    assert model.source_name(DOWN) == DOWN


def test_a_plain_safetensors_file_is_not_taken_for_one(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m")
    with pytest.raises(CheckpointError, match=r"give a GGUF file or the folder that holds config.json"):
        open_model(folder / "model.safetensors")


def test_a_model_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    contents, tensors = tiny_model(**SMALL)
    contents = replace(contents, vocabulary=None)
    path = publish(LilliputSafetensors(), contents, tensors.values(), tmp_path / "x.safetensors").paths[0]
    model = open_model(path)
    with pytest.raises(TokenizerError, match="carries no tokenizer"):
        model.vocabulary()
    assert len(model.fingerprint()) == 64


def test_every_array_starts_on_a_cache_line() -> None:
    contents, _ = tiny_model(get_format("q8_0"), **SMALL)
    (part,) = LilliputSafetensors().layout(contents, "x", Split())
    assert all(piece.start % 64 == 0 for tensor in part.tensors for piece in tensor.pieces)
