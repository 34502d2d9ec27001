# SPDX-License-Identifier: Apache-2.0
"""Write SentencePiece's protobuf from a vocabulary."""

from __future__ import annotations

import struct

from lilliput.text.vocabulary import Vocabulary


def sentencepiece_bytes(vocabulary: Vocabulary, model_type: int = 2) -> bytes:
    """A tokenizer.model with the vocabulary's tokens, scores and types."""
    entries = zip(vocabulary.tokens, vocabulary.scores, vocabulary.token_types, strict=True)
    pieces = [
        _bytes_field(1, _bytes_field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + _int_field(3, kind))
        for text, score, kind in entries
    ]
    trainer = _int_field(3, model_type) + _int_field(35, 1) + _int_field(40, 0) + _int_field(41, 1) + _int_field(42, 2)
    normalizer = _bytes_field(1, b"identity")
    normalizer += _int_field(3, int(vocabulary.add_space_prefix)) + _int_field(4, 0) + _int_field(5, 1)
    return b"".join(pieces) + _bytes_field(2, trainer) + _bytes_field(3, normalizer)


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def _int_field(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _bytes_field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value
