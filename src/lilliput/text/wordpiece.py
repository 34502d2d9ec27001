# SPDX-License-Identifier: Apache-2.0
"""WordPiece (BERT's): words are cut at spaces and punctuation, then spelled by the longest tokens that fit.

A GGUF marks tokens that begin a word with U+2581 and drops the `##` of those that continue one.
Source: Devlin et al. 2018 (arXiv 1810.04805); Wu et al. 2016 (arXiv 1609.08144), section 4.1.
"""

from __future__ import annotations

from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models, normalizers, pre_tokenizers

from lilliput.text.vocabulary import TokenType, Vocabulary, is_text, token_bytes

WORD_START = "\u2581"


class WordPiece:
    """Encodes text that holds no special tokens, and spells tokens as bytes."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        unknown_id = vocabulary.unknown_token_id
        unknown = vocabulary.tokens[unknown_id] if unknown_id is not None else "[UNK]"
        ids = {
            _huggingface_spelling(token, kind): index
            for index, (token, kind) in enumerate(_typed(vocabulary))
            if is_text(token)
        }
        if unknown_id is not None:
            ids[unknown] = unknown_id
        self._core = RustTokenizer(models.WordPiece(vocab=ids, unk_token=unknown, max_input_chars_per_word=100))
        self._core.normalizer = normalizers.BertNormalizer(lowercase=vocabulary.lowercase)
        self._core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`."""
        ids: list[int] = self._core.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return ids

    def piece(self, token_id: int) -> bytes:
        """The bytes that a token of ordinary text stands for."""
        return token_bytes(self._vocabulary.tokens[token_id].replace(WORD_START, " "))


def _typed(vocabulary: Vocabulary) -> zip[tuple[str, int]]:
    return zip(vocabulary.tokens, vocabulary.token_types, strict=True)


def _huggingface_spelling(token: str, kind: int) -> str:
    """`##x` for a token that continues a word, `x` for one that begins it."""
    if kind != TokenType.NORMAL:
        return token
    return token[1:] if token.startswith(WORD_START) else "##" + token
