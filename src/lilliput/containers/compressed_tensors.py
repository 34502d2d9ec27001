# SPDX-License-Identifier: Apache-2.0
"""compressed-tensors: a Hugging Face folder of quantized weights that transformers, vLLM and SGLang read.

The arrays are described in `checkpoints.compressed_tensors`, which is also the reader. Codes, scales and zero points
are ours, bit for bit; only q and k rows of permuted families go back to the checkpoint's order. config.json, tokenizer
and side files are those of the folder that the model came from.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lilliput.architectures.architecture import Json, TensorEntry
from lilliput.architectures.sources import (
    Computed,
    InterleavedHeads,
    Named,
    PermutedHeads,
    StoredSource,
    chosen_source,
    row_order,
    source_names,
)
from lilliput.arrays import Array
from lilliput.checkpoints.compressed_tensors import (
    FLOAT,
    METHOD,
    MIXED,
    PACKED,
    is_compressed_tensors,
    packed_codes,
    packed_zero_points,
)
from lilliput.checkpoints.fingerprint import tensor_digest
from lilliput.checkpoints.huggingface import HuggingFaceModel, in_row_order
from lilliput.checkpoints.model_source import ModelSource
from lilliput.checkpoints.shards import INDEX, SINGLE, read_json
from lilliput.containers.container import Contents, PartLayout, Piece, PlacedTensor, Split, Written
from lilliput.containers.part_writer import disk_error, verify_written, write_parts
from lilliput.errors import CheckpointError, ContainerError
from lilliput.formats import NumberFormat
from lilliput.formats.eight_bit_float import EightBitFloat
from lilliput.formats.integer import SymmetricInteger
from lilliput.formats.integer_zero_point import ZeroPointInteger
from lilliput.formats.scoped_number import ScopedNumber
from lilliput.records import QuantizedTensor, Role, TensorHeader

# Tensor bytes of a shard where nobody asks for another number: what the hub takes without a special protocol.
SHARD_BYTES = 5_000_000_000
_FLOATS = {"f32": "F32", "f16": "F16", "bf16": "BF16"}
_REGIONS = ("tensor", "channel", "g16", "g32", "g64", "g128", "g256")
_HOLDS = (
    "it holds int2 to int8 with one scale a tensor, row or group (INT4_G128, INT8_CHANNEL), with zero points a row or "
    "group (INT4_G128_ASYM), FP8_E4M3_CHANNEL, FP8_E4M3_TENSOR, and F32, F16, BF16"
)


@dataclass(frozen=True, slots=True)
class _Stored:
    """One array in a shard. dtype: as safetensors spells it. suffix: what follows the weight's name."""

    suffix: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


class CompressedTensors:
    """A folder: shards with an index, config.json with its quantization_config, side files."""

    name = METHOD
    suffix = ".compressed-tensors"
    float_roles: tuple[Role, ...] = (Role.TOKEN_EMBEDDING, Role.OUTPUT)

    def recognises(self, path: Path) -> bool:
        """A folder whose config.json names the method."""
        if not (path / "config.json").is_file():
            return False
        try:
            return is_compressed_tensors(read_json(path / "config.json").get("quantization_config"))
        except CheckpointError:
            return False

    def open(self, path: Path) -> ModelSource:
        """Open a folder. Raises CheckpointError."""
        return HuggingFaceModel(path)

    def holds(self, number_format: NumberFormat) -> bool:
        """Integers with or without zero points, FP8, plain floats; see `_HOLDS`."""
        if isinstance(number_format, EightBitFloat):
            return number_format.name in ("fp8_e4m3_channel", "fp8_e4m3_tensor")
        if isinstance(number_format, ZeroPointInteger):
            # Their packed zero points have an axis of groups, which a scale of the whole matrix lacks.
            return number_format.region.name in _REGIONS[1:]
        if isinstance(number_format, SymmetricInteger):
            return number_format.region.name in _REGIONS
        return number_format.name in _FLOATS

    def layout(self, contents: Contents, file_name: str, split: Split) -> tuple[PartLayout, ...]:
        """All files of the folder `file_name`: shards first, then what describes them.

        Raises ContainerError naming the tensor that the container cannot hold, before any work.
        """
        folder = _Folder(contents, _entries(contents))
        described = _config(contents)
        shards = list(_shards(folder, split))
        names = [SINGLE] if len(shards) == 1 else [_shard_name(number, len(shards)) for number in range(len(shards))]
        parts = [_shard_layout(f"{file_name}/{name}", folder, shard) for name, shard in zip(names, shards, strict=True)]
        if len(shards) > 1:
            parts.append(_text_part(f"{file_name}/{INDEX}", _index(names, shards, folder)))
        parts.append(_text_part(f"{file_name}/config.json", described))
        for path in contents.provenance.side_files:
            try:
                data = path.read_bytes()
            except OSError as failure:
                raise ContainerError(f"{path.name}: cannot be read: {failure.strerror or failure}") from failure
            parts.append(PartLayout(f"{file_name}/{path.name}", data, (), len(data)))
        return tuple(parts)

    def write(self, parts: tuple[PartLayout, ...], tensors: Iterable[QuantizedTensor], folder: Path) -> Written:
        """Write the folder into `folder`, one tensor in memory at a time."""
        places = {
            placed.header.name: placed for part in parts for placed in part.tensors if isinstance(placed, _PlacedWeight)
        }
        digests: dict[str, str] = {}

        def stored() -> Iterator[QuantizedTensor]:
            for tensor in tensors:
                # Of what memory held, to be compared with what the reader makes of the folder.
                digests[tensor.name] = tensor_digest(tensor)
                place = places.get(tensor.name)
                yield tensor if place is None else replace(tensor, planes=_stored_planes(tensor, place))

        try:
            (folder / parts[0].file_name).parent.mkdir()
        except OSError as failure:
            raise disk_error(str(folder), failure) from failure
        written = write_parts(parts, stored(), folder)
        return Written(written.paths, digests)

    def verify(self, written: Written) -> None:
        """Reopen the folder with our reader, compare every tensor, decode."""
        try:
            verify_written(written, HuggingFaceModel(written.paths[0].parent))
        except CheckpointError as failure:
            raise ContainerError(f"what was written cannot be read back: {failure}") from failure


@dataclass(frozen=True, slots=True)
class _PlacedWeight(PlacedTensor):
    """source: whose row order the rows go back to.  has_wide_scales: F32 for F16."""

    source: StoredSource | Computed
    has_wide_scales: bool = False


@dataclass(frozen=True, slots=True)
class _Folder:
    """What is to be written. entries: canonical name -> row of the family's table."""

    contents: Contents
    entries: Mapping[str, TensorEntry]

    @property
    def has_wide_scales(self) -> bool:
        """F32 scales for models that compute in float32.

        Some loaders multiply in the scale's type, and a product of 16 bits would not be the value that was chosen.
        """
        config = self.contents.provenance.huggingface_config
        return config.get("dtype", config.get("torch_dtype")) in ("float32", None)

    def source_name(self, header: TensorHeader) -> str:
        """The checkpoint's name of a tensor."""
        return _source_name(self.entries[header.name])

    def arrays(self, header: TensorHeader) -> tuple[_Stored, ...]:
        """What a tensor is in the folder, in file order; nothing for what readers compute themselves."""
        if isinstance(self.entries[header.name].source, Computed):
            return ()
        number_format = header.format
        if not isinstance(number_format, ScopedNumber):
            return (_Stored("", _FLOATS[number_format.name], header.shape, header.nbytes),)
        rows, columns = header.rows, header.columns
        grid = number_format.region.grid(rows, columns)
        is_half = number_format.region.is_group and not self.has_wide_scales
        scale_shape = grid if number_format.region.rows is not None else (1,)
        scales = _Stored("_scale", "F16" if is_half else "F32", scale_shape, grid[0] * grid[1] * (2 if is_half else 4))
        if isinstance(number_format, EightBitFloat):
            return _Stored("", "F8_E4M3", header.shape, rows * columns), scales
        bits = number_format.code_bits
        words = -(-columns * bits // 32)
        packed = [_Stored("_packed", "I32", (rows, words), rows * words * 4), scales]
        if isinstance(number_format, ZeroPointInteger):
            shape = (-(-grid[0] * bits // 32), grid[1])
            packed.append(_Stored("_zero_point", "I32", shape, shape[0] * shape[1] * 4))
        return *packed, _Stored("_shape", "I64", (2,), 16)


def _entries(contents: Contents) -> dict[str, TensorEntry]:
    """Canonical name -> row of the family's table, everything checked that can be known before the work.

    Raises ContainerError.
    """
    if not contents.provenance.huggingface_config:
        raise ContainerError(
            "a compressed-tensors folder takes config.json and the tokenizer's files from the model's Hugging Face "
            "folder; quantize from that folder, or give another output, such as -o NAME.gguf"
        )
    # An untied table also names the head of a tied model, which its readers must be told to ignore.
    table = {entry.name: entry for entry in _untied_table(contents)}
    container = CompressedTensors()
    for header in contents.headers:
        entry = table.get(header.name)
        if entry is None:
            raise ContainerError(f"tensor '{header.name}': {contents.config.family} has no such tensor in a checkpoint")
        shown = f"tensor '{header.name}' ({_source_name(entry)})"
        if not isinstance(entry.source, Named | PermutedHeads | InterleavedHeads | Computed):
            raise ContainerError(
                f"{shown}: a checkpoint of this family keeps it {type(entry.source).__name__.lower()}, which cannot be "
                "written back; give -o NAME.gguf or NAME.safetensors instead"
            )
        if not container.holds(header.format):
            raise ContainerError(
                f"{shown}: a compressed-tensors folder cannot hold {header.format.name.upper()}; {_HOLDS}; "
                "choose one of these, or give -o NAME.safetensors for lilliput's own layout"
            )
        if header.format.name not in _FLOATS and not _is_linear(entry):
            raise ContainerError(
                f"{shown}: readers of compressed-tensors quantize only linear layers, and this would be "
                f"{header.format.name.upper()}; keep it in F32, F16 or BF16, "
                f"in a recipe: {{role: {entry.role.value}, format: BF16}}"
            )
        if contents.sidecars.get(header.name):
            raise ContainerError(f"{shown}: compressed-tensors cannot hold sidecars; write lilliput's own layout")
    found = {header.name: table[header.name] for header in contents.headers}
    _check_fused(contents.headers, found)
    return found


def _check_fused(headers: Iterable[TensorHeader], entries: Mapping[str, TensorEntry]) -> None:
    """Tensors that vLLM joins into one must be of one format."""
    first: dict[str, TensorHeader] = {}
    for header in headers:
        group = entries[header.name].runtime_group
        if group is None:
            continue
        other = first.setdefault(group, header)
        if other.format.name != header.format.name:
            raise ContainerError(
                f"tensors '{other.name}' ({other.format.name.upper()}) and '{header.name}' "
                f"({header.format.name.upper()}) are one matrix to vLLM and must have one format; change the recipe"
            )


def _untied_table(contents: Contents) -> tuple[TensorEntry, ...]:
    return contents.architecture.tensor_table(replace(contents.config, tied=False))


def _is_linear(entry: TensorEntry) -> bool:
    return len(entry.shape) == 2 and entry.role is not Role.TOKEN_EMBEDDING


def _source_name(entry: TensorEntry) -> str:
    return next(iter(source_names(entry.source)), entry.name)


def _config(contents: Contents) -> str:
    """config.json of the source with what changed."""
    config = dict(contents.provenance.huggingface_config)
    config["tie_word_embeddings"] = contents.config.tied
    config["quantization_config"] = _quantization(contents)
    return json.dumps(config, indent=2, ensure_ascii=False) + "\n"


def _quantization(contents: Contents) -> dict[str, Json]:
    """quantization_config: a group for each format, and which linear layers are of none."""
    formats = {header.name: header.format for header in contents.headers}
    quantized: dict[str, tuple[ScopedNumber, list[Json]]] = {}
    ignored: list[Json] = []
    for entry in filter(_is_linear, _untied_table(contents)):
        module = _source_name(entry).removesuffix(".weight")
        number_format = formats.get(entry.name)
        if isinstance(number_format, ScopedNumber):
            quantized.setdefault(number_format.name, (number_format, []))[1].append(module)
        else:
            ignored.append(module)
    if not quantized:
        raise ContainerError(
            f"no tensor of this plan is quantized in a way that compressed-tensors holds; {_HOLDS}; choose one of these"
        )
    groups: dict[str, Json] = {}
    for number, (number_format, modules) in enumerate(quantized.values()):
        groups[f"group_{number}"] = {
            # One group is spelled as everybody spells it; several are told apart by exact names.
            "targets": ["Linear"] if len(quantized) == 1 else modules,
            "weights": _weights(number_format),
            "input_activations": None,
            "output_activations": None,
            "format": _kind(number_format),
        }
    kinds = {_kind(number_format) for number_format, _ in quantized.values()}
    return {
        "quant_method": METHOD,
        "format": kinds.pop() if len(kinds) == 1 else MIXED,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ignored,
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def _weights(number_format: ScopedNumber) -> dict[str, Json]:
    """The `weights` of one group."""
    region = number_format.region
    return {
        "num_bits": number_format.code_bits,
        "type": "float" if isinstance(number_format, EightBitFloat) else "int",
        "symmetric": not isinstance(number_format, ZeroPointInteger),
        "strategy": "group" if region.is_group else region.name,
        "group_size": region.columns if region.is_group else None,
        "block_structure": None,
        "dynamic": False,
        "actorder": None,
        "observer": "minmax",
        "observer_kwargs": {},
    }


def _kind(number_format: ScopedNumber) -> str:
    return FLOAT if isinstance(number_format, EightBitFloat) else PACKED


def _stored_planes(tensor: QuantizedTensor, place: _PlacedWeight) -> dict[str, Array]:
    """A tensor's arrays by suffix, as `_Folder.arrays` lays them out."""
    if not place.pieces:
        return {}
    planes: Mapping[str, Array] = {name: np.asarray(array) for name, array in tensor.planes.items()}
    number_format = tensor.format
    # Vectors are one row of stored bytes; their elements are what has to move.
    count = tensor.rows if len(tensor.shape) > 1 else tensor.columns
    order = None if isinstance(place.source, Computed) else row_order(place.source, count)
    if order is not None:
        planes = {name: array.reshape(count, -1) if len(tensor.shape) == 1 else array for name, array in planes.items()}
        planes = in_row_order(planes, np.argsort(order).astype(np.int32))
    if not isinstance(number_format, ScopedNumber):
        return {"": planes["blocks"]}
    scale = planes["scale"].astype("<f4") if place.has_wide_scales else planes["scale"]
    if isinstance(number_format, EightBitFloat):
        return {"": planes["codes"], "_scale": scale}
    stored = {"_packed": packed_codes(planes["codes"]), "_scale": scale}
    if "zero_point" in planes:
        stored["_zero_point"] = packed_zero_points(planes["zero_point"], number_format.code_bits)
    return stored | {"_shape": np.array(tensor.shape, dtype="<i8")}


def _shards(folder: _Folder, split: Split) -> Iterator[tuple[TensorHeader, ...]]:
    """Tensors in file order, cut where a shard would become too large."""
    contents = folder.contents
    limit, count = split.max_bytes or SHARD_BYTES, split.max_tensors or len(contents.headers)
    shard: list[TensorHeader] = []
    size = 0
    for header in contents.headers:
        nbytes = sum(array.nbytes for array in folder.arrays(header))
        if shard and (size + nbytes > limit or len(shard) >= count):
            yield tuple(shard)
            shard, size = [], 0
        shard.append(header)
        size += nbytes
    yield tuple(shard)


def _shard_name(number: int, shards: int) -> str:
    return f"model-{number + 1:05d}-of-{shards:05d}.safetensors"


def _shard_layout(file_name: str, folder: _Folder, shard: tuple[TensorHeader, ...]) -> PartLayout:
    """One safetensors file: no holes, arrays in the order of the tensors."""
    metadata = folder.contents.metadata
    own = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    header: dict[str, object] = {"__metadata__": {"format": "pt", **own}}
    places: list[tuple[TensorHeader, list[tuple[_Stored, int]]]] = []
    position = 0
    for tensor in shard:
        placed = []
        for array in folder.arrays(tensor):
            end = position + array.nbytes
            header[folder.source_name(tensor) + array.suffix] = {
                "dtype": array.dtype,
                "shape": list(array.shape),
                "data_offsets": [position, end],
            }
            placed.append((array, position))
            position = end
        places.append((tensor, placed))
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    # Spaces at the end are part of the format; they put the first array on an aligned byte.
    text += b" " * (-len(text) % 8)
    prefix = len(text).to_bytes(8, "little") + text
    tensors = []
    for tensor, arrays in places:
        source = folder.entries[tensor.name].source
        pieces = tuple(Piece("planes", array.suffix, len(prefix) + start, array.nbytes) for array, start in arrays)
        tensors.append(_PlacedWeight(tensor, pieces, chosen_source(source, ()), folder.has_wide_scales))
    return PartLayout(file_name, prefix, tuple(tensors), len(prefix) + position)


def _index(names: list[str], shards: list[tuple[TensorHeader, ...]], folder: _Folder) -> str:
    """model.safetensors.index.json."""
    weight_map: dict[str, str] = {}
    total = 0
    for file_name, shard in zip(names, shards, strict=True):
        for header in shard:
            for array in folder.arrays(header):
                weight_map[folder.source_name(header) + array.suffix] = file_name
                total += array.nbytes
    return json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2) + "\n"


def _text_part(file_name: str, text: str) -> PartLayout:
    data = text.encode("utf-8")
    return PartLayout(file_name, data, (), len(data))
