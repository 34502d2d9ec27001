# SPDX-License-Identifier: Apache-2.0
"""safetensors files, read strictly and without torch.

layout   [0:8] header length, uint64 little endian; then the header, JSON; then the tensors' bytes.
         header: {"name": {"dtype": "BF16", "shape": [out, in], "data_offsets": [begin, end]}, "__metadata__": {…}};
         offsets count from the end of the header, tensors neither overlap nor leave holes.
source   huggingface/safetensors, README, "Format"
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lilliput.arrays import ByteArray, FloatArray
from lilliput.checkpoints.mapped_file import MappedFile, closing_on_error
from lilliput.errors import CheckpointError, LilliputError

# The reference implementation's own limit.
MAX_HEADER_BYTES = 100_000_000
MAX_AXES = 8
# Bytes per element of every dtype that the format names in whole bytes.
ITEM_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
}
_NUMPY = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "?",
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a safetensors header. start, end: bytes from the beginning of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class SafetensorsFile:
    """One open file. `tensors` is in the order of the bytes.

    Raises `error` (CheckpointError unless told) with one line when the file is not well formed.
    """

    def __init__(self, path: Path, error: type[LilliputError] = CheckpointError) -> None:
        self.path = path
        self._error = error
        with closing_on_error(MappedFile(path, error)) as file:
            self._file = file
            self.metadata: Mapping[str, str]
            self.tensors: Mapping[str, StoredTensor]
            self.metadata, self.tensors = _Header(path.name, file.data, error).parse()

    def data(self, name: str) -> ByteArray:
        """The tensor's bytes, mapped: uint8 [n]."""
        tensor = self.tensors[name]
        return self._file.data[tensor.start : tensor.end]

    def float32(self, name: str) -> FloatArray:
        """The tensor as float32 in its shape; exact for every float dtype but F64."""
        tensor = self.tensors[name]
        try:
            return decode_float32(tensor.dtype, self.data(name)).reshape(tensor.shape)
        except KeyError:
            raise self._error(f"{self.path.name}: tensor '{name}' is {tensor.dtype}, which holds no weights") from None

    def release(self, name: str) -> None:
        """Give the memory of one tensor's pages back; it stays readable."""
        tensor = self.tensors[name]
        self._file.release(tensor.start, tensor.end)

    def close(self) -> None:
        """Let go of the map."""
        self._file.close()


def decode_float32(dtype: str, data: ByteArray) -> FloatArray:
    """Bytes of a safetensors dtype -> float32 [n]. Raises KeyError for a dtype without numbers here."""
    if dtype == "BF16":
        return (np.frombuffer(data, dtype="<u2").astype(np.uint32) << 16).view(np.float32)
    if dtype == "F8_E4M3":
        return _E4M3_VALUES[data]
    if dtype == "F8_E5M2":
        # E5M2 is the upper byte of a float16.
        return (data.astype(np.uint16) << 8).view(np.float16).astype(np.float32)
    if dtype == "F8_E8M0":
        return _E8M0_VALUES[data]
    return np.frombuffer(data, dtype=_NUMPY[dtype]).astype(np.float32)


def _e4m3_values() -> FloatArray:
    """Value of each byte of E4M3FN: bias 7, no infinities, NaN at 0x7f and 0xff (arXiv 2209.05433, table 1)."""
    codes = np.arange(256)
    exponent, mantissa = (codes >> 3) & 15, codes & 7
    magnitude = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0))
    magnitude = np.where((codes & 127) == 127, np.nan, magnitude)
    return np.where(codes >= 128, -magnitude, magnitude).astype(np.float32)


_E4M3_VALUES = _e4m3_values()
# Powers of two with bias 127; 0xff is NaN.
_E8M0_VALUES: FloatArray = np.append(2.0 ** (np.arange(255) - 127.0), np.nan).astype(np.float32)


class _Header:
    """Parse and check one header."""

    def __init__(self, name: str, data: ByteArray, error: type[LilliputError]) -> None:
        self.name = name
        self.data = data
        self.error = error

    def parse(self) -> tuple[dict[str, str], dict[str, StoredTensor]]:
        size = int(self.data.size)
        if size < 8:
            raise self.error(f"{self.name}: {size} bytes is too short for a safetensors file; download it again")
        length = int.from_bytes(self.data[:8].tobytes(), "little")
        if length > MAX_HEADER_BYTES:
            raise self.error(
                f"{self.name}: header length {length} is above the limit of {MAX_HEADER_BYTES}; "
                "this is not a safetensors file"
            )
        if 8 + length > size:
            raise self.error(
                f"{self.name}: truncated: the header needs {8 + length} bytes, the file has {size}; download it again"
            )
        try:
            header = json.loads(
                self.data[8 : 8 + length].tobytes().decode("utf-8"), object_pairs_hook=self._without_duplicates
            )
        except (ValueError, RecursionError) as failure:
            raise self.error(f"{self.name}: the safetensors header is not valid JSON: {failure}") from failure
        if not isinstance(header, dict):
            raise self.error(f"{self.name}: the safetensors header is not a JSON object")
        metadata = self._metadata(header.pop("__metadata__", {}))
        tensors = [self._tensor(name, entry, 8 + length) for name, entry in header.items()]
        tensors.sort(key=lambda tensor: (tensor.start, tensor.end))
        self._check_extents(tensors, 8 + length)
        return metadata, {tensor.name: tensor for tensor in tensors}

    def _without_duplicates(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [key for key, _ in pairs]
            twice = next(key for key in found if names.count(key) > 1)
            raise self.error(f"{self.name}: the name '{twice}' appears twice in the safetensors header")
        return found

    def _metadata(self, found: object) -> dict[str, str]:
        if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
            raise self.error(f"{self.name}: __metadata__ must map text to text")
        return found

    def _tensor(self, name: str, entry: object, base: int) -> StoredTensor:
        if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
            raise self.error(f"{self.name}: tensor '{name}' needs dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
            raise self.error(f"{self.name}: tensor '{name}' has unknown dtype {dtype}; known: {', '.join(ITEM_BYTES)}")
        if not _is_counts(shape) or len(shape) > MAX_AXES:
            raise self.error(f"{self.name}: tensor '{name}' has no valid shape: {shape}")
        if not _is_counts(offsets) or len(offsets) != 2:
            raise self.error(f"{self.name}: tensor '{name}' has no valid data_offsets: {offsets}")
        needed = ITEM_BYTES[dtype]
        for axis in shape:
            needed *= axis
        begin, end = offsets
        if end - begin != needed:
            raise self.error(
                f"{self.name}: tensor '{name}' {dtype} {list(shape)} needs {needed} bytes, its offsets span "
                f"{end - begin}"
            )
        return StoredTensor(name, dtype, tuple(shape), base + begin, base + end)

    def _check_extents(self, tensors: list[StoredTensor], base: int) -> None:
        position = base
        for tensor in tensors:
            if tensor.start < position:
                raise self.error(f"{self.name}: tensor '{tensor.name}' overlaps the one before it")
            if tensor.start > position:
                raise self.error(f"{self.name}: {tensor.start - position} stray bytes before tensor '{tensor.name}'")
            position = tensor.end
            if position > self.data.size:
                raise self.error(
                    f"{self.name}: truncated: tensor '{tensor.name}' ends at byte {position}, "
                    f"the file has {self.data.size}; download it again"
                )
        if position != self.data.size:
            raise self.error(f"{self.name}: {self.data.size - position} stray bytes after the last tensor")


def _is_counts(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 1 << 62 for item in value
    )
