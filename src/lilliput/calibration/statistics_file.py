# SPDX-License-Identifier: Apache-2.0
"""Prior statistics in a file of our own, and their merging.

layout   safetensors. Per distinct input, named by the first tensor that reads it: `<name>.sum_of_squares` F64
         [in_features], `<name>.absmax` F32 [in_features], `<name>.tokens` I64 [1].
         Per result of an operation, where it was measured: `<place>.range` F32 [2], smallest and largest.
         `__metadata__`: format, version, chunks, chunk_size, datasets (JSON list of basenames), model (fingerprint),
         shared (JSON object: tensor name -> the name whose entry it shares).
read     `read_statistics` also opens llama.cpp's imatrix files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from lilliput.arrays import Array
from lilliput.calibration.imatrix import is_imatrix, read_imatrix, write_imatrix
from lilliput.checkpoints.safetensors_reader import SafetensorsFile
from lilliput.containers.part_writer import disk_error
from lilliput.containers.publish import staging_folder
from lilliput.errors import CalibrationError, PublishError
from lilliput.records import InputStatistics, Statistics

FORMAT = "lilliput.statistics"
VERSION = "1"
_PARTS = {"sum_of_squares": ("F64", "<f8"), "absmax": ("F32", "<f4"), "tokens": ("I64", "<i8")}


def check_ending(path: Path) -> None:
    """Raise PublishError for a name that says another kind of file."""
    if path.suffix.lower() not in (".safetensors", ".gguf"):
        raise PublishError(
            f"{path.name}: the name must end in .safetensors, or in .gguf for llama.cpp's imatrix; change it with -o"
        )


def write_statistics(path: Path, statistics: Statistics) -> None:
    """Write whole or not at all, replacing what is there; a name that ends in .gguf becomes an imatrix file.

    Raises PublishError.
    """
    check_ending(path)
    with staging_folder(path) as staging:
        part = staging / path.name
        try:
            if path.suffix.lower() == ".gguf":
                write_imatrix(part, statistics)
            else:
                _save(part, statistics)
            with part.open("rb") as file:
                os.fsync(file.fileno())
            part.replace(path)
        except OSError as failure:
            raise disk_error(path.name, failure) from failure


def read_statistics(path: Path) -> Statistics:
    """Our own file, or llama.cpp's imatrix.gguf or imatrix.dat. Raises CalibrationError."""
    if not path.is_file():
        raise CalibrationError(f"{path}: no such file")
    if is_imatrix(path):
        return read_imatrix(path)
    if path.suffix != ".safetensors":
        raise CalibrationError(
            f"{path.name}: neither statistics of `lilliput calibrate` (.safetensors) nor an imatrix of llama.cpp "
            "(.gguf or .dat); give one of these"
        )
    file = SafetensorsFile(path, CalibrationError)
    try:
        return _load(file, path.name)
    finally:
        file.close()


def merge(first: Statistics, second: Statistics) -> Statistics:
    """Statistics of both texts together. Raises CalibrationError for two different models.

    An imatrix file does not say which model it came from; it merges with anything of the same sizes.
    """
    if first.model and second.model and first.model != second.model:
        raise CalibrationError(
            f"statistics come from two models (fingerprints {first.model[:12]} and {second.model[:12]}); "
            "merge only statistics of one model"
        )
    merged: dict[tuple[int, int], InputStatistics] = {}
    inputs = dict(second.inputs)
    for name, ours in first.inputs.items():
        theirs = second.inputs.get(name)
        inputs[name] = ours if theirs is None else merged.setdefault((id(ours), id(theirs)), _sum(name, ours, theirs))
    chunks = first.chunks + second.chunks
    if first.chunk_size != second.chunk_size:
        chunks = first.chunks + -(-second.chunks * second.chunk_size // first.chunk_size)
    datasets = tuple(dict.fromkeys(first.datasets + second.datasets))
    model = first.model or second.model
    outputs = _widened(first.outputs, second.outputs)
    return replace(first, inputs=inputs, chunks=chunks, datasets=datasets, model=model, outputs=outputs)


def _widened(
    first: Mapping[str, tuple[float, float]], second: Mapping[str, tuple[float, float]]
) -> dict[str, tuple[float, float]]:
    """Ranges that hold both; those of one text alone where the other has none."""
    both = {name: (min(low, second[name][0]), max(high, second[name][1]))
            for name, (low, high) in first.items() if name in second}  # fmt: skip
    return {**first, **second, **both}


def _sum(name: str, first: InputStatistics, second: InputStatistics) -> InputStatistics:
    sizes = len(first.sum_of_squares), len(second.sum_of_squares)
    if sizes[0] != sizes[1]:
        raise CalibrationError(f"{name}: one file has {sizes[0]} input features, the other {sizes[1]}")
    return first.merged(second)


def _save(path: Path, statistics: Statistics) -> None:
    owners: dict[int, str] = {}
    arrays: dict[str, Array] = {}
    shared: dict[str, str] = {}
    for name, entry in statistics.inputs.items():
        owner = owners.setdefault(id(entry), name)
        if owner != name:
            shared[name] = owner
            continue
        arrays[f"{name}.sum_of_squares"] = np.ascontiguousarray(entry.sum_of_squares, dtype="<f8")
        arrays[f"{name}.absmax"] = np.ascontiguousarray(entry.absmax, dtype="<f4")
        arrays[f"{name}.tokens"] = np.array([entry.tokens], dtype="<i8")
    for name, ends in statistics.outputs.items():
        arrays[f"{name}.range"] = np.array(ends, dtype="<f4")
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "chunks": str(statistics.chunks),
        "chunk_size": str(statistics.chunk_size),
        "datasets": json.dumps(list(statistics.datasets)),
        "model": statistics.model,
        "shared": json.dumps(shared, sort_keys=True),
    }
    # save_file makes files that their owner alone may read.
    path.write_bytes(save(arrays, metadata=metadata))


def _load(file: SafetensorsFile, where: str) -> Statistics:
    metadata = file.metadata
    if metadata.get("format") != FORMAT:
        raise CalibrationError(f"{where}: is not a statistics file (format '{metadata.get('format')}', not '{FORMAT}')")
    if metadata.get("version") != VERSION:
        raise CalibrationError(f"{where}: version {metadata.get('version')}; this lilliput reads version {VERSION}")
    names = [name.removesuffix(".tokens") for name in file.tensors if name.endswith(".tokens")]
    inputs = {name: _entry(file, name, where) for name in names}
    shared, datasets = (_json(metadata, key, where) for key in ("shared", "datasets"))
    if not isinstance(shared, dict) or not isinstance(datasets, list):
        raise CalibrationError(f"{where}: metadata 'shared' is not an object or 'datasets' is not a list")
    for name, owner in shared.items():
        if owner not in inputs:
            raise CalibrationError(f"{where}: {name} shares the entry of '{owner}', which is not in the file")
        inputs[name] = inputs[owner]
    chunks, chunk_size = (_count(metadata, key, where) for key in ("chunks", "chunk_size"))
    outputs = {name.removesuffix(".range"): _range(file, name, where) for name in file.tensors if name[-6:] == ".range"}
    return Statistics(inputs, chunks, chunk_size, tuple(map(str, datasets)), metadata.get("model", ""), outputs)


def _range(file: SafetensorsFile, name: str, where: str) -> tuple[float, float]:
    stored = file.tensors[name]
    if stored.dtype == "F32" and stored.shape == (2,):
        low, high = file.data(name).view(np.uint8).copy().view("<f4").tolist()
        if low <= high and np.isfinite([low, high]).all():
            return low, high
    raise CalibrationError(f"{where}: {name} is not a smallest and a largest value in F32")


def _entry(file: SafetensorsFile, name: str, where: str) -> InputStatistics:
    arrays: dict[str, Array] = {}
    for part, (dtype, layout) in _PARTS.items():
        stored = file.tensors.get(f"{name}.{part}")
        if stored is None or stored.dtype != dtype or len(stored.shape) != 1:
            raise CalibrationError(f"{where}: {name}.{part} is missing or not a list of {dtype}")
        arrays[part] = file.data(stored.name).view(np.uint8).copy().view(layout)
    sums, absmax, tokens = arrays["sum_of_squares"], arrays["absmax"], arrays["tokens"]
    if len(sums) != len(absmax) or len(tokens) != 1 or tokens[0] < 1 or not (np.isfinite(sums) & (sums >= 0)).all():
        raise CalibrationError(f"{where}: {name}: sums must be finite and not negative, tokens positive")
    return InputStatistics(int(tokens[0]), sums, absmax)


def _json(metadata: Mapping[str, str], key: str, where: str) -> object:
    try:
        value: object = json.loads(metadata[key])
    except (KeyError, ValueError):
        raise CalibrationError(f"{where}: metadata '{key}' is missing or damaged") from None
    return value


def _count(metadata: Mapping[str, str], key: str, where: str) -> int:
    text = metadata.get(key, "")
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise CalibrationError(f"{where}: metadata '{key}' is '{text}', not a positive number")
    return int(text)
