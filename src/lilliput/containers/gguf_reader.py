# SPDX-License-Identifier: Apache-2.0
"""GGUF files, versions 2 and 3, read strictly: nothing in the file is trusted before it is checked against its size.

layout   "GGUF", version u32, tensor count u64, key count u64; keys: name, type u32, value; tensors: name, axes u32,
         sizes u64 (innermost first), type u32, offset u64; then, aligned, the tensors' bytes. A string is its length,
         u64, and UTF-8.
source   ggml docs/gguf.md
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from operator import attrgetter
from pathlib import Path

import numpy as np

from lilliput import _native
from lilliput.architectures.architecture import Json
from lilliput.arrays import ByteArray, FloatArray
from lilliput.checkpoints.mapped_file import MappedFile, closing_on_error
from lilliput.containers.gguf_types import (
    DEFAULT_ALIGNMENT,
    MAGIC,
    MAX_AXES,
    NUMPY_TYPES,
    READABLE_VERSIONS,
    REMOVED_TYPES,
    TENSOR_TYPES,
    TensorType,
    ValueType,
)
from lilliput.errors import ContainerError

# The least bytes that one key, tensor or string of an array can take: what a count is checked against.
_MIN_KEY = 8 + 1 + 4 + 1
_MIN_TENSOR = 8 + 1 + 4 + 8 + 4 + 8
_MIN_STRING = 8
# Lists of Python numbers cost 8 bytes and more each; real ones (token scores) stay below 2^20.
MAX_ARRAY = 1 << 24
MAX_ALIGNMENT = 1 << 16
MAX_KEY_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor as the header describes it. shape: outermost first, as numpy has it.  start: byte in the file."""

    name: str
    shape: tuple[int, ...]
    type: TensorType
    start: int
    nbytes: int


class GgufFile:
    """One open GGUF file: `metadata`, `value_types`, `tensors` in file order, and mapped bytes.

    Raises ContainerError with one line when anything in it is not as the format says.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with closing_on_error(MappedFile(path, ContainerError)) as file:
            self._file = file
            parser = _Parser(path.name, file.data)
            parser.read()
        self.version = parser.version
        self.metadata: Mapping[str, Json] = parser.metadata
        self.value_types: Mapping[str, ValueType] = parser.value_types
        self.alignment = parser.alignment
        self.tensors: Mapping[str, GgufTensor] = parser.tensors

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return self._file.size

    def data(self, name: str) -> ByteArray:
        """The tensor's bytes, mapped: uint8 [n]."""
        tensor = self.tensors[name]
        return self._file.data[tensor.start : tensor.start + tensor.nbytes]

    def float32(self, name: str) -> FloatArray:
        """A tensor of type F32, mapped, in its shape. Raises ContainerError for another type."""
        tensor = self.tensors[name]
        if tensor.type.name != "f32":
            raise ContainerError(f"{self.path.name}: tensor '{name}' is {tensor.type.name.upper()}, F32 is expected")
        return self.data(name).view("<f4").reshape(tensor.shape)

    def release(self, name: str) -> None:
        """Give the memory of one tensor's pages back; it stays readable."""
        tensor = self.tensors[name]
        self._file.release(tensor.start, tensor.start + tensor.nbytes)

    def close(self) -> None:
        """Let go of the map."""
        self._file.close()


class _Parser:
    """One pass over the header."""

    def __init__(self, name: str, data: ByteArray) -> None:
        self.name = name
        self.data = data.data
        self.size = len(self.data)
        self.position = 0
        self.version = 0
        self.alignment = DEFAULT_ALIGNMENT
        self.metadata: dict[str, Json] = {}
        self.value_types: dict[str, ValueType] = {}
        self.tensors: dict[str, GgufTensor] = {}

    def read(self) -> None:
        self._read_version()
        tensor_count = self._number("<Q", "the tensor count")
        key_count = self._number("<Q", "the key count")
        self._check_count(key_count, _MIN_KEY, "metadata keys")
        for _ in range(key_count):
            self._read_key()
        self._read_alignment()
        self._check_count(tensor_count, _MIN_TENSOR, "tensors")
        described = [self._read_tensor() for _ in range(tensor_count)]
        start = -(-self.position // self.alignment) * self.alignment
        for tensor in described:
            self._place(tensor, start)
        self._check_overlaps()

    def fail(self, message: str) -> ContainerError:
        return ContainerError(f"{self.name}: {message}")

    def _read_version(self) -> None:
        magic = bytes(self.data[:4])
        if not magic:
            raise self.fail("is empty; download it or make it again")
        if magic != MAGIC:
            spelled = magic.decode("ascii", "replace")
            raise self.fail(f"starts with {spelled!r} instead of 'GGUF'; this is not a GGUF file")
        self.position = 4
        self.version = self._number("<I", "the version")
        if self.version not in READABLE_VERSIONS:
            swapped = int.from_bytes(self.version.to_bytes(4, "little"), "big")
            if swapped in (1, 2, 3):
                raise self.fail("is big-endian GGUF; only little-endian files can be read, convert it first")
            raise self.fail(f"GGUF version {self.version} cannot be read, only 2 and 3; convert it with its own tools")

    def _take(self, count: int, what: str) -> memoryview:
        """The next `count` bytes."""
        if count > self.size - self.position:
            raise self.fail(
                f"truncated: {what} at byte {self.position} needs {count} bytes, {self.size - self.position} are left"
            )
        part = self.data[self.position : self.position + count]
        self.position += count
        return part

    def _number(self, layout: str, what: str) -> int:
        return int(struct.unpack(layout, self._take(struct.calcsize(layout), what))[0])

    def _check_count(self, count: int, least: int, what: str) -> None:
        if count * least > self.size - self.position:
            raise self.fail(f"claims {count} {what}, more than its {self.size} bytes can hold")

    def _string(self, what: str, errors: str = "strict") -> str:
        length = self._number("<Q", f"the length of {what}")
        if length > self.size - self.position:
            raise self.fail(f"{what} claims {length} bytes, {self.size - self.position} are left in the file")
        raw = bytes(self._take(length, what))
        try:
            return raw.decode("utf-8", errors)
        except UnicodeDecodeError:
            raise self.fail(f"{what} is not valid UTF-8: {raw[:32]!r}") from None

    def _read_key(self) -> None:
        key = self._string(f"the name of key {len(self.metadata)}")
        if not key or len(key) > MAX_KEY_BYTES:
            raise self.fail(f"key {len(self.metadata)} has a name of {len(key)} characters")
        if key in self.metadata:
            raise self.fail(f"the key '{key}' appears twice")
        value_type = self._value_type(key)
        self.value_types[key] = value_type
        self.metadata[key] = self._array(key) if value_type is ValueType.ARRAY else self._scalar(key, value_type)

    def _value_type(self, key: str) -> ValueType:
        number = self._number("<I", f"the type of key '{key}'")
        try:
            return ValueType(number)
        except ValueError:
            raise self.fail(f"key '{key}' has unknown value type {number}") from None

    def _scalar(self, key: str, value_type: ValueType) -> Json:
        if value_type is ValueType.STRING:
            return self._string(f"key '{key}'", "surrogateescape")
        dtype = np.dtype(NUMPY_TYPES[value_type])
        raw = self._take(dtype.itemsize, f"key '{key}'")
        if value_type is ValueType.BOOL:
            return self._booleans(key, raw)[0]
        number = np.frombuffer(raw, dtype)[0]
        if value_type is ValueType.FLOAT32:
            # The shortest decimal that is this float32: 1e-05 comes back as 1e-05, not as 9.999999747378752e-06.
            return float(str(number))
        result: int | float = number.item()
        return result

    def _booleans(self, key: str, raw: memoryview) -> list[Json]:
        if raw and max(raw) > 1:
            raise self.fail(f"key '{key}' is a boolean with value {max(raw)}")
        return [value == 1 for value in raw]

    def _array(self, key: str) -> Json:
        value_type = self._value_type(key)
        count = self._number("<Q", f"the length of key '{key}'")
        if value_type is ValueType.ARRAY:
            raise self.fail(f"key '{key}' is an array of arrays, which no reader accepts")
        if value_type is ValueType.STRING:
            self._check_count(count, _MIN_STRING, f"strings in '{key}'")
            return self._strings(key, count)
        dtype = np.dtype(NUMPY_TYPES[value_type])
        self._check_count(count, dtype.itemsize, f"values in '{key}'")
        if count > MAX_ARRAY:
            raise self.fail(f"key '{key}' claims {count} values; metadata arrays may have {MAX_ARRAY}")
        raw = self._take(count * dtype.itemsize, f"key '{key}'")
        if value_type is ValueType.BOOL:
            return self._booleans(key, raw)
        values: list[Json] = np.frombuffer(raw, dtype).tolist()
        return values

    def _strings(self, key: str, count: int) -> list[Json]:
        """In native code: vocabularies have hundreds of thousands of strings."""
        result, self.position = _native.gguf_strings(np.asarray(self.data), self.position, count)
        if len(result) < count:
            left = self.size - self.position
            claimed = self._number("<Q", f"the length of string {len(result)} of '{key}'") if left >= _MIN_STRING else 8
            raise self.fail(f"string {len(result)} of '{key}' claims {claimed} bytes, {left} are left")
        return list[Json](result)

    def _read_alignment(self) -> None:
        found = self.metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        typed = self.value_types.get("general.alignment", ValueType.UINT32) is ValueType.UINT32
        if not typed or not isinstance(found, int) or not 0 < found <= MAX_ALIGNMENT or found & (found - 1):
            raise self.fail(f"general.alignment is {found}; it must be a uint32 power of two up to {MAX_ALIGNMENT}")
        self.alignment = found

    def _read_tensor(self) -> GgufTensor:
        name = self._string(f"the name of tensor {len(self.tensors)}")
        if not name:
            raise self.fail("a tensor has an empty name")
        axes = self._number("<I", f"the shape of tensor '{name}'")
        if not 1 <= axes <= MAX_AXES:
            raise self.fail(f"tensor '{name}' has {axes} axes; 1 to {MAX_AXES} are allowed")
        sizes = [self._number("<Q", f"the shape of tensor '{name}'") for _ in range(axes)]
        tensor_type = self._tensor_type(name)
        offset = self._number("<Q", f"the offset of tensor '{name}'")
        count = 1
        for size in sizes:
            count *= size
        if 0 in sizes or count >= 1 << 63:
            raise self.fail(f"tensor '{name}' has shape {sizes[::-1]}, which is impossible")
        if sizes[0] % tensor_type.block_size:
            raise self.fail(
                f"tensor '{name}' has rows of {sizes[0]} weights, not a multiple of {tensor_type.name.upper()}'s "
                f"block of {tensor_type.block_size}"
            )
        if offset % self.alignment:
            raise self.fail(f"tensor '{name}' is at offset {offset}, not a multiple of the alignment {self.alignment}")
        nbytes = count // tensor_type.block_size * tensor_type.block_bytes
        return GgufTensor(name, tuple(reversed(sizes)), tensor_type, offset, nbytes)

    def _tensor_type(self, name: str) -> TensorType:
        number = self._number("<I", f"the type of tensor '{name}'")
        found = TENSOR_TYPES.get(number)
        if found is None:
            removed = REMOVED_TYPES.get(number)
            spelled = f"{removed}, which ggml no longer has" if removed else f"unknown type {number}"
            raise self.fail(f"tensor '{name}' has {spelled}; it was written for another version")
        return found

    def _place(self, tensor: GgufTensor, start: int) -> None:
        """Turn the offset into a position in the file and check that the bytes are there."""
        if tensor.name in self.tensors:
            raise self.fail(f"the tensor '{tensor.name}' appears twice")
        begin = start + tensor.start
        if begin + tensor.nbytes > self.size:
            raise self.fail(
                f"truncated: tensor '{tensor.name}' needs bytes {begin} to {begin + tensor.nbytes}, the file has "
                f"{self.size}; download it again"
            )
        self.tensors[tensor.name] = GgufTensor(tensor.name, tensor.shape, tensor.type, begin, tensor.nbytes)

    def _check_overlaps(self) -> None:
        for before, after in pairwise(sorted(self.tensors.values(), key=attrgetter("start"))):
            if before.start + before.nbytes > after.start:
                raise self.fail(f"tensors '{before.name}' and '{after.name}' overlap")
