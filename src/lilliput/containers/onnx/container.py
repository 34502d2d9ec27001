# SPDX-License-Identifier: Apache-2.0
"""ONNX: a folder with `model.onnx`, its weights in `model.onnx.data`, and what onnxruntime-genai wants beside them.

The graph comes from the family's Program, so every family whose operations are translated can be written. Weights lie
in one external file of any size; what is beside it is small. Values are ours, bit for bit: codes are laid out anew,
never rounded again. The reader that verifies the file (`reader`) knows nothing of the plan, only the graph.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from lilliput.architectures.architecture import EncoderDecoder, Json
from lilliput.architectures.program import Embed, Program
from lilliput.checkpoints.model_source import ModelSource
from lilliput.containers.container import Contents, PartLayout, Piece, PlacedTensor, Split, Written
from lilliput.containers.onnx.checkpoint import OnnxModel
from lilliput.containers.onnx.genai import genai_config
from lilliput.containers.onnx.graph import External, Graph
from lilliput.containers.onnx.operations import AttentionKind, GraphStyle, Half, tensors_read, translate
from lilliput.containers.onnx.reader import DECODER, ENCODER, MODEL, OnnxFile, graph_files, value_digest
from lilliput.containers.onnx.weights import PLAIN, PlainStorage, Storage, Weights, block_storage
from lilliput.containers.part_writer import disk_error, write_parts
from lilliput.errors import ContainerError
from lilliput.formats import NumberFormat
from lilliput.records import QuantizedTensor, Role, TensorHeader

DATA = "model.onnx.data"
# Files that make a folder a Hugging Face checkpoint, which this one is not; its own config.json is written.
_NOT_COPIED = ("config.json", "genai_config.json", "quantize_config.json")
# Larger arrays start on a page, so that runtimes can map them; small ones where vector loads are aligned.
_PAGE, _CACHE_LINE, _LARGE = 4096, 64, 1 << 16


@dataclass(frozen=True, slots=True)
class Layout:
    """storages: how each tensor is stored.  places: tensor and suffix -> where.  tensors: in file order."""

    storages: dict[str, Storage]
    places: dict[tuple[str, str], External]
    tensors: tuple[PlacedTensor, ...]
    size: int


class Onnx:
    """Weights as MatMulNBits and GatherBlockQuantized, attention as GroupQueryAttention: for ONNX Runtime."""

    name = "onnx"
    suffix = ".onnx"
    float_roles: tuple[Role, ...] = ()
    described = "an ONNX file"
    is_read = True
    attention: AttentionKind = "grouped"
    has_doubles = True
    holds_text = (
        "it holds integers of 2 to 8 bits with one scale a tensor, row or group (INT4_G32, INT4_G128_ASYM, "
        "INT8_CHANNEL, and Q4_0, Q5_0, Q8_0, TQ2_0, whose values are such), and F32, F16, BF16"
    )

    def recognises(self, path: Path) -> bool:
        """A folder with model.onnx."""
        return bool(graph_files(path))

    def open(self, path: Path) -> ModelSource:
        """Open a folder or graph. Raises ContainerError, CheckpointError, UnsupportedModelError."""
        return OnnxModel(path)

    def holds(self, number_format: NumberFormat) -> bool:
        """Whether some row length of this format can be stored."""
        return number_format.name in PLAIN or self.storage(number_format, 4096) is not None

    def storage(self, number_format: NumberFormat, columns: int) -> Storage | None:
        """How rows of so many weights are stored; None where they cannot be."""
        return PlainStorage() if number_format.name in PLAIN else block_storage(number_format, columns)

    def placed_storage(self, storage: Storage, header: TensorHeader, contents: Contents) -> Storage:
        """The same, with what depends on the tensor and its inputs. Raises ContainerError."""
        return storage

    def graph_style(self, contents: Contents, half: Half) -> GraphStyle:
        """What kind of graph is written."""
        return GraphStyle(self.attention, self.has_doubles, half)

    def layout(self, contents: Contents, file_name: str, split: Split) -> tuple[PartLayout, ...]:
        """All files of the folder `file_name`: the graph, the weights, what describes them.

        Raises ContainerError naming the tensor that cannot be held, UnsupportedModelError naming an operation.
        """
        if split.max_bytes is not None or split.max_tensors is not None:
            raise ContainerError("an ONNX model is one graph and one file of weights; leave --split-max-size out")
        placed = self.placed(contents)
        graphs = self._graphs(contents, placed)
        parts = [_part(file_name, name, graph.to_bytes()) for name, graph in graphs.items()]
        parts.append(PartLayout(f"{file_name}/{DATA}", b"", placed.tensors, placed.size))
        config: dict[str, Json] = dict(contents.provenance.huggingface_config)
        described = {"config.json": config} if config else {}
        if contents.config.task == "next_token" and self.graph_style(contents, "whole").fixed is None:
            described["genai_config.json"] = genai_config(contents)
        parts += [_part(file_name, name, _json_bytes(value)) for name, value in described.items()]
        for path in contents.provenance.side_files:
            if path.name in _NOT_COPIED:
                continue
            try:
                parts.append(_part(file_name, path.name, path.read_bytes()))
            except OSError as failure:
                raise ContainerError(f"{path.name}: cannot be read: {failure.strerror or failure}") from failure
        return tuple(parts)

    def write(self, parts: tuple[PartLayout, ...], tensors: Iterable[QuantizedTensor], folder: Path) -> Written:
        """Write the folder into `folder`, one tensor in memory at a time."""
        digests: dict[str, str] = {}
        try:
            (folder / parts[0].file_name).parent.mkdir()
        except OSError as failure:
            raise disk_error(str(folder), failure) from failure
        written = write_parts(parts, self.stored(parts, tensors, digests), folder)
        return Written(written.paths, digests)

    def stored(
        self, parts: tuple[PartLayout, ...], tensors: Iterable[QuantizedTensor], digests: dict[str, str]
    ) -> Iterator[QuantizedTensor]:
        """Tensors laid out for the file; puts the sha256 of each one's values into `digests`."""
        left_out = {placed.header.name for part in parts for placed in part.tensors if not placed.pieces}
        for tensor in tensors:
            if tensor.name in left_out:
                yield replace(tensor, planes={})
                continue
            digests[tensor.name] = value_digest(tensor)
            storage = self.storage(tensor.format, tensor.columns)
            # What is of another kind than planned is refused by the writer.
            yield replace(tensor, planes=storage.planes(tensor)) if storage else tensor

    def verify(self, written: Written) -> None:
        """Reopen each graph with our reader, decode every weight as its operators do, compare the values."""
        missing = set(written.digests)
        for path in graph_files(written.paths[0].parent):
            file = OnnxFile(path)
            try:
                for name in file.weights:
                    if file.value_digest(name) != written.digests.get(name):
                        raise ContainerError(
                            f"{path.name}: tensor '{name}' read back differs from what was written; check the disk"
                        )
                    missing.discard(name)
                self.check_graph(file)
            finally:
                file.close()
        if missing:
            raise ContainerError(f"{DATA}: no operator reads {', '.join(sorted(missing)[:4])}")

    def check_graph(self, file: OnnxFile) -> None:
        """Rules of this container beyond the values. Raises ContainerError."""

    def placed(self, contents: Contents) -> Layout:
        """Where each tensor lies among the weights. Raises ContainerError."""
        storages: dict[str, Storage] = {}
        places: dict[tuple[str, str], External] = {}
        tensors: list[PlacedTensor] = []
        position = 0
        read = self.read_names(contents)
        for header in contents.headers:
            if header.name not in read:
                tensors.append(PlacedTensor(header, ()))
                continue
            storages[header.name] = storage = self.storage_of(header, contents)
            pieces = []
            for array in storage.arrays(header):
                align = _PAGE if array.nbytes >= _LARGE else _CACHE_LINE
                position += -position % align
                pieces.append(Piece("planes", array.suffix, position, array.nbytes))
                places[header.name, array.suffix] = External(DATA, position, array.nbytes)
                position += array.nbytes
            tensors.append(PlacedTensor(header, tuple(pieces)))
        return Layout(storages, places, tuple(tensors), position)

    def programs(self, contents: Contents) -> tuple[Program, ...]:
        """The program, or an encoder's and a decoder's."""
        architecture, config = contents.architecture, contents.config
        if config.task == "sequence_to_sequence" and isinstance(architecture, EncoderDecoder):
            return architecture.encoder_program(config), architecture.program(config)
        return (architecture.program(config),)

    def read_names(self, contents: Contents) -> frozenset[str]:
        """Tensors that the graph reads. Raises ContainerError for one that it does not and that is not optional."""
        read = frozenset[str]().union(*map(tensors_read, self.programs(contents)))
        for header in contents.headers:
            if header.name not in read and header.name not in _optional(contents):
                raise ContainerError(
                    f"tensor '{header.name}': this model's program does not read it, so {self.described} cannot hold it"
                )
        return read

    def _looked_up(self, contents: Contents) -> frozenset[str]:
        operations = [item for program in self.programs(contents) for item in program.operations]
        return frozenset(item.weight for item in operations if isinstance(item, Embed))

    def storage_of(self, header: TensorHeader, contents: Contents) -> Storage:
        """How a tensor is stored. Raises ContainerError for one that cannot be."""
        kind = header.format.name.upper()
        if contents.sidecars.get(header.name):
            raise ContainerError(
                f"tensor '{header.name}': {self.described} cannot hold sidecars; write lilliput's own layout"
            )
        storage = self.storage(header.format, header.columns)
        if storage is not None:
            return self.placed_storage(storage, header, contents)
        if self.holds(header.format):
            raise ContainerError(
                f"tensor '{header.name}': rows of {header.columns} weights in {kind} do not divide into blocks of 16 "
                f"or more, as the operators of {self.described} need; keep it in F16"
            )
        raise ContainerError(
            f"tensor '{header.name}': {self.described} cannot hold {kind}; {self.holds_text}; choose one of these"
        )

    def _graphs(self, contents: Contents, placed: Layout) -> dict[str, Graph]:
        """File name -> graph."""
        halves: dict[str, Half] = {MODEL: "whole"}
        if contents.config.task == "sequence_to_sequence":
            halves = {ENCODER: "encoder", DECODER: "decoder"}
        made = {}
        for (name, half), program in zip(halves.items(), self.programs(contents), strict=True):
            graph = Graph()
            headers = {header.name: header for header in contents.headers}
            weights = Weights(graph, headers, placed.storages, placed.places)
            translate(program, weights, contents.config, self.graph_style(contents, half))
            for key, value in contents.metadata.items():
                graph.metadata[key] = value if isinstance(value, str) else json.dumps(value)
            made[name] = graph
        return made


def _optional(contents: Contents) -> frozenset[str]:
    """Tensors that a checkpoint may have and the program need not read: BERT's pooler beside sentence vectors."""
    table = contents.architecture.tensor_table(contents.config)
    return frozenset(entry.name for entry in table if entry.optional)


def _part(folder: str, name: str, data: bytes) -> PartLayout:
    return PartLayout(f"{folder}/{name}", data, (), len(data))


def _json_bytes(value: dict[str, Json]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8")
