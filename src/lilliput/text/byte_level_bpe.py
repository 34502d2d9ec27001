# SPDX-License-Identifier: Apache-2.0
"""Byte-level BPE (GPT-2's): text is cut into pieces, each piece's UTF-8 bytes are merged pair by pair.

Merging runs in the `tokenizers` library, configured from the vocabulary alone.
Source: Radford et al. 2019, section 2.2.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models

from lilliput.errors import TokenizerError
from lilliput.text.pre_tokenizers import PreTokenizer, pre_tokenizer
from lilliput.text.vocabulary import TokenType, Vocabulary, is_text, token_bytes

# Characters of text handed to the library at once: bounds its working memory, about 200 bytes a token.
WINDOW = 1 << 17
# A place where no piece of any pre-tokenizer with `cuts_at_newlines` spans: after the break, before the letter.
_SAFE_CUT = re.compile(r"(?<=\S\n)(?=[A-Za-z])")


def byte_alphabet() -> dict[str, int]:
    """Byte of each of GPT-2's printable characters: 33..126, 161..172, 174..255 are themselves, the rest follow."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(256 + index): byte for index, byte in enumerate(others)}


_BYTE_OF = byte_alphabet()


class ByteLevelBpe:
    """Encodes text that holds no special tokens, and spells tokens as bytes."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._rules = pre_tokenizer(vocabulary.pre)
        self._core = build_core(vocabulary, self._rules)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`."""
        if len(text) <= WINDOW or not self._rules.cuts_at_newlines:
            return _encode(self._core, text)
        ids: list[int] = []
        for window in _windows(text):
            ids += _encode(self._core, window)
        return ids

    def piece(self, token_id: int) -> bytes:
        """The bytes that a token of ordinary text stands for."""
        token = self._vocabulary.tokens[token_id]
        try:
            return bytes(_BYTE_OF[character] for character in token)
        except KeyError:
            return token_bytes(token)  # an added token, stored as it reads


def build_core(vocabulary: Vocabulary, rules: PreTokenizer) -> RustTokenizer:
    """The library's BPE over the tokens that ordinary text may become. Raises TokenizerError."""
    ordinary = (TokenType.NORMAL, TokenType.USER_DEFINED)
    ids = {
        token: index
        for index, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.token_types, strict=True))
        if kind in ordinary and is_text(token)
    }
    # A pruned vocabulary keeps merges of tokens that are gone; the library refuses those.
    merges = [
        (left, right)
        for left, right in map(split_merge, vocabulary.merges)
        if left in ids and right in ids and left + right in ids
    ]
    try:
        core = RustTokenizer(models.BPE(vocab=ids, merges=merges, ignore_merges=rules.ignores_merges))
    except Exception as error:  # the library raises plain Exception
        raise TokenizerError(f"tokenizer.ggml.merges: the merges do not fit the tokens ({error})") from error
    core.pre_tokenizer = rules.build()
    return core


def split_merge(merge: str) -> tuple[str, str]:
    """The two tokens of "left right"; a left token may itself begin with a space."""
    # Hundreds of thousands at every start: the common case first.
    left, space, right = merge.partition(" ")
    if left and space:
        return left, right
    at = merge.find(" ", 1)
    if at < 0:
        raise TokenizerError(f"tokenizer.ggml.merges: {merge!r} is not two tokens separated by a space")
    return merge[:at], merge[at + 1 :]


def _encode(core: RustTokenizer, text: str) -> list[int]:
    # The batch call tracks no offsets: 2.5 against 1.3 MB of CPU time a second (EPYC, 2026-11).
    ids: list[int] = core.encode_batch_fast([text], add_special_tokens=False)[0].ids
    return ids


def _windows(text: str) -> Iterator[str]:
    """Parts of `text` of about WINDOW characters, cut only where no piece spans."""
    start = 0
    while start < len(text):
        cut = _SAFE_CUT.search(text, start + WINDOW)
        end = cut.start() if cut else len(text)
        yield text[start:end]
        start = end
