# SPDX-License-Identifier: Apache-2.0
"""The wire format of protocol buffers, as far as ONNX files need it, written and read without a library.

layout   a message is a run of fields; each is a varint key (number << 3 | kind), then by kind: 0 a varint, 1 eight
         bytes, 2 a varint length and as many bytes (text, bytes, messages, packed numbers), 5 four bytes; little
         endian. A negative integer is its two's complement in 64 bits.
source   protobuf.dev, "Encoding"
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from lilliput.errors import ContainerError

_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5
_WORD = 1 << 64


def integer(number: int, value: int) -> bytes:
    """An integer field."""
    return _varint(number << 3 | _VARINT) + _varint(value % _WORD)


def integers(number: int, values: Iterable[int]) -> bytes:
    """A repeated integer field, one key an element: readers of both styles take that."""
    return b"".join(integer(number, value) for value in values)


def real(number: int, value: float) -> bytes:
    """A float32 field."""
    return _varint(number << 3 | _FOUR_BYTES) + struct.pack("<f", value)


def data(number: int, value: bytes) -> bytes:
    """Bytes, or a message inside a message."""
    return _varint(number << 3 | _BYTES) + _varint(len(value)) + value


def text(number: int, value: str) -> bytes:
    """A text field."""
    return data(number, value.encode("utf-8"))


@dataclass(frozen=True, slots=True)
class Field:
    """One field as read. value: an integer, or the bytes of kinds that are not varints."""

    number: int
    value: int | bytes

    @property
    def integer(self) -> int:
        """A signed integer. Raises ContainerError."""
        if not isinstance(self.value, int):
            raise ContainerError(f"damaged ONNX file: field {self.number} should be a number")
        return self.value - _WORD if self.value >= _WORD // 2 else self.value

    @property
    def bytes(self) -> bytes:
        """Raw bytes. Raises ContainerError."""
        if not isinstance(self.value, bytes):
            raise ContainerError(f"damaged ONNX file: field {self.number} should be bytes")
        return self.value

    @property
    def text(self) -> str:
        """UTF-8. Raises ContainerError."""
        try:
            return self.bytes.decode("utf-8")
        except UnicodeDecodeError as failure:
            raise ContainerError(f"damaged ONNX file: field {self.number} is not UTF-8 text") from failure

    @property
    def real(self) -> float:
        """A float32. Raises ContainerError."""
        if len(self.bytes) != 4:
            raise ContainerError(f"damaged ONNX file: field {self.number} should be a float32")
        found: float = struct.unpack("<f", self.bytes)[0]
        return found

    @property
    def integers(self) -> tuple[int, ...]:
        """Of a repeated field: one element, or a packed run. Raises ContainerError."""
        if isinstance(self.value, int):
            return (self.integer,)
        found, position = [], 0
        while position < len(self.value):
            value, position = _read_varint(self.value, position)
            found.append(value - _WORD if value >= _WORD // 2 else value)
        return tuple(found)


def fields(message: bytes) -> Iterator[Field]:
    """The fields of a message, in order. Raises ContainerError where it is damaged or cut off."""
    position = 0
    while position < len(message):
        key, position = _read_varint(message, position)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, position = _read_varint(message, position)
            yield Field(number, value)
            continue
        if kind == _BYTES:
            size, position = _read_varint(message, position)
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            size = 8 if kind == _EIGHT_BYTES else 4
        else:
            raise ContainerError(f"damaged ONNX file: field {number} is of unknown kind {kind}")
        end = position + size
        if end > len(message):
            raise ContainerError(
                f"damaged ONNX file: field {number} ends {end - len(message)} bytes beyond its message"
            )
        yield Field(number, message[position:end])
        position = end


def _varint(value: int) -> bytes:
    """Seven bits a byte, lowest first; the high bit says that more follow."""
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    """Value, and the position behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            raise ContainerError("damaged ONNX file: it ends inside a number")
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value % _WORD, position
    raise ContainerError("damaged ONNX file: a number of more than 64 bits")
