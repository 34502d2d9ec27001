# SPDX-License-Identifier: Apache-2.0
"""Read `tokenizer.model`, SentencePiece's protobuf, without the sentencepiece package.

Fields used (sentencepiece_model.proto): ModelProto 1 = pieces {1 text, 2 score, 3 type}, 2 = trainer {3 model type:
1 unigram, 2 BPE; 40 unk id, 41 bos id, 42 eos id, 43 pad id}, 3 = normalizer {3 add_dummy_prefix,
4 remove_extra_whitespaces}. Piece types are those that GGUF took over: 1 normal, 2 unknown, 3 control, 4 user defined,
5 unused, 6 byte.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from lilliput.errors import TokenizerError

_BPE = 2


@dataclass(frozen=True, slots=True)
class SentencePieceModel:
    """pieces: (text, score, GGUF token type) by id.  *_id: None where switched off."""

    pieces: tuple[tuple[str, float, int], ...]
    unknown_id: int | None
    bos_id: int | None
    eos_id: int | None
    padding_id: int | None
    add_space_prefix: bool
    remove_extra_whitespaces: bool


def parse_sentencepiece_model(data: bytes, name: str = "tokenizer.model") -> SentencePieceModel:
    """Raises TokenizerError for damaged files and for models other than BPE."""
    try:
        return _parse(data)
    except (IndexError, struct.error, UnicodeDecodeError) as error:
        raise TokenizerError(f"{name}: not a SentencePiece model, or cut short ({error})") from error


def _parse(data: bytes) -> SentencePieceModel:
    pieces: list[tuple[str, float, int]] = []
    trainer: dict[int, int] = {}
    normalizer: dict[int, int] = {}
    for field, value in _fields(data):
        if field == 1 and isinstance(value, bytes):
            pieces.append(_piece(value))
        elif field == 2 and isinstance(value, bytes):
            trainer = _integers(value)
        elif field == 3 and isinstance(value, bytes):
            normalizer = _integers(value)
    if not pieces:
        raise TokenizerError("tokenizer.model: holds no pieces; the file may be a git-lfs pointer or another format")
    if trainer.get(3, 1) != _BPE:
        raise TokenizerError(
            "tokenizer.model: a unigram model, and only BPE can be rebuilt here. Everything that needs no text still "
            "works: inspect, plan, and quantize without calibration text"
        )
    return SentencePieceModel(
        pieces=tuple(pieces),
        unknown_id=_id(trainer.get(40, 0)),
        bos_id=_id(trainer.get(41, 1)),
        eos_id=_id(trainer.get(42, 2)),
        padding_id=_id(trainer.get(43, -1)),
        add_space_prefix=bool(normalizer.get(3, 1)),
        remove_extra_whitespaces=bool(normalizer.get(4, 1)),
    )


def _piece(data: bytes) -> tuple[str, float, int]:
    text, score, kind = "", 0.0, 1
    for field, value in _fields(data):
        if field == 1 and isinstance(value, bytes):
            text = value.decode()
        elif field == 2 and isinstance(value, bytes):
            (score,) = struct.unpack("<f", value)
        elif field == 3 and isinstance(value, int):
            kind = value
    return text, score, kind


def _integers(data: bytes) -> dict[int, int]:
    return {field: value for field, value in _fields(data) if isinstance(value, int)}


def _id(value: int) -> int | None:
    """Ids are 32-bit signed; -1 means none, and protobuf sends it as 64 bits of ones."""
    return value if 0 <= value < 1 << 31 else None


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field of a protobuf message; four- and eight-byte values stay bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise IndexError(f"field type {wire} at byte {at}")
        if at + size > len(data):
            raise IndexError(f"field of {size} bytes at byte {at} of {len(data)}")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise IndexError(f"number too long at byte {at}")
