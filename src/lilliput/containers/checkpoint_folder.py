# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face folder of quantized weights: what compressed-tensors, GPTQ, AWQ and bitsandbytes folders share.

Shards with an index, config.json with a quantization_config, side files. Each method is a `Packing`: which arrays stand
for a weight, and what the config says. Codes, scales and zero points are ours, bit for bit; only q and k rows of
permuted families go back to the checkpoint's order, and experts that are one tensor here are a matrix each there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from lilliput.activations import IntegerInputs, StaticFormat
from lilliput.activations.stored_range import INPUT_SCALE, INPUT_ZERO_POINT, inputs_beside, range_specs
from lilliput.architectures.architecture import Json, TensorEntry
from lilliput.architectures.sources import (
    Computed,
    InterleavedHeads,
    Named,
    PermutedHeads,
    Rows,
    Shifted,
    Source,
    Stacked,
    StoredSource,
    Transposed,
    chosen_source,
    row_order,
    source_names,
)
from lilliput.arrays import Array
from lilliput.checkpoints.fingerprint import tensor_digest
from lilliput.checkpoints.huggingface import HuggingFaceModel, in_row_order
from lilliput.checkpoints.model_source import ModelSource
from lilliput.checkpoints.shards import INDEX, SINGLE, read_json
from lilliput.checkpoints.static_inputs import SHIFT
from lilliput.containers.container import Contents, PartLayout, Piece, PlacedTensor, Split, Written
from lilliput.containers.part_writer import disk_error, verify_written, write_parts
from lilliput.errors import CheckpointError, ContainerError
from lilliput.formats import NumberFormat, Planes
from lilliput.records import QuantizedTensor, Role, TensorHeader

# Tensor bytes of a shard where nobody asks for another number: what the hub takes without a special protocol.
SHARD_BYTES = 5_000_000_000
PLAIN = {"f32": "F32", "f16": "F16", "bf16": "BF16"}
# How checkpoints keep what cannot be quantized in place, for people.
KEPT_AS: dict[type, str] = {
    Transposed: "as [in, out]",
    Rows: "as rows of one matrix with others",
    Shifted: "less a constant",
}
# And buffers of architectures that are not known.
AS_IT_IS = {**PLAIN, "i64": "I64", "i32": "I32", "i16": "I16", "i8": "I8"}


@dataclass(frozen=True, slots=True)
class Stored:
    """One array in a shard. part: what follows the module's name.  dtype: as safetensors spells it.

    expert: which of a stack's matrices it belongs to.
    """

    part: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    expert: int | None = None

    @property
    def key(self) -> str:
        """Its name among all arrays of a tensor."""
        return self.part if self.expert is None else f"{self.expert}{self.part}"


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer of the checkpoint. module: its name there.  format: None where it is not in the file.

    is_assumed: nobody knows which other linear layers the model has, so readers must be told this one's name.
    inputs: static ones, where their range is in the file and not symmetric around 0 for all.
    """

    module: str
    format: NumberFormat | None
    is_assumed: bool = False
    inputs: StaticFormat | None = None


class Packing(Protocol):
    """One method of storing quantized weights.

    name: of the container.  suffix: of its folders.  holds_text: what it holds, for errors.
    has_one_format: whether all quantized layers must be of one.
    """

    name: str
    suffix: str
    holds_text: str
    has_one_format: bool

    def recognises(self, quantization: object) -> bool:
        """Whether config.json's quantization_config is one of this method."""

    def holds(self, number_format: NumberFormat) -> bool:
        """Whether weights of this format can be stored, plain floats aside."""

    def check(self, headers: Sequence[TensorHeader]) -> None:
        """What quantized tensors must have in common. Raises ContainerError."""

    def arrays(self, header: TensorHeader, *, has_wide_scales: bool) -> tuple[Stored, ...]:
        """What a quantized weight is in the folder, in file order."""

    def stored(self, tensor: TensorHeader, planes: Planes, *, has_wide_scales: bool) -> dict[str, Array]:
        """The arrays by part; rows of `planes` are in the checkpoint's order already."""

    def settled(self, tensor: QuantizedTensor) -> QuantizedTensor:
        """What the reader makes of the stored tensor: itself, but for parameters that have another unit there."""

    def quantization(self, layers: Sequence[Linear]) -> dict[str, Json]:
        """quantization_config."""


class CheckpointFolder:
    """A folder of one method, as a container.

    takes_unknown: its config can name each layer that is quantized.  holds_ranges: and the range of its inputs.
    takes_experts: its readers know quantized experts.
    """

    takes_unknown = False
    holds_ranges = False
    takes_experts = False
    float_roles: tuple[Role, ...] = (Role.TOKEN_EMBEDDING, Role.OUTPUT, Role.ROUTER)
    needs_quantized = True

    def __init__(self, packing: Packing) -> None:
        self.packing = packing
        self.holds_text = packing.holds_text
        self.name = packing.name
        self.suffix = packing.suffix
        self.has_one_format = packing.has_one_format

    def recognises(self, path: Path) -> bool:
        """A folder whose config.json names the method."""
        if not (path / "config.json").is_file():
            return False
        try:
            return self.packing.recognises(read_json(path / "config.json").get("quantization_config"))
        except CheckpointError:
            return False

    def open(self, path: Path) -> ModelSource:
        """Open a folder. Raises CheckpointError."""
        return HuggingFaceModel(path)

    def holds(self, number_format: NumberFormat) -> bool:
        """What the method holds, and plain floats."""
        return number_format.name in PLAIN or self.packing.holds(number_format)

    def settled(self, tensor: QuantizedTensor, source: Source) -> QuantizedTensor:
        """The tensor as the folder will give it back: with scales as the method stores them, in its order of rows.

        source: how the tensor comes from a checkpoint.
        """
        chosen = chosen_source(source, ())
        order = None if isinstance(chosen, Computed) or len(tensor.shape) < 2 else row_order(chosen, tensor.rows)
        if order is None or tensor.format.name in AS_IT_IS:
            return self.packing.settled(tensor)
        there = in_row_order(tensor.planes, np.argsort(order).astype(np.int32))
        settled = self.packing.settled(replace(tensor, planes=there))
        return replace(tensor, planes=in_row_order(settled.planes, order))

    def input_scale(self, header: TensorHeader, contents: Contents) -> float | None:
        """Of the inputs of a quantized layer, where readers are told it. Raises ContainerError where it is unknown."""
        return None

    def layout(self, contents: Contents, file_name: str, split: Split) -> tuple[PartLayout, ...]:
        """All files of the folder `file_name`: shards first, then what describes them.

        Raises ContainerError naming the tensor that the container cannot hold, before any work.
        """
        entries = self._entries(contents)
        scales = {
            header.name: scale
            for header in contents.headers
            if header.format.name not in AS_IT_IS
            and header.inputs is None
            and (scale := self.input_scale(header, contents)) is not None
        }
        folder = _Folder(contents, entries, self.packing, scales)
        described = self._config(contents)
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
                place = places.get(tensor.name)
                if place is None:
                    digests[tensor.name] = tensor_digest(tensor)
                    yield tensor
                    continue
                # Of what memory held, to be compared with what the reader makes of the folder.
                settled = replace(self.settled(tensor, place.source), sidecars=_ranges_read(tensor, place))
                digests[tensor.name] = tensor_digest(settled)
                yield replace(tensor, planes=self._stored_planes(tensor, place), sidecars={})

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

    def _entries(self, contents: Contents) -> dict[str, TensorEntry]:
        """Canonical name -> row of the family's table, everything checked that can be known before the work.

        Raises ContainerError.
        """
        if not contents.provenance.huggingface_config:
            raise ContainerError(
                f"{_a(self.name)} folder takes config.json and the tokenizer's files from the model's Hugging Face "
                "folder; quantize from that folder, or give another output, such as -o NAME.gguf"
            )
        if contents.config.unknown is not None and not self.takes_unknown:
            raise ContainerError(
                f"{contents.config.unknown.model_type}: readers of a {self.name} folder must know the architecture; "
                "give -o NAME.compressed-tensors, which names each layer, or -o NAME.safetensors"
            )
        # An untied table also names the head of a tied model, which its readers must be told to ignore.
        table = {entry.name: entry for entry in _untied_table(contents)}
        for header in contents.headers:
            entry = table.get(header.name)
            if entry is None:
                raise ContainerError(
                    f"tensor '{header.name}': {contents.config.family} has no such tensor in a checkpoint"
                )
            has_ranges = self.holds_ranges and header.inputs is not None
            has_sidecars = bool(contents.sidecars.get(header.name)) and not has_ranges
            self._check_tensor(header, entry, has_sidecars=has_sidecars)
        found = {header.name: table[header.name] for header in contents.headers}
        _check_fused(contents.headers, found)
        quantized = [header for header in contents.headers if header.format.name not in AS_IT_IS]
        if not quantized:
            raise ContainerError(
                f"no tensor of this plan is quantized in a way that {self.name} holds; {self.packing.holds_text}; "
                "choose one of these"
            )
        self.packing.check([one_matrix(header) for header in quantized])
        return found

    def _check_tensor(self, header: TensorHeader, entry: TensorEntry, *, has_sidecars: bool) -> None:
        shown = f"tensor '{header.name}' ({_source_name(entry)})"
        source = chosen_source(entry.source, ())
        is_float = header.format.name in AS_IT_IS
        # What is added to a norm can be taken off again; in fewer bits than float32 it could not.
        is_shifted = isinstance(source, Shifted) and header.format.name == "f32"
        is_turned = isinstance(source, Transposed) and is_float
        if isinstance(source, Stacked):
            self._check_experts(shown, header)
        elif not (is_shifted or is_turned or isinstance(source, Named | PermutedHeads | InterleavedHeads | Computed)):
            raise ContainerError(
                f"{shown}: a checkpoint of this family keeps it {KEPT_AS.get(type(source), 'in another way')}, where a "
                f"{self.name} folder cannot have {header.format.name.upper()}; give -o NAME.gguf or NAME.safetensors"
            )
        is_buffer = entry.role is Role.KEPT and is_float
        if not (is_buffer or self.holds(header.format)):
            raise ContainerError(
                f"{shown}: {_a(self.name)} folder cannot hold {header.format.name.upper()}; {self.packing.holds_text}; "
                "choose one of these, or give -o NAME.safetensors for lilliput's own layout"
            )
        if header.format.name not in AS_IT_IS and not _is_linear(entry):
            raise ContainerError(
                f"{shown}: readers of {self.name} quantize only linear layers, and this would be "
                f"{header.format.name.upper()}; keep it in F32, F16 or BF16, "
                f"in a recipe: {{role: {entry.role.value}, format: BF16}}"
            )
        if has_sidecars:
            raise ContainerError(f"{shown}: {self.name} cannot hold sidecars; write lilliput's own layout")

    def _check_experts(self, shown: str, header: TensorHeader) -> None:
        """What lies in one tensor here and apart in the folder. Raises ContainerError."""
        if header.format.name in AS_IT_IS:
            return
        if header.inputs is not None:
            raise ContainerError(
                f"{shown}: a {self.name} folder has no place for ranges of what enters experts; leave --activations out"
            )
        if not self.takes_experts:
            raise ContainerError(
                f"{shown}: readers of {self.name} have no experts in {header.format.name.upper()}; keep them in BF16, "
                "or give -o NAME.compressed-tensors, NAME.gptq or NAME.gguf"
            )
        step = header.format.row_step
        if step is None or header.shape[1] % step:
            raise ContainerError(
                f"{shown}: {header.format.name.upper()} shares a parameter between experts, which the folder keeps "
                "apart; choose a format with a scale a row or group"
            )

    def _config(self, contents: Contents) -> str:
        """config.json of the source with what changed."""
        headers = {header.name: header for header in contents.headers}
        layers: list[Linear] = []
        for entry in filter(_is_linear, _untied_table(contents)):
            header = headers.get(entry.name)
            number_format, inputs = (None, None) if header is None else (header.format, header.inputs)
            is_assumed = contents.config.unknown is not None
            modules = (name.removesuffix(".weight") for name in _matrix_names(entry))
            layers.extend(Linear(module, number_format, is_assumed, inputs) for module in modules)
        config = dict(contents.provenance.huggingface_config)
        if contents.config.unknown is None:
            config["tie_word_embeddings"] = contents.config.tied
        config["quantization_config"] = self.packing.quantization(layers)
        return json.dumps(config, indent=2, ensure_ascii=False) + "\n"

    def _stored_planes(self, tensor: QuantizedTensor, place: _PlacedWeight) -> dict[str, Array]:
        """A tensor's arrays by part, as `_Folder.arrays` lays them out."""
        if not place.pieces:
            return {}
        if isinstance(place.source, Stacked):
            return self._stored_experts(tensor, place)
        planes: Mapping[str, Array] = {name: np.asarray(array) for name, array in tensor.planes.items()}
        # Vectors are one row of stored bytes; their elements are what has to move.
        count = tensor.rows if len(tensor.shape) > 1 else tensor.columns
        order = None if isinstance(place.source, Computed) else row_order(place.source, count)
        if order is not None:
            planes = {
                name: array.reshape(count, -1) if len(tensor.shape) == 1 else array for name, array in planes.items()
            }
            planes = in_row_order(planes, np.argsort(order).astype(np.int32))
        if tensor.format.name in AS_IT_IS:
            return {"": _arranged_back(place, planes["blocks"])}
        stored = self.packing.stored(place.header, planes, has_wide_scales=place.has_wide_scales)
        return stored | {f".{name}": array for name, array in _ranges_stored(tensor, place).items()}

    def _stored_experts(self, tensor: QuantizedTensor, place: _PlacedWeight) -> dict[str, Array]:
        """The arrays of all matrices of a stack by `Stored.key`."""
        planes: Mapping[str, Array] = {name: np.asarray(array) for name, array in tensor.planes.items()}
        if "blocks" in planes:
            planes = {"blocks": planes["blocks"].reshape(tensor.rows, -1)}
        found: dict[str, Array] = {}
        rows, one = tensor.shape[1], one_matrix(place.header)
        for expert in range(tensor.shape[0]):
            own = tensor.format.row_range(planes, expert * rows, (expert + 1) * rows)
            if tensor.format.name in AS_IT_IS:
                arrays: Mapping[str, Array] = {"": own["blocks"]}
            else:
                arrays = self.packing.stored(one, own, has_wide_scales=place.has_wide_scales)
            found |= {f"{expert}{part}": array for part, array in arrays.items()}
        return found


@dataclass(frozen=True, slots=True)
class _PlacedWeight(PlacedTensor):
    """source: whose row order the rows go back to.  has_wide_scales: F32 for F16.  input_scale: of static inputs."""

    source: StoredSource | Computed
    has_wide_scales: bool = False
    input_scale: float | None = None


@dataclass(frozen=True, slots=True)
class _Folder:
    """What is to be written.

    entries: canonical name -> row of the family's table.  input_scales: of layers whose readers are told one.
    """

    contents: Contents
    entries: Mapping[str, TensorEntry]
    packing: Packing
    input_scales: Mapping[str, float]

    @property
    def has_wide_scales(self) -> bool:
        """F32 scales for models that compute in float32.

        Some loaders multiply in the scale's type, and a product of 16 bits would not be the value that was chosen.
        """
        config = self.contents.provenance.huggingface_config
        return config.get("dtype", config.get("torch_dtype")) in ("float32", None)

    def stored_name(self, header: TensorHeader, array: Stored) -> str:
        """The checkpoint's name of an array."""
        name = _matrix_names(self.entries[header.name])[array.expert or 0]
        return name if header.format.name in AS_IT_IS else name.removesuffix(".weight") + array.part

    def arrays(self, header: TensorHeader) -> tuple[Stored, ...]:
        """What a tensor is in the folder, in file order; nothing for what readers compute themselves."""
        source = chosen_source(self.entries[header.name].source, ())
        if isinstance(source, Computed):
            return ()
        if isinstance(source, Stacked):
            one = self._arrays_of(one_matrix(header), source)
            return tuple(replace(array, expert=expert) for expert in range(header.shape[0]) for array in one)
        return self._arrays_of(header, source)

    def _arrays_of(self, header: TensorHeader, source: StoredSource) -> tuple[Stored, ...]:
        """What one matrix or vector is."""
        if header.format.name in AS_IT_IS:
            shape = header.shape[::-1] if isinstance(source, Transposed) else header.shape
            return (Stored("", AS_IT_IS[header.format.name], shape, header.nbytes),)
        arrays = self.packing.arrays(header, has_wide_scales=self.has_wide_scales)
        if header.inputs is None and header.name not in self.input_scales:
            return arrays
        scale = Stored(f".{INPUT_SCALE}", "F32", (1,), 4)
        if header.inputs is None or INPUT_ZERO_POINT not in range_specs(header.inputs):
            return *arrays, scale
        return *arrays, scale, Stored(f".{INPUT_ZERO_POINT}", "I8", (1,), 1)


def _ranges_stored(tensor: QuantizedTensor, place: _PlacedWeight) -> dict[str, Array]:
    """What readers are told of a layer's inputs, by array."""
    if place.input_scale is not None:
        return {INPUT_SCALE: np.array([place.input_scale], "<f4")}
    if place.header.inputs is None:
        return {}
    found: dict[str, Array] = {INPUT_SCALE: np.asarray(tensor.sidecars[INPUT_SCALE])}
    if INPUT_ZERO_POINT in range_specs(place.header.inputs):
        found[INPUT_ZERO_POINT] = (np.asarray(tensor.sidecars[INPUT_ZERO_POINT]) - SHIFT).astype("<i1")
    return found


def _ranges_read(tensor: QuantizedTensor, place: _PlacedWeight) -> dict[str, Array]:
    """What our reader puts beside the weight: see `checkpoints.static_inputs`."""
    stored = _ranges_stored(tensor, place)
    if not stored or tensor.format.name in AS_IT_IS:
        return {}
    if not isinstance(inputs_beside(tensor.format, stored), IntegerInputs):
        return stored
    point = stored.get(INPUT_ZERO_POINT, np.zeros(1, "<i1"))
    return {INPUT_SCALE: stored[INPUT_SCALE], INPUT_ZERO_POINT: np.asarray(point, "<i4") + np.int32(SHIFT)}


def _arranged_back(place: _PlacedWeight, stored: Array) -> Array:
    """Bytes of plain floats as the checkpoint keeps them."""
    match place.source:
        case Shifted(by=by):
            return np.ascontiguousarray(stored).view("<f4") - np.float32(by)
        case Transposed():
            kind = "<f4" if place.header.format.name == "f32" else "<u2"
            return np.ascontiguousarray(np.ascontiguousarray(stored).view(kind).reshape(place.header.shape).T)
        case _:
            return stored


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


def _a(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _untied_table(contents: Contents) -> tuple[TensorEntry, ...]:
    return contents.architecture.tensor_table(replace(contents.config, tied=False))


def _is_linear(entry: TensorEntry) -> bool:
    is_matrix = len(entry.shape) == 2 or isinstance(chosen_source(entry.source, ()), Stacked)
    return is_matrix and entry.role not in (Role.TOKEN_EMBEDDING, Role.KEPT)


def one_matrix(header: TensorHeader) -> TensorHeader:
    """Of a stack, the header of each of its matrices; itself otherwise."""
    return header if len(header.shape) < 3 else replace(header, shape=header.shape[1:])


def _matrix_names(entry: TensorEntry) -> tuple[str, ...]:
    """The checkpoint's names of a tensor: of a stack, that of each matrix."""
    source = chosen_source(entry.source, ())
    return source.names if isinstance(source, Stacked) else (_source_name(entry),)


def _source_name(entry: TensorEntry) -> str:
    return next(iter(source_names(entry.source)), entry.name)


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
    places: list[tuple[TensorHeader, list[tuple[Stored, int]]]] = []
    position = 0
    for tensor in shard:
        placed = []
        for array in folder.arrays(tensor):
            end = position + array.nbytes
            header[folder.stored_name(tensor, array)] = {
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
        pieces = tuple(Piece("planes", array.key, len(prefix) + start, array.nbytes) for array, start in arrays)
        scale = folder.input_scales.get(tensor.name)
        tensors.append(_PlacedWeight(tensor, pieces, chosen_source(source, ()), folder.has_wide_scales, scale))
    return PartLayout(file_name, prefix, tuple(tensors), len(prefix) + position)


def _index(names: list[str], shards: list[tuple[TensorHeader, ...]], folder: _Folder) -> str:
    """model.safetensors.index.json."""
    weight_map: dict[str, str] = {}
    total = 0
    for file_name, shard in zip(names, shards, strict=True):
        for header in shard:
            for array in folder.arrays(header):
                weight_map[folder.stored_name(header, array)] = file_name
                total += array.nbytes
    return json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2) + "\n"


def _text_part(file_name: str, text: str) -> PartLayout:
    data = text.encode("utf-8")
    return PartLayout(file_name, data, (), len(data))
