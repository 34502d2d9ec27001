# SPDX-License-Identifier: Apache-2.0
"""An ONNX file as a model: weights found by what operators do with them, named by the graph; config.json beside it.

Read are MatMulNBits, DequantizeLinear, and the products of integers that ONNX Runtime's quantizers write, beside plain
floats. A weight's name is that of its constant, or, where exporters folded that away, of the operator that multiplies
with it (`/model/layers.0/mlp/up_proj/MatMul`). What no tensor of the family answers to is an error that names it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np

from lilliput.architectures import architecture_for_huggingface
from lilliput.architectures.architecture import Json, TensorEntry
from lilliput.architectures.sources import InterleavedHeads, Named, PermutedHeads, chosen_source, row_order
from lilliput.arrays import Array, FloatArray
from lilliput.checkpoints.fingerprint import model_fingerprint
from lilliput.checkpoints.huggingface import in_row_order
from lilliput.checkpoints.model_card import read_provenance
from lilliput.checkpoints.shards import read_json
from lilliput.checkpoints.table_check import checked_table
from lilliput.containers.onnx.constants import Constants, damage_named
from lilliput.containers.onnx.graph import ElementType, External, Node
from lilliput.containers.onnx.reader import MODEL
from lilliput.containers.onnx.stored_weights import BlockWeight, bit_fields, block_weight, constant_behind, weight_of
from lilliput.errors import CheckpointError, ContainerError, FormatError
from lilliput.formats import Encoded, NumberFormat, Planes, find_format, get_format
from lilliput.records import QuantizedTensor, TensorHeader
from lilliput.text.huggingface import load_vocabulary, padded
from lilliput.text.vocabulary import Vocabulary

# What quantizers and exporters put behind and into the name of a weight.
_BEHIND = re.compile(r"(\.codes|_Q\d+(G\d+)?|_quantized|_q)?(\.rows\d+-\d+)?(\.\d+(x\d+)*)?$")
_RENAMED = ((".MatMul.weight", ".weight"), (".attn.", ".self_attn."))
_LAST_NORM = re.compile(r"model\.layers\.\d+\.final_norm_layernorm\.")
_TAKES_SECOND = ("MatMul", "Gemm", "FusedMatMul")


@dataclass(frozen=True, slots=True)
class FoundWeight:
    """A weight of the graph.

    shape: [out, in].  array: its constant, codes or floats.  is_turned: stored [in, out].
    block: of ONNX Runtime's operators on blocks.  scale, zero_point: names of other codes' constants, else empty.
    """

    shape: tuple[int, ...]
    array: str
    is_turned: bool = False
    block: BlockWeight | None = None
    scale: str = ""
    zero_point: str = ""

    @property
    def is_quantized(self) -> bool:
        """Whether codes are stored."""
        return self.block is not None or bool(self.scale)


class OnnxModel:
    """One graph, opened as a model."""

    container = "onnx"

    def __init__(self, path: Path) -> None:
        """Open a folder with model.onnx, or a graph, with config.json beside it.

        Raises ContainerError, CheckpointError, UnsupportedModelError.
        """
        graph = path / MODEL if path.is_dir() else path
        self.path = path
        if not (graph.parent / "config.json").is_file():
            raise CheckpointError(
                f"{graph.name}: an ONNX graph does not say what model it is; put the model's config.json beside it"
            )
        config: Mapping[str, Json] = read_json(graph.parent / "config.json")  # type: ignore[assignment]
        self.architecture = architecture_for_huggingface(config)
        self.config = self.architecture.config_from_huggingface(config)
        self.provenance = read_provenance(graph.parent, config, None)
        self._folder = graph.parent
        self.constants = Constants(graph)
        self._vocabulary: Vocabulary | None = None
        try:
            with damage_named(graph):
                found = _Finder(self.constants).weights()
                self.config = replace(self.config, tied=self.config.tied and not self._has_own_head(found))
                table = checked_table(self.architecture, self.config, graph, len(found), ContainerError)
                self._places = _matched(table, found, graph.name)
                self._entries = {entry.name: entry for entry in table}
                self._headers = {
                    name: TensorHeader(name, self._entries[name].shape, self._format(place.weight))
                    for name, place in self._places.items()
                }
        except BaseException:
            self.close()
            raise

    @property
    def headers(self) -> Mapping[str, TensorHeader]:
        """Canonical name -> header, in the order of the family's table."""
        return self._headers

    @property
    def weight_files(self) -> tuple[Path, ...]:
        """The graph and the files beside it that hold its constants."""
        graph = self.constants.path
        beside = [
            item.data.file for item in self.constants.graph.initializers.values() if isinstance(item.data, External)
        ]
        return (graph, *(graph.parent / name for name in dict.fromkeys(beside)))

    def source_name(self, name: str) -> str:
        """The constant's."""
        return self._places[name].weight.array

    def tensor(self, name: str) -> QuantizedTensor:
        """One tensor in the format its header says."""
        header, place = self._headers[name], self._places[name]
        with damage_named(self.constants.path):
            planes = self._planes(place.weight, header)
        if place.is_ours:
            return QuantizedTensor(name, header.shape, header.format, planes)
        source = chosen_source(self._entries[name].source, ())
        assert isinstance(source, Named | PermutedHeads | InterleavedHeads)
        count = header.rows if len(header.shape) > 1 else header.columns
        order = row_order(source, count)
        if order is not None:
            stored = {key: np.asarray(array).reshape(count, -1) for key, array in planes.items()}
            planes = in_row_order(stored, order)
        return QuantizedTensor(name, header.shape, header.format, planes)

    def release(self, name: str) -> None:
        """Maps are let go of when the model is closed."""

    def vocabulary(self) -> Vocabulary:
        """The tokenizer of the files beside the graph."""
        self._vocabulary = self._vocabulary or padded(load_vocabulary(self._folder), self.config.vocab_size)
        return self._vocabulary

    def fingerprint(self) -> str:
        """sha256 over config, tokenizer and every tensor's bytes."""
        return model_fingerprint(self)

    def close(self) -> None:
        """Let go of the maps."""
        self.constants.close()

    def _has_own_head(self, found: Mapping[str, FoundWeight]) -> bool:
        untied = self.architecture.tensor_table(replace(self.config, tied=False))
        tied = {entry.name for entry in self.architecture.tensor_table(self.config) if entry.tied_to is None}
        heads = [entry for entry in untied if entry.name not in tied]
        return any(_place(entry, found) is not None for entry in heads)

    def _format(self, weight: FoundWeight) -> NumberFormat:
        """The format that has these codes and scales; F32 where none has."""
        if not weight.is_quantized or len(weight.shape) != 2:
            return get_format("f32")
        bits, groups = self._bits(weight), self._scale(weight).shape[1]
        size = weight.shape[1] // groups
        region = "channel" if groups == 1 else f"g{size}"
        name = f"int{bits}_{region}"
        is_half = groups == 1 or _are_halves(self._scale(weight))
        if self._zero_point(weight) is not None:
            name = f"{name}_asym" if is_half else ""
        elif not is_half:
            name += "_f32"
        # Blocks that run over the end of a row, and sizes without a format, become the exact floats.
        fits = weight.shape[1] % groups == 0 and size * groups == weight.shape[1]
        try:
            found = find_format(name) if name and fits else None
        except FormatError:
            found = None
        return found or get_format("f32")

    def _planes(self, weight: FoundWeight, header: TensorHeader) -> Planes:
        if not weight.is_quantized:
            values = (
                self.constants.floats(weight.array)
                .astype(np.float32)
                .reshape(weight.shape[::-1] if weight.is_turned else weight.shape)
            )
            return _floats(values.T if weight.is_turned else values, header)
        codes, scale, zero_point = self._codes(weight), self._scale(weight), self._zero_point(weight)
        if header.format.name == "f32":
            return _floats(_decoded(codes, scale, zero_point, self._bits(weight)), header)
        parameters = {"scale": scale.astype(np.float16) if _is_half(header.format) else scale}
        if zero_point is not None:
            parameters["zero_point"] = zero_point
        return header.format.pack(Encoded(codes, parameters))

    def _bits(self, weight: FoundWeight) -> int:
        return weight.block.bits if weight.block is not None else self.constants.find(weight.array).element.bits

    def _codes(self, weight: FoundWeight) -> Array:
        """uint8 [out, in], zero in the middle where there is no zero point."""
        rows, columns = weight.shape
        if weight.block is not None:
            packed = self.constants.array(weight.array).reshape(rows, -1)
            return np.ascontiguousarray(bit_fields(packed, weight.block.bits)[:, :columns])
        element = self.constants.find(weight.array).element
        codes = self.constants.array(weight.array).reshape((columns, rows) if weight.is_turned else (rows, columns))
        if element in (ElementType.INT8, ElementType.INT4):
            codes = (codes.astype(np.int16) + (1 << (element.bits - 1))).astype(np.uint8)
        return np.ascontiguousarray(codes.T if weight.is_turned else codes)

    def _scale(self, weight: FoundWeight) -> FloatArray:
        """float32 [out, groups]."""
        rows = weight.shape[0]
        if weight.block is not None:
            return self.constants.floats(weight.block.scale).astype(np.float32).reshape(rows, -1)
        scale = self.constants.floats(weight.scale).astype(np.float32)
        return _spread(scale, rows, is_turned=weight.is_turned)

    def _zero_point(self, weight: FoundWeight) -> Array | None:
        """uint8 [out, groups]; None where it is the middle of the codes everywhere."""
        rows, bits = weight.shape[0], self._bits(weight)
        groups = self._scale(weight).shape[1]
        if weight.block is not None:
            if weight.block.zero_point is None:
                return None
            packed = self.constants.array(weight.block.zero_point).reshape(rows, -1)
            points = bit_fields(packed.view(np.uint8), bits)[:, :groups]
        else:
            element = self.constants.find(weight.array).element
            shift = 1 << (bits - 1) if element in (ElementType.INT8, ElementType.INT4) else 0
            stored = (
                self.constants.array(weight.zero_point).astype(np.int16) if weight.zero_point else np.zeros(1, np.int16)
            )
            if stored.size not in (1, rows, rows * groups):
                raise ContainerError(f"ONNX constant '{weight.zero_point}' does not fit '{weight.array}'")
            points = (_spread(stored, rows, is_turned=weight.is_turned) + shift).astype(np.uint8)
        return None if (points == 1 << (bits - 1)).all() else np.ascontiguousarray(points)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor of the family lies. is_ours: under our own name, with rows in our order."""

    weight: FoundWeight
    is_ours: bool


class _Finder:
    """What operators multiply with, look up, scale and add, by every name that it may have."""

    def __init__(self, constants: Constants) -> None:
        self.constants = constants
        self.initializers = constants.graph.initializers
        self.producers = {name: node for node in constants.graph.nodes for name in node.outputs}
        self.readers: dict[str, list[Node]] = {}
        for node in constants.graph.nodes:
            for name in node.inputs:
                self.readers.setdefault(name, []).append(node)

    def weights(self) -> dict[str, FoundWeight]:
        """Name -> weight, its own name before those of operators."""
        found: dict[str, FoundWeight] = {}
        for node in self.constants.graph.nodes:
            weight = self._quantized(node)
            if weight is not None:
                found.setdefault(_cleaned(weight.array), weight)
                for reader in (node, *self._readers_of(node)):
                    found.setdefault(_of_node(reader), weight)
        taken = {weight.array for weight in found.values()}
        for name, item in self.initializers.items():
            if name in taken or item.element not in (ElementType.FLOAT, ElementType.FLOAT16, ElementType.BFLOAT16):
                continue
            readers = self.readers.get(name, [])
            is_turned = len(item.shape) == 2 and any(_multiplies(node, name) for node in readers)
            shape = item.shape[::-1] if is_turned else item.shape
            weight = FoundWeight(shape, name, is_turned)
            found.setdefault(_cleaned(name), weight)
            # Of a norm, the operators also read a power and an epsilon.
            for reader in readers if prod(shape) > 1 else ():
                found.setdefault(_of_node(reader), weight)
        return found

    def _quantized(self, node: Node) -> FoundWeight | None:
        inputs = [constant_behind(name, self.producers) for name in node.inputs]
        if node.operation in ("MatMulNBits", "GatherBlockQuantized"):
            block = block_weight(node, inputs, self.constants)
            block.check(self.constants)
            return FoundWeight((block.rows, block.columns), block.codes, block=block)
        if node.operation == "DequantizeLinear" and self._is_matrix(inputs[0]):
            return self._scaled(node, inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else "")
        if node.operation == "DynamicQuantizeMatMul" and len(inputs) > 2 and self._is_matrix(inputs[1]):
            shape = self.constants.find(inputs[1]).shape[::-1]
            return FoundWeight(shape, inputs[1], True, None, inputs[2], inputs[3] if len(inputs) > 3 else "")
        if node.operation == "MatMulInteger" and len(inputs) > 1 and self._is_matrix(inputs[1]):
            scale = inputs[1].removesuffix("_quantized") + "_scale"
            if scale in self.initializers:
                shape = self.constants.find(inputs[1]).shape[::-1]
                return FoundWeight(shape, inputs[1], True, None, scale, inputs[3] if len(inputs) > 3 else "")
            # Ours: rows of codes, turned on the way, and a scale among what the sums are multiplied with.
            weight = weight_of(node, self.constants, self.producers, self.readers)
            if weight is not None:
                weight.check(self.constants)
                return FoundWeight(self.constants.find(inputs[1]).shape, inputs[1], False, None, weight.arrays[1])
        return None

    def _scaled(self, node: Node, codes: str, scale: str, zero_point: str) -> FoundWeight | None:
        block = node.attributes.get("block_size", 0)
        shape = self.constants.find(codes).shape
        is_turned = any(_multiplies(reader, node.outputs[0]) for reader in self.readers.get(node.outputs[0], []))
        axis = node.attributes.get("axis", 1)
        scales = self.constants.find(scale).shape
        # Of a vector of scales the axis must be that of the rows, as both runtimes and quantizers have it.
        rows_axis = 1 if is_turned else 0
        is_known = len(scales) == 0 or scales == (1,) or block or axis in (rows_axis, rows_axis - 2)
        if not is_known:
            raise ContainerError(f"ONNX constant '{codes}': a scale for each input of a product is not read here")
        return FoundWeight(shape[::-1] if is_turned else shape, codes, is_turned, None, scale, zero_point)

    def _readers_of(self, node: Node) -> list[Node]:
        """Operators that read what a node gives, also turned."""
        found = []
        for name in node.outputs:
            for reader in self.readers.get(name, []):
                found.append(reader)
                if reader.operation in ("Transpose", "Cast"):
                    found += [after for output in reader.outputs for after in self.readers.get(output, [])]
        return found

    def _is_matrix(self, name: str) -> bool:
        item = self.initializers.get(name)
        kinds = (ElementType.INT8, ElementType.UINT8, ElementType.INT4, ElementType.UINT4)
        return item is not None and len(item.shape) == 2 and item.element in kinds


def _multiplies(node: Node, name: str) -> bool:
    """Whether a value [in, out] is the second factor of a product."""
    is_turned = node.operation == "Gemm" and bool(node.attributes.get("transB", 0))
    return node.operation in _TAKES_SECOND and len(node.inputs) > 1 and node.inputs[1] == name and not is_turned


def _cleaned(name: str) -> str:
    name = _BEHIND.sub("", name)
    for theirs, usual in _RENAMED:
        name = name.replace(theirs, usual)
    return _LAST_NORM.sub("model.norm.", name)


def _of_node(node: Node) -> str:
    """`/model/layers.0/mlp/up_proj/MatMul_Q4` -> `model.layers.0.mlp.up_proj.weight`."""
    module = ".".join(part for part in node.name.split("/")[:-1] if part)
    return _cleaned(f"{module}.weight") if module else ""


def _place(entry: TensorEntry, found: Mapping[str, FoundWeight]) -> _Place | None:
    if entry.name in found and found[entry.name].shape == entry.shape:
        return _Place(found[entry.name], is_ours=True)
    source = chosen_source(entry.source, ())
    if not isinstance(source, Named | PermutedHeads | InterleavedHeads):
        return None
    for name, weight in found.items():
        # Exporters wrap the model, and its name comes before.
        if (name == source.name or name.endswith("." + source.name)) and weight.shape == entry.shape:
            return _Place(weight, is_ours=False)
    return None


def _matched(table: tuple[TensorEntry, ...], found: Mapping[str, FoundWeight], file: str) -> dict[str, _Place]:
    """Raises ContainerError naming tensors that were not found, and weights that nothing asked for."""
    places = {entry.name: place for entry in table if (place := _place(entry, found)) is not None}
    missing = [entry for entry in table if entry.name not in places and not entry.optional and entry.tied_to is None]
    # Tables that every runtime computes for itself.
    missing = [
        entry
        for entry in missing
        if isinstance(chosen_source(entry.source, ()), Named | PermutedHeads | InterleavedHeads)
    ]
    used = {place.weight.array for place in places.values()}
    strange = sorted({weight.array for weight in found.values() if weight.is_quantized and weight.array not in used})
    if missing or strange:
        unknown = f"; of its quantized weights none here answers to {', '.join(strange[:3])}" if strange else ""
        names = ", ".join(f"'{entry.name}' {list(entry.shape)}" for entry in missing[:3])
        lacks = f"{len(missing)} tensors were not recognised, first {names}" if missing else "not all was recognised"
        raise ContainerError(
            f"{file}: {lacks}{unknown}; weights are known by the names of constants or operators "
            "(/model/layers.0/mlp/up_proj/MatMul), so export with names, or convert the original model"
        )
    return places


def _spread(array: Array, rows: int, *, is_turned: bool) -> Array:
    """[rows, groups] of one number, one a row, or blocks [groups, rows] of a turned weight, [rows, groups] else."""
    if array.size in (1, rows):
        return np.ascontiguousarray(np.broadcast_to(array.reshape(-1, 1), (rows, 1)))
    return np.ascontiguousarray(array.T if is_turned else array).reshape(rows, -1)


def _decoded(codes: Array, scale: FloatArray, zero_point: Array | None, bits: int) -> FloatArray:
    columns = codes.shape[1]
    group = -(-columns // scale.shape[1])
    if zero_point is None:
        zero_point = np.full(scale.shape, 1 << (bits - 1), np.uint8)
    levels = codes.astype(np.float32) - np.repeat(zero_point.astype(np.float32), group, axis=1)[:, :columns]
    values: FloatArray = levels * np.repeat(scale, group, axis=1)[:, :columns]
    return values


def _floats(values: FloatArray, header: TensorHeader) -> Planes:
    stored = np.ascontiguousarray(values, dtype="<f4").reshape(header.rows, header.columns)
    return {"blocks": stored.view(np.uint8)}


def _are_halves(values: FloatArray) -> bool:
    with np.errstate(over="ignore", under="ignore"):
        return bool(np.array_equal(values.astype(np.float16).astype(np.float32), values))


def _is_half(number_format: NumberFormat) -> bool:
    parameters = getattr(number_format, "parameters", {})
    return "scale" in parameters and parameters["scale"].dtype == np.float16
