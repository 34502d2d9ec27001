# SPDX-License-Identifier: Apache-2.0
"""Any text at all: our ids are the original's, and decoding gives the text back."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import byte_level, named, sentencepiece_like, wordpiece, write_folder
from tokenizers import Tokenizer as RustTokenizer

from lilliput.text.huggingface import load_vocabulary
from lilliput.text.tokenizer import StreamDecoder, Tokenizer

# Fragments that split rules treat differently, and characters from everywhere.
FRAGMENTS = [
    "'s",
    "'LL",
    "123456",
    "  ",
    "\n\n",
    "\t\t\t",
    "\r\n",
    "<|end|>",
    "<tool_call>",
    "</s>",
    "\u2581",
    "don't",
    "://",
]
TEXT = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=8)), max_size=12).map("".join)


@dataclass(frozen=True)
class Pair:
    original: RustTokenizer
    rebuilt: Tokenizer


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    originals = {name: byte_level(named(name)) for name in ("llama-bpe", "qwen2", "smollm", "tekken", "deepseek-v3")}
    originals |= {"prefixed": sentencepiece_like(), "bare": sentencepiece_like(prefix=False), "wordpiece": wordpiece()}
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    bert = {"cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    folder = tmp_path_factory.mktemp("tokenizers")
    return {
        name: Pair(
            original,
            Tokenizer(
                load_vocabulary(write_folder(folder / name, original, **(bert if name == "wordpiece" else names)))
            ),
        )
        for name, original in originals.items()
    }


KINDS = ("llama-bpe", "qwen2", "smollm", "tekken", "deepseek-v3", "prefixed", "bare")


@pytest.mark.parametrize("kind", [*KINDS, "wordpiece"])
@settings(max_examples=60, deadline=None)
@given(text=TEXT)
def test_ids_equal_the_original(pairs: dict[str, Pair], kind: str, text: str) -> None:
    pair = pairs[kind]
    assert pair.rebuilt.encode(text, parse_special=True) == pair.original.encode(text).ids


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(text=TEXT)
def test_decoding_and_streaming_give_the_text_back(pairs: dict[str, Pair], kind: str, text: str) -> None:
    tokenizer = pairs[kind].rebuilt
    ids = tokenizer.encode(text)
    stream = StreamDecoder(tokenizer)
    streamed = "".join([*(stream.feed(token_id) for token_id in ids), stream.finish()])
    assert tokenizer.decode(ids) == streamed
    # SentencePiece writes spaces as U+2581, so that one in the text reads back as a space.
    assert streamed == (text if kind not in ("prefixed", "bare") else text.replace("\u2581", " "))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_ids_decode_without_errors(pairs: dict[str, Pair], kind: str, data: st.DataObject) -> None:
    tokenizer = pairs[kind].rebuilt
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=30))
    assert tokenizer.decode(ids).encode() == tokenizer.decode_bytes(ids).decode("utf-8", "replace").encode()
