# SPDX-License-Identifier: Apache-2.0
"""FlatBuffers as far as .tflite files need them, written front to back without a library.

layout   u32 offset of the root table, file identifier, then tables, vtables, vectors and strings, little endian.
         table: i32 distance back to its vtable, then its fields; an offset field is a u32 forward distance.
         vtable: u16 its bytes, u16 bytes of the table, u16 place of each field in the table, 0 where it is absent.
         vector: u32 count, elements; string: a vector of bytes and a 0.
source   flatbuffers.dev, "FlatBuffer Internals"
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lilliput.arrays import Array

_FORMATS = {"u8": "<B", "i8": "<b", "i32": "<i", "u32": "<I", "u64": "<Q", "f32": "<f", "bool": "<?"}


@dataclass(frozen=True, slots=True)
class Scalar:
    """A number in a table. kind: u8, i8, i32, u32, u64, f32 or bool."""

    kind: str
    value: int | float


@dataclass(frozen=True, slots=True)
class Table:
    """fields: slot -> number, table, text, vector of numbers (an array) or vector of tables."""

    fields: Mapping[int, Scalar | Table | str | Array | Sequence[Table]]


def serialize(root: Table, identifier: bytes, alignment: int = 16) -> bytes:
    """The file; vectors start on `alignment` bytes."""
    out = bytearray(4) + identifier
    waiting: list[tuple[int, Table | str | Array | Sequence[Table]]] = [(0, root)]
    # Children lie behind the tables that name them, since offsets only point forward.
    while waiting:
        place, value = waiting.pop(0)
        if isinstance(value, Table):
            target = _write_table(out, value, waiting)
        elif isinstance(value, str):
            target = _aligned(out, 4)
            data = value.encode("utf-8")
            out += struct.pack("<I", len(data)) + data + b"\0"
        elif isinstance(value, np.ndarray):
            # The elements, not their count, are aligned.
            out += bytes(-(len(out) + 4) % alignment)
            target = len(out)
            out += struct.pack("<I", value.size) + value.tobytes()
        else:
            target = _aligned(out, 4)
            out += struct.pack("<I", len(value)) + bytes(4 * len(value))
            waiting += [(target + 4 + 4 * index, item) for index, item in enumerate(value)]
        struct.pack_into("<I", out, place, target - place)
    return bytes(out)


def _write_table(out: bytearray, table: Table, waiting: list[tuple[int, Table | str | Array | Sequence[Table]]]) -> int:
    """Write vtable and table; returns the table's place."""
    slots = max(table.fields, default=-1) + 1
    places = [0] * slots
    size = 4
    # Wide fields first, so that every field lies where its size wants it.
    for slot in sorted(table.fields, key=lambda item: (-_width(table.fields[item]), item)):
        width = _width(table.fields[slot])
        size += -size % width
        places[slot] = size
        size += width
    vtable_size = 4 + 2 * slots
    out += bytes(-(len(out) + vtable_size) % 8)
    start = len(out)
    out += struct.pack("<HH", vtable_size, size) + b"".join(struct.pack("<H", place) for place in places)
    target = len(out)
    out += struct.pack("<i", target - start) + bytes(size - 4)
    for slot, value in table.fields.items():
        place = target + places[slot]
        if isinstance(value, Scalar):
            struct.pack_into(_FORMATS[value.kind], out, place, value.value)
        else:
            waiting.append((place, value))
    return target


def _width(value: Scalar | Table | str | Array | Sequence[Table]) -> int:
    return struct.calcsize(_FORMATS[value.kind]) if isinstance(value, Scalar) else 4


def _aligned(out: bytearray, alignment: int) -> int:
    out += bytes(-len(out) % alignment)
    return len(out)
