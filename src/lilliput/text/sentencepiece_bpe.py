# SPDX-License-Identifier: Apache-2.0
"""SentencePiece BPE: neighbouring symbols whose concatenation is a token merge, best score first, leftmost on a tie.

Characters that no token spells become byte tokens `<0xNN>`. Source: Kudo and Richardson 2018 (arXiv 1808.06226), and
the behaviour of llama.cpp's SPM tokenizer, which needs tokens and scores but no list of merges.

Cost: O(n log n) in the length of a chunk. A chunk ends between two characters that stand side by side in no token, for
no merge can join them; ordinary text so falls into words, whose encodings are remembered.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from lilliput.text.pair_merging import merged
from lilliput.text.vocabulary import TokenType, Vocabulary, token_bytes

SPACE = "\u2581"
# Encodings of chunks kept; about 100 bytes each.
REMEMBERED_CHUNKS = 1 << 16
_LONGEST_REMEMBERED = 64


def piece_bytes(vocabulary: Vocabulary, token_id: int) -> bytes:
    """What a token of ordinary text stands for in vocabularies that spell spaces and bytes as SentencePiece does."""
    token = vocabulary.tokens[token_id]
    if vocabulary.token_types[token_id] == TokenType.BYTE:
        return bytes([int(token[3:5], 16)])
    return token_bytes(token.replace(SPACE, " "))


class SentencePieceBpe:
    """Encodes text that holds no special tokens, and spells tokens as bytes."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        mergeable = (TokenType.NORMAL, TokenType.USER_DEFINED)
        self._ids: dict[str, int] = {}
        self._bytes: dict[int, int] = {}
        for index, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.token_types, strict=True)):
            if kind == TokenType.BYTE:
                self._bytes[int(token[3:5], 16)] = index
            elif kind in mergeable:
                self._ids[token] = index
        self._scores = vocabulary.scores or (0.0,) * len(vocabulary.tokens)
        self._neighbours = _Neighbours(self._ids)
        self._remembered: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`."""
        ids: list[int] = []
        remembered = self._remembered
        for chunk in self._neighbours.chunks(text.replace(" ", SPACE)):
            known = remembered.get(chunk)
            if known is None:
                known = self._merge(chunk)
                if len(chunk) <= _LONGEST_REMEMBERED:
                    if len(remembered) >= REMEMBERED_CHUNKS:
                        remembered.clear()
                    remembered[chunk] = known
            ids += known
        return ids

    def piece(self, token_id: int) -> bytes:
        """The bytes that a token of ordinary text stands for."""
        return piece_bytes(self._vocabulary, token_id)

    def _merge(self, chunk: str) -> list[int]:
        """Token ids of one chunk."""
        whole = self._ids.get(chunk)
        if whole is not None and len(chunk) == 1:
            return [whole]
        ids, scores = self._ids, self._scores

        def rank(left: str, right: str) -> float | None:
            token = ids.get(left + right)
            return None if token is None else -scores[token]

        output: list[int] = []
        for symbol in merged(chunk, rank):
            token = ids.get(symbol)
            output += [token] if token is not None else self._spell(symbol)
        return output

    def _spell(self, symbol: str) -> list[int]:
        """Byte tokens of a character that no token spells; the unknown token where there are none."""
        spelled = [self._bytes.get(byte) for byte in symbol.encode()]
        if None not in spelled:
            return [token for token in spelled if token is not None]
        unknown = self._vocabulary.unknown_token_id
        return [] if unknown is None else [unknown]


class _Neighbours:
    """Which characters stand side by side inside a token."""

    def __init__(self, tokens: dict[str, int]) -> None:
        pairs = {token[at : at + 2] for token in tokens for at in range(len(token) - 1)}
        self._pairs = np.unique(np.array([_pair_key(*map(ord, pair)) for pair in pairs], dtype=np.uint64))

    def chunks(self, text: str) -> list[str]:
        """`text` cut between characters that stand side by side in no token."""
        points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
        if len(points) < 2 or not len(self._pairs):
            return list(text)
        keys = points[:-1] << np.uint64(32) | points[1:]
        at = np.minimum(np.searchsorted(self._pairs, keys), len(self._pairs) - 1)
        cuts: NDArray[np.int64] = np.flatnonzero(self._pairs[at] != keys) + 1
        return [text[start:end] for start, end in pairwise([0, *cuts.tolist(), len(text)])]


def _pair_key(first: int, second: int) -> int:
    return first << 32 | second
