# SPDX-License-Identifier: Apache-2.0
"""Look inside a model file without needing to know its family: metadata and tensors, from headers alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from lilliput.architectures import is_known
from lilliput.architectures.architecture import Json
from lilliput.checkpoints.huggingface import HuggingFaceModel
from lilliput.checkpoints.safetensors_reader import SafetensorsFile
from lilliput.checkpoints.shards import open_shards, read_json
from lilliput.containers import legacy_ggml
from lilliput.containers.gguf_model import open_parts
from lilliput.containers.gguf_types import MAGIC
from lilliput.containers.lilliput_safetensors import LilliputModel, LilliputSafetensors
from lilliput.containers.onnx.reader import OnnxFile, graph_files
from lilliput.errors import CheckpointError, LilliputError

# Longer lists (a vocabulary) are shown as their length and first entries.
_SHOWN = 16


@dataclass(frozen=True, slots=True)
class InspectedTensor:
    """One tensor as its file spells it. shape: [out, in].  format: lower case, as everywhere in lilliput.

    assumed: what a tensor of an unknown architecture is taken for, and why.
    """

    name: str
    shape: tuple[int, ...]
    format: str
    nbytes: int
    assumed: str = ""

    @property
    def weights(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a file says of itself."""

    container: str
    metadata: Mapping[str, Json]
    tensors: tuple[InspectedTensor, ...]

    def to_json(self) -> dict[str, Json]:
        """The contract of `lilliput inspect --json`; long lists become {"length", "first"}."""
        tensors: list[Json] = [
            {
                "name": tensor.name,
                "shape": list[Json](tensor.shape),
                "format": tensor.format,
                "bytes": tensor.nbytes,
                "bits_per_weight": tensor.nbytes * 8 / tensor.weights if tensor.weights else None,
                **({"assumed": tensor.assumed} if tensor.assumed else {}),
            }
            for tensor in self.tensors
        ]
        return {
            "container": self.container,
            "metadata": {key: shortened(value) for key, value in self.metadata.items()},
            "tensors": tensors,
        }


def inspect(path: Path) -> Inspection:
    """Metadata and tensors of a GGUF file or split, our own layout, safetensors, ONNX or a Hugging Face folder.

    Raises ContainerError or CheckpointError.
    """
    if path.is_dir():
        graphs = graph_files(path)
        return _inspect_onnx(graphs) if graphs else _inspect_folder(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file or folder")
    with path.open("rb") as file:
        is_gguf = file.read(len(MAGIC)) == MAGIC or path.suffix == ".gguf"
    if is_gguf:
        return _inspect_gguf(path)
    if LilliputSafetensors().recognises(path):
        return _inspect_own(path)
    if legacy_ggml.recognises(path):
        legacy = legacy_ggml.LegacyModel(path)
        headers = legacy.headers.values()
        found = tuple(InspectedTensor(item.name, item.shape, item.format.name, item.nbytes) for item in headers)
        return Inspection("ggml", legacy.metadata, found)
    if path.suffix == ".safetensors":
        shard = SafetensorsFile(path)
        return Inspection("safetensors", dict(shard.metadata), _stored(dict.fromkeys(shard.tensors, shard)))
    if path.suffix == ".onnx":
        return _inspect_onnx((path,))
    raise CheckpointError(f"{path.name}: not a GGUF, safetensors or ONNX file")


def shortened(value: Json) -> Json:
    """A value fit to be shown: long lists as {"length", "first"}, text that is not valid UTF-8 made printable."""
    if isinstance(value, list):
        first = [shortened(item) for item in value[:_SHOWN]]
        return first if len(value) <= _SHOWN else {"length": len(value), "first": first}
    if isinstance(value, dict):
        return {key: shortened(item) for key, item in value.items()}
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _inspect_gguf(path: Path) -> Inspection:
    parts = open_parts(path)
    tensors = tuple(
        InspectedTensor(tensor.name, tensor.shape, tensor.type.name, tensor.nbytes)
        for part in parts
        for tensor in part.tensors.values()
    )
    return Inspection("gguf", parts[0].metadata, tensors)


def _inspect_own(path: Path) -> Inspection:
    model = LilliputModel(path)
    tensors = tuple(
        InspectedTensor(header.name, header.shape, header.format.name, header.nbytes)
        for header in model.headers.values()
    )
    return Inspection("lilliput", model.metadata, tensors)


def _inspect_onnx(paths: tuple[Path, ...]) -> Inspection:
    files = [OnnxFile(path) for path in paths]
    # What an encoder and a decoder share is shown once.
    tensors = {
        name: InspectedTensor(name, file.shape(name), file.kind(name), file.nbytes(name))
        for file in files
        for name in file.weights
    }
    return Inspection("onnx", dict(files[0].graph.metadata), tuple(tensors.values()))


def _inspect_folder(folder: Path) -> Inspection:
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: no config.json here; this is not a Hugging Face model folder")
    config: dict[str, Json] = read_json(folder / "config.json")  # type: ignore[assignment]
    found = _stored(open_shards(folder))
    if not is_known(config):
        found = _with_assumptions(folder, found)
    return Inspection("huggingface", config, found)


def _with_assumptions(folder: Path, found: tuple[InspectedTensor, ...]) -> tuple[InspectedTensor, ...]:
    """Tensors with what they are taken for, where the folder opens."""
    try:
        with closing(HuggingFaceModel(folder)) as model:
            unknown = model.config.unknown
    except LilliputError:
        return found
    assumed = {item.name: item.assumed for item in unknown.tensors} if unknown is not None else {}
    return tuple(replace(item, assumed=assumed.get(item.name, "")) for item in found)


def _stored(files: Mapping[str, SafetensorsFile]) -> tuple[InspectedTensor, ...]:
    found = (files[name].tensors[name] for name in files)
    return tuple(InspectedTensor(item.name, item.shape, item.dtype.lower(), item.end - item.start) for item in found)
