# SPDX-License-Identifier: Apache-2.0
"""llama.cpp's importance matrix files, which llama-imatrix writes and llama-quantize reads.

gguf     keys general.type = "imatrix", imatrix.datasets [str], imatrix.chunk_count u32, imatrix.chunk_size u32; per
         tensor `<name>.in_sum2` f32 [experts, in_features], sums of squared inputs, and `<name>.counts` f32
         [experts, 1], tokens; one row where there are no experts.
dat      the older form: entries i32; per entry name length i32, name, calls i32, values i32, f32 values that are
         mean square * calls; then calls i32 and the dataset's name, optional. A call is one chunk.
source   llama.cpp tools/imatrix/imatrix.cpp, common/imatrix-loader.cpp
Neither form has absolute maxima: `absmax` is NaN after reading.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lilliput.architectures.architecture import Json
from lilliput.arrays import DoubleArray, FloatArray
from lilliput.calibration.expert_inputs import of_expert, split_name
from lilliput.containers.gguf_reader import GgufFile
from lilliput.containers.gguf_writer import write_float_arrays
from lilliput.errors import CalibrationError
from lilliput.records import InputStatistics, Statistics

GGUF_MAGIC = b"GGUF"
SUM, COUNT = ".in_sum2", ".counts"
# The chunk size that a .dat file does not tell; it only scales sums and tokens alike. llama-imatrix's default.
LEGACY_CHUNK_SIZE = 512
MAX_NAME_BYTES = 1024


def is_imatrix(path: Path) -> bool:
    """Whether the content is GGUF, or the name says .dat."""
    with path.open("rb") as file:
        return file.read(4) == GGUF_MAGIC or path.suffix.lower() == ".dat"


def write_imatrix(path: Path, statistics: Statistics) -> None:
    """Write imatrix.gguf."""
    arrays: dict[str, FloatArray] = {}
    for name in sorted({split_name(name)[0] for name in statistics.inputs}):
        entries = _rows(statistics, name)
        arrays[name + SUM] = np.stack([sums for _, sums in entries]).astype(np.float32)
        arrays[name + COUNT] = np.array([[tokens] for tokens, _ in entries], dtype=np.float32)
    datasets: list[Json] = list(statistics.datasets)
    metadata: dict[str, Json] = {
        "general.type": "imatrix",
        "imatrix.datasets": datasets,
        "imatrix.chunk_count": statistics.chunks,
        "imatrix.chunk_size": statistics.chunk_size,
    }
    write_float_arrays(path, metadata, arrays)


def _rows(statistics: Statistics, name: str) -> list[tuple[int, DoubleArray]]:
    """Tokens and sums of a tensor, or of each expert of a stack; zeros for experts that nothing reached."""
    if name in statistics.inputs:
        entry = statistics.inputs[name]
        return [(entry.tokens, entry.sum_of_squares)]
    found = {
        expert: entry
        for (stack, expert), entry in ((split_name(each), entry) for each, entry in statistics.inputs.items())
        if stack == name and expert is not None
    }
    nothing = np.zeros_like(next(iter(found.values())).sum_of_squares)
    return [
        (found[expert].tokens, found[expert].sum_of_squares) if expert in found else (0, nothing)
        for expert in range(max(found) + 1)
    ]


def read_imatrix(path: Path) -> Statistics:
    """Read either form. Raises CalibrationError, or ContainerError for damaged GGUF."""
    with path.open("rb") as file:
        is_gguf = file.read(4) == GGUF_MAGIC
    return _read_gguf(path) if is_gguf else _read_legacy(path)


def _read_gguf(path: Path) -> Statistics:
    file = GgufFile(path)
    try:
        if file.metadata.get("general.type") != "imatrix":
            found = file.metadata.get("general.architecture") or file.metadata.get("general.type")
            raise CalibrationError(f"{path.name}: is a GGUF file of '{found}', not an imatrix")
        inputs = {
            name: entry
            for stored in file.tensors
            if stored.endswith(SUM)
            for name, entry in _entries(file, stored.removesuffix(SUM))
        }
        datasets = file.metadata.get("imatrix.datasets")
        return _statistics(
            path,
            inputs,
            chunks=file.metadata.get("imatrix.chunk_count"),
            chunk_size=file.metadata.get("imatrix.chunk_size"),
            datasets=[str(name) for name in datasets] if isinstance(datasets, list) else [],
        )
    finally:
        file.close()


def _entries(file: GgufFile, name: str) -> Iterator[tuple[str, InputStatistics]]:
    """The entry of a tensor, or one of each expert that tokens reached."""
    where = f"{file.path.name}: {name}"
    arrays: list[DoubleArray] = []
    for suffix in (SUM, COUNT):
        tensor = file.tensors.get(name + suffix)
        if tensor is None or tensor.type.name != "f32":
            raise CalibrationError(f"{where}{suffix} is missing or not F32")
        arrays.append(file.data(name + suffix).copy().view("<f4").astype(np.float64))
    sums, counts = arrays
    if not len(counts) or len(sums) % len(counts):
        raise CalibrationError(f"{where}: {len(sums)} sums do not divide among {len(counts)} counts")
    if len(counts) == 1:
        yield name, _checked(where, sums, counts[0])
        return
    for expert, (row, tokens) in enumerate(zip(sums.reshape(len(counts), -1), counts, strict=True)):
        if tokens:
            yield of_expert(name, expert), _checked(f"{where}, expert {expert}", row, tokens)


def _read_legacy(path: Path) -> Statistics:
    data = path.read_bytes()
    position = 0

    def take(size: int, what: str) -> bytes:
        nonlocal position
        if size < 0 or position + size > len(data):
            raise CalibrationError(f"{path.name}: not an imatrix file, or cut short: {what} at byte {position}")
        position += size
        return data[position - size : position]

    def integer(what: str) -> int:
        value: int = struct.unpack("<i", take(4, what))[0]
        return value

    inputs: dict[str, InputStatistics] = {}
    for index in range(integer("number of entries")):
        length = integer(f"name length of entry {index}")
        if not 0 < length <= MAX_NAME_BYTES:
            raise CalibrationError(f"{path.name}: entry {index} has a name of {length} bytes; not an imatrix file")
        name = take(length, f"name of entry {index}").decode("utf-8", "replace").rstrip("\0")
        calls, values = integer(f"calls of {name}"), integer(f"number of values of {name}")
        sums = np.frombuffer(take(4 * values, f"values of {name}"), dtype="<f4").astype(np.float64)
        inputs[name] = _checked(f"{path.name}: {name}", sums * LEGACY_CHUNK_SIZE, calls * LEGACY_CHUNK_SIZE)
    chunks: Json = max((entry.tokens for entry in inputs.values()), default=0) // LEGACY_CHUNK_SIZE
    datasets: list[str] = []
    if position < len(data):
        chunks = integer("number of chunks")
        datasets = [take(integer("length of the dataset's name"), "dataset's name").decode("utf-8", "replace")]
    return _statistics(path, inputs, chunks=chunks, chunk_size=LEGACY_CHUNK_SIZE, datasets=datasets)


def _checked(where: str, sums: DoubleArray, tokens: float) -> InputStatistics:
    if not np.isfinite(sums).all() or (sums < 0).any():
        raise CalibrationError(f"{where}: holds sums that are negative, NaN or Inf; make the imatrix again")
    if not tokens >= 1:
        raise CalibrationError(f"{where}: was seen by {tokens:g} tokens; make the imatrix again with more text")
    return InputStatistics(round(tokens), sums, np.full(len(sums), np.nan, dtype=np.float32))


def _statistics(
    path: Path, inputs: dict[str, InputStatistics], *, chunks: Json, chunk_size: Json, datasets: list[str]
) -> Statistics:
    if not inputs:
        raise CalibrationError(f"{path.name}: holds no entries")
    return Statistics(
        inputs=inputs,
        chunks=chunks if isinstance(chunks, int) else 0,
        chunk_size=chunk_size if isinstance(chunk_size, int) and chunk_size > 0 else LEGACY_CHUNK_SIZE,
        # Paths on the machine that made it are nobody's business here.
        datasets=tuple(name.replace("\\", "/").rsplit("/", 1)[-1] for name in datasets if name),
        model="",
    )
