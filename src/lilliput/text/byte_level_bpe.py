# SPDX-License-Identifier: Apache-2.0
"""Byte-level BPE (GPT-2's): text is cut into pieces, each piece's UTF-8 bytes are merged pair by pair.

Merging runs in the `tokenizers` library, configured from the vocabulary alone. To hand it hundreds of thousands of
merges takes longer than all else that opens a model, and more memory; so the first SHORT_TEXT characters are merged
here.
Source: Radford et al. 2019, section 2.2.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from itertools import repeat

from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models

from lilliput.errors import TokenizerError
from lilliput.text.pair_merging import merged
from lilliput.text.pre_tokenizers import PreTokenizer, pre_tokenizer
from lilliput.text.vocabulary import TokenType, Vocabulary, is_text, token_bytes

# Characters of text handed to the library at once: bounds its working memory, about 200 bytes a token.
WINDOW = 1 << 17
# Characters that are merged here before the library is set up: as much work as that.
SHORT_TEXT = 1 << 15
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
        self._short: ShortTexts | None = ShortTexts(vocabulary, self._rules)
        self._room = SHORT_TEXT
        self._core: RustTokenizer | None = None

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`."""
        self._room -= len(text)
        if self._short is not None:
            if self._room >= 0:
                return self._short.encode(text)
            self._short = None
        self._core = self._core or build_core(self._vocabulary, self._rules)
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


class ShortTexts:
    """The same token ids as the library's, with little to prepare, at a fraction of its speed."""

    def __init__(self, vocabulary: Vocabulary, rules: PreTokenizer) -> None:
        """Raises TokenizerError for a merge that is not two tokens."""
        self._ids = _ordinary_ids(vocabulary)
        # Pieces hold no spaces, so that "left right" stands for one pair alone.
        merges = vocabulary.merges
        self._ranks = dict(zip(merges, range(len(merges)), strict=True))
        if min(map(str.find, merges, repeat(" "), repeat(1)), default=1) < 0:
            deque(map(split_merge, merges), maxlen=0)  # says which one
        self._cut = rules.build()
        self._takes_whole = rules.ignores_merges

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`."""
        ids = self._ids
        found: list[int] = []
        for piece, _ in self._cut.pre_tokenize_str(text):
            if self._takes_whole and piece in ids:
                found.append(ids[piece])
            else:
                # The library, too, drops bytes that no token spells.
                found += [ids[token] for token in merged([byte for byte in piece if byte in ids], self._rank)]
        return found

    def _rank(self, left: str, right: str) -> int | None:
        # A pruned vocabulary keeps merges of tokens that are gone.
        return self._ranks.get(f"{left} {right}") if left + right in self._ids else None


def build_core(vocabulary: Vocabulary, rules: PreTokenizer) -> RustTokenizer:
    """The library's BPE over the tokens that ordinary text may become. Raises TokenizerError."""
    ids = {token: index for token, index in _ordinary_ids(vocabulary).items() if is_text(token)}
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


def _ordinary_ids(vocabulary: Vocabulary) -> dict[str, int]:
    """Of the tokens that ordinary text may become."""
    ordinary = (int(TokenType.NORMAL), int(TokenType.USER_DEFINED))
    ids = [index for index, kind in enumerate(vocabulary.token_types) if kind in ordinary]
    return dict(zip(map(vocabulary.tokens.__getitem__, ids), ids, strict=True))


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
