# SPDX-License-Identifier: Apache-2.0
"""A tokenizer as data, whatever container it came from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

# Ends every message about a tokenizer that is missing or cannot be rebuilt.
WHAT_STILL_WORKS = "Everything that needs no text still works: inspect, plan, and quantize without calibration text"
TokenizerModel = Literal["llama", "gpt2", "bert", "t5"]
# Where `add_space_prefix` puts a space: before every text between special tokens, before those that begin with none, or
# before the first text alone if it begins with none.
SpacePrefix = Literal["always", "unless_present", "first_unless_present"]
# Unicode normalization forms.
Normalization = Literal["", "NFC", "NFD", "NFKC", "NFKD"]

_SURROGATE = re.compile("[\ud800-\udfff]")


class TokenType(IntEnum):
    """GGUF's token types (`tokenizer.ggml.token_type`)."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Everything that a tokenizer is rebuilt from; field names follow GGUF's `tokenizer.ggml.*` keys.

    model: "llama" is SentencePiece BPE with scores, "gpt2" byte-level BPE with merges, "bert" WordPiece, "t5" Unigram.
    pre: name of the pre-tokenizer (the split rules before BPE), as llama.cpp spells it; "" where none applies.
    tokens: [vocab] text as GGUF stores it (byte-level BPE in its printable alphabet).
    scores: [vocab] or empty.  token_types: [vocab].  merges: "left right", best first.
    *_token_id: None where the model has none.
    chat_template: jinja source or None.
    space_prefix: llama.cpp knows "always" alone, and only for SentencePiece.
    normalization: applied to ordinary text before it is cut; llama.cpp knows none.
    lstrip_ids, rstrip_ids: special tokens that swallow the spaces before or after them; llama.cpp knows none.
    charsmap: Unigram only: SentencePiece's table of what becomes of characters, in base64.
    lowercase: WordPiece only: text is lower-cased and loses its accents.
    """

    model: TokenizerModel
    pre: str
    tokens: tuple[str, ...]
    token_types: tuple[int, ...]
    scores: tuple[float, ...] = ()
    merges: tuple[str, ...] = ()
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    eot_token_id: int | None = None
    unknown_token_id: int | None = None
    padding_token_id: int | None = None
    separator_token_id: int | None = None
    cls_token_id: int | None = None
    mask_token_id: int | None = None
    add_bos_token: bool = False
    add_eos_token: bool = False
    add_space_prefix: bool = True
    remove_extra_whitespaces: bool = False
    chat_template: str | None = None
    lowercase: bool = True
    space_prefix: SpacePrefix = "always"
    normalization: Normalization = ""
    lstrip_ids: tuple[int, ...] = ()
    rstrip_ids: tuple[int, ...] = ()
    charsmap: str = ""

    def special_tokens(self) -> dict[str, str]:
        """`bos_token` and so on, as transformers and chat templates call them, of the tokens that the model has."""
        ids = {
            "bos_token": self.bos_token_id,
            "eos_token": self.eos_token_id,
            "unk_token": self.unknown_token_id,
            "pad_token": self.padding_token_id,
            "sep_token": self.separator_token_id,
            "cls_token": self.cls_token_id,
            "mask_token": self.mask_token_id,
        }
        return {name: self.tokens[token_id] for name, token_id in ids.items() if token_id is not None}


def token_bytes(text: str) -> bytes:
    """UTF-8 of a token's text; bytes that are none stand in it as lone surrogates U+DC80 to U+DCFF."""
    return text.encode("utf-8", "surrogateescape")


def is_text(token: str) -> bool:
    """Whether a token is whole characters, so that text can hold it."""
    return token.isascii() or _SURROGATE.search(token) is None
