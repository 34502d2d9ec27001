# SPDX-License-Identifier: Apache-2.0
"""Tokenizers rebuilt from GGUF metadata give exactly the ids that llama.cpp's own cases list."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest

from lilliput.containers.gguf_reader import GgufFile
from lilliput.errors import TokenizerError
from lilliput.text.gguf_metadata import metadata_from_vocabulary, vocabulary_from_metadata
from lilliput.text.tokenizer import Tokenizer
from lilliput.text.vocabulary import Vocabulary

NAMES = ("bert-bge", "deepseek-llm", "falcon", "gpt-2", "llama-spm", "phi-3", "refact")
# The files' texts are separated by this line.
SEPARATOR = "\n__ggml_vocab_test__\n"


@lru_cache
def read_vocabulary(path: Path) -> Vocabulary:
    file = GgufFile(path)
    try:
        return vocabulary_from_metadata(file.metadata)
    finally:
        file.close()


def read_cases(path: Path) -> list[tuple[str, list[int]]]:
    texts = path.with_suffix(".gguf.inp").read_text(encoding="utf-8").removesuffix(SEPARATOR).split(SEPARATOR)
    lines = path.with_suffix(".gguf.out").read_text().splitlines()
    assert len(lines) == len(texts)
    return [(text, [int(token) for token in line.split()]) for text, line in zip(texts, lines, strict=True)]


@pytest.mark.parametrize("name", NAMES)
def test_ids_equal_llama_cpp_cases(shared_data: Path, name: str) -> None:
    path = shared_data / "gguf-vocab" / f"ggml-vocab-{name}.gguf"
    tokenizer = Tokenizer(read_vocabulary(path))
    for text, ids in read_cases(path):
        assert tokenizer.encode(text, add_special=False) == ids, repr(text)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "bert-bge"])
def test_decoding_gives_the_text_back(shared_data: Path, name: str) -> None:
    path = shared_data / "gguf-vocab" / f"ggml-vocab-{name}.gguf"
    tokenizer = Tokenizer(read_vocabulary(path))
    for text, ids in read_cases(path):
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("name", ["llama-spm", "gpt-2", "bert-bge"])
def test_metadata_and_vocabulary_hold_the_same(shared_data: Path, name: str) -> None:
    vocabulary = read_vocabulary(shared_data / "gguf-vocab" / f"ggml-vocab-{name}.gguf")
    assert vocabulary_from_metadata(metadata_from_vocabulary(vocabulary)) == vocabulary


def test_files_with_unknown_rules_can_be_read_though_not_used_for_text(shared_data: Path) -> None:
    vocabulary = read_vocabulary(shared_data / "gguf-vocab" / "ggml-vocab-gpt-2.gguf")
    metadata = metadata_from_vocabulary(replace(vocabulary, pre="of-tomorrow"))
    assert vocabulary_from_metadata(metadata).pre == "of-tomorrow"
    with pytest.raises(TokenizerError, match="'of-tomorrow' is not known"):
        Tokenizer(vocabulary_from_metadata(metadata))
