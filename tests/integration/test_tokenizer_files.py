# SPDX-License-Identifier: Apache-2.0
"""A tokenizer written as tokenizer.json from its Vocabulary alone is the tokenizer that it came from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_llama import TEXT
from tokenizers import Tokenizer as RustTokenizer

from lilliput.errors import TokenizerError
from lilliput.models import gulliver
from lilliput.text.huggingface import load_vocabulary
from lilliput.text.probes import PROBES
from lilliput.text.tokenizer_files import tokenizer_files


def written(source: Path, folder: Path) -> Path:
    folder.mkdir()
    for name, text in tokenizer_files(load_vocabulary(source)).items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def assert_same(source: Path, folder: Path) -> None:
    first, again = (RustTokenizer.from_file(str(place / "tokenizer.json")) for place in (source, folder))
    for text in (*PROBES, TEXT):
        assert first.encode(text).ids == again.encode(text).ids, text
        assert first.decode(first.encode(text).ids) == again.decode(again.encode(text).ids), text
    before, after = load_vocabulary(source), load_vocabulary(folder)
    assert (before.tokens, before.token_types, before.bos_token_id, before.eos_token_id) == (
        after.tokens, after.token_types, after.bos_token_id, after.eos_token_id,
    )  # fmt: skip


def test_byte_level_bpe(tmp_path: Path) -> None:
    assert_same(gulliver(), written(gulliver(), tmp_path / "made"))


def test_sentencepiece_bpe(tmp_path: Path, stories_folder: Path) -> None:
    assert_same(stories_folder, written(stories_folder, tmp_path / "made"))


def test_what_tokenizer_json_cannot_say_is_refused() -> None:
    vocabulary = load_vocabulary(gulliver())
    with pytest.raises(TokenizerError, match="'bert' tokenizer cannot be written"):
        tokenizer_files(replace(vocabulary, model="bert"))
    with pytest.raises(TokenizerError, match="not whole characters"):
        tokenizer_files(replace(vocabulary, tokens=("\udc80", *vocabulary.tokens[1:])))
