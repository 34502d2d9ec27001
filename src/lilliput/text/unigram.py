# SPDX-License-Identifier: Apache-2.0
"""Unigram (T5's, XLM-RoBERTa's, Marian's): of all ways to spell a text with tokens, the likeliest.

Text is first brought to the form that SentencePiece's own table of characters makes of it. GGUF calls it "t5".
Source: Kudo 2018 (arXiv 1804.10959).
"""

from __future__ import annotations

import base64
import binascii

from tokenizers import Regex, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer

from lilliput.errors import TokenizerError
from lilliput.text.sentencepiece_bpe import SPACE, piece_bytes
from lilliput.text.vocabulary import TokenType, Vocabulary

# Below every score of a token that text is spelled with.
_NEVER = -1e6


class Unigram:
    """Encodes text that holds no special tokens, and spells tokens as bytes."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Raises TokenizerError for a vocabulary without an unknown token, or a damaged table of characters."""
        if vocabulary.unknown_token_id is None or not vocabulary.scores:
            raise TokenizerError("tokenizer: a Unigram model needs scores and an unknown token; the file is damaged")
        self._vocabulary = vocabulary
        # Control and unused tokens have ids and are never part of a spelling; \0 keeps them from being one by chance.
        ordinary = (TokenType.NORMAL, TokenType.BYTE, TokenType.UNKNOWN)
        pieces = [
            (token, score) if kind in ordinary else (f"\0{index}", _NEVER)
            for index, (token, kind, score) in enumerate(
                zip(vocabulary.tokens, vocabulary.token_types, vocabulary.scores, strict=True)
            )
        ]
        has_bytes = TokenType.BYTE in vocabulary.token_types
        self._core = RustTokenizer(models.Unigram(pieces, vocabulary.unknown_token_id, has_bytes))
        self._core.normalizer = _normalizer(vocabulary)
        prefix = "always" if vocabulary.add_space_prefix else "never"
        self._core.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=prefix)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`."""
        ids: list[int] = self._core.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return ids

    def piece(self, token_id: int) -> bytes:
        """The bytes that a token of ordinary text stands for."""
        return piece_bytes(self._vocabulary, token_id)


def _normalizer(vocabulary: Vocabulary) -> normalizers.Normalizer:
    steps: list[normalizers.Normalizer] = []
    if vocabulary.charsmap:
        try:
            steps.append(normalizers.Precompiled(base64.b64decode(vocabulary.charsmap, validate=True)))
        except (binascii.Error, ValueError) as error:
            raise TokenizerError(f"tokenizer: the table of characters is damaged ({error})") from error
        except Exception as error:  # the library raises plain Exception
            raise TokenizerError(f"tokenizer: the table of characters cannot be read ({error})") from error
    if vocabulary.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(rf"[\s{SPACE}]+"), " ")]
    return normalizers.Sequence(steps)
