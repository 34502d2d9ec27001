# SPDX-License-Identifier: Apache-2.0
"""GGML files of 2023 open in every version, quantized too, and damaged ones are refused in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from legacy_files import FFN, LAYER, write_legacy

from lilliput.containers import open_model
from lilliput.containers.inspection import inspect
from lilliput.errors import ContainerError, LilliputError
from lilliput.text.tokenizer import Tokenizer

FILES = [(b"lmgg", 0), (b"fmgg", 1), (b"tjgg", 1), (b"tjgg", 2), (b"tjgg", 3)]
CASES = [(magic, version, kind) for magic, version in FILES for kind in (0, 1, 2, 3, 6, 7, 8)]
CASES += [(b"tjgg", 1, 4), (b"tjgg", 1, 5)]


@pytest.mark.parametrize(("magic", "version", "kind"), CASES)
def test_every_version_and_type_gives_the_values_that_were_written(
    magic: bytes, version: int, kind: int, tmp_path: Path
) -> None:
    values = write_legacy(tmp_path / "m.bin", magic, version, kind)
    found = open_model(tmp_path / "m.bin")
    pairs = {"blk.0.attn_q.weight": "attention.wq", "blk.0.ffn_down.weight": "feed_forward.w2"}
    pairs |= {"blk.0.ffn_up.weight": "feed_forward.w3", "blk.0.attn_norm.weight": "attention_norm"}
    for canonical, own in pairs.items():
        assert np.array_equal(found.tensor(canonical).dequantize(), values[f"{LAYER}{own}.weight"]), canonical
    assert np.array_equal(found.tensor("token_embd.weight").dequantize(), values["tok_embeddings.weight"])
    assert found.config.ffn_size == FFN
    assert found.config.context_length == 2048
    assert inspect(tmp_path / "m.bin").container == "ggml"


def test_its_tokenizer_is_that_of_the_file(tmp_path: Path) -> None:
    write_legacy(tmp_path / "m.bin", b"tjgg", 3, 1)
    vocabulary = open_model(tmp_path / "m.bin").vocabulary()
    assert vocabulary.tokens[:4] == ("<unk>", "<s>", "</s>", "<0x00>")
    assert vocabulary.tokens[264] == "\u2581ab"
    assert Tokenizer(vocabulary).decode(Tokenizer(vocabulary).encode("ab a\n")).strip() == "ab a"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ((4, b"\x04"), "version 4 of 'tjgg'"),
        ((8, b"\xff\xff\xff\x7f"), "tokens do not fit"),
        ((36, b"\xff\xff\xff\x7f"), "truncated"),
    ],
)
def test_damage_is_named(change: tuple[int, bytes], says: str, tmp_path: Path) -> None:
    write_legacy(tmp_path / "m.bin", b"tjgg", 3, 2)
    data = bytearray((tmp_path / "m.bin").read_bytes())
    data[change[0] : change[0] + len(change[1])] = change[1]
    (tmp_path / "m.bin").write_bytes(data)
    with pytest.raises(ContainerError, match=says):
        open_model(tmp_path / "m.bin")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 80_000), value=st.integers(0, 255), length=st.integers(0, 100_000))
def test_damaged_and_cut_files_are_one_line_or_open(tmp_path: Path, position: int, value: int, length: int) -> None:
    source = tmp_path / "whole.bin"
    if not source.exists():
        write_legacy(source, b"tjgg", 2, 2)
    data = bytearray(source.read_bytes())
    # Most of the header and of the tensors' descriptions; weights may hold anything.
    data[position % len(data)] = value
    (tmp_path / "m.bin").write_bytes(data[: len(data) - length % (len(data) // 2)] if length % 3 == 0 else data)
    message = ""
    try:
        open_model(tmp_path / "m.bin").tensor("blk.0.ffn_down.weight")
    except LilliputError as failure:
        message = str(failure)
    assert "\n" not in message
