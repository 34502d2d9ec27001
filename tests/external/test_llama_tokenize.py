# SPDX-License-Identifier: Apache-2.0
"""llama.cpp's own tokenizer on vocabularies that we recognized and wrote: the same ids for the same text."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
from tiny_tokenizers import byte_level, sentencepiece_like, write_folder

from lilliput.text.gguf_metadata import metadata_from_vocabulary
from lilliput.text.huggingface import load_vocabulary
from lilliput.text.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer
from lilliput.text.probes import PROBES
from lilliput.text.tokenizer import Tokenizer
from lilliput.text.vocabulary import Vocabulary

pytestmark = pytest.mark.external
# llama.cpp approximates these: combining marks (tekken), word boundaries (tiny_aya), spaces before digits (afmoe).
APPROXIMATED = ("tekken", "tiny_aya", "afmoe")
EXACT = [rules for rules in PRE_TOKENIZERS if rules.name not in APPROXIMATED]
TEXT = "\n\n\u00a7\n\n".join(PROBES) + "<|end|> <tool_call></s>"
# The least that a file must say of a model for its vocabulary to be loaded.
SHAPE = {
    "context_length": 128,
    "embedding_length": 64,
    "block_count": 1,
    "feed_forward_length": 128,
    "attention.head_count": 1,
    "rope.dimension_count": 64,
}


def their_ids(llama_cpp: Path, vocabulary: Vocabulary, folder: Path) -> list[int]:
    file, text = folder / "vocabulary.gguf", folder / "text.txt"
    writer = gguf.GGUFWriter(file, "llama")
    for key, value in metadata_from_vocabulary(vocabulary).items():
        writer.add_key_value(key, list(value) if isinstance(value, tuple) else value, kind_of(value))
    for key, number in SHAPE.items():
        writer.add_uint32(f"llama.{key}", number)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    text.write_bytes(TEXT.encode())
    command = [llama_cpp / "llama-tokenize", "-m", file, "-f", text, "--ids", "--log-disable", "--no-escape"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    ids: list[int] = json.loads(done.stdout.strip().splitlines()[-1])
    return ids


def kind_of(value: object) -> gguf.GGUFValueType:
    kinds = {bool: gguf.GGUFValueType.BOOL, int: gguf.GGUFValueType.UINT32, str: gguf.GGUFValueType.STRING}
    return kinds.get(type(value), gguf.GGUFValueType.ARRAY)


@pytest.mark.parametrize("rules", EXACT, ids=lambda rules: rules.name)
def test_llama_cpp_cuts_text_as_our_rules_of_that_name_do(llama_cpp: Path, tmp_path: Path, rules: PreTokenizer) -> None:
    folder = write_folder(tmp_path, byte_level(rules.build()), bos_token="<|begin|>", eos_token="<|end|>")
    vocabulary = replace(load_vocabulary(folder), pre=rules.name)
    assert their_ids(llama_cpp, vocabulary, tmp_path) == Tokenizer(vocabulary).encode(TEXT, parse_special=True)


@pytest.mark.parametrize("prefix", [True, False])
def test_llama_cpp_merges_by_our_scores(llama_cpp: Path, tmp_path: Path, prefix: bool) -> None:
    folder = write_folder(tmp_path, sentencepiece_like(prefix=prefix), bos_token="<s>", eos_token="</s>")
    vocabulary = load_vocabulary(folder)
    assert their_ids(llama_cpp, vocabulary, tmp_path) == Tokenizer(vocabulary).encode(TEXT, parse_special=True)
