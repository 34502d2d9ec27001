# SPDX-License-Identifier: Apache-2.0
"""Files: one door for everything that can be opened, and the list of what can be written."""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path

from lilliput.checkpoints.huggingface import HuggingFaceModel
from lilliput.checkpoints.model_source import ModelSource
from lilliput.checkpoints.shards import PICKLED_SUFFIXES
from lilliput.containers import legacy_ggml
from lilliput.containers.awq import Awq
from lilliput.containers.bitsandbytes import BitsAndBytes, BitsAndBytesDouble
from lilliput.containers.compressed_tensors import CompressedTensors, EightBitInputs, StaticEightBitInputs
from lilliput.containers.container import Container
from lilliput.containers.gguf import Gguf
from lilliput.containers.gptq import Gptq
from lilliput.containers.lilliput_safetensors import LilliputSafetensors
from lilliput.containers.litert.container import LiteRt
from lilliput.containers.mlx import Mlx
from lilliput.containers.onnx.container import Onnx
from lilliput.containers.onnx.profiles import OnnxInteger, OnnxStandard, OnnxTensorRt
from lilliput.containers.onnx.qonnx import Qonnx
from lilliput.errors import CheckpointError, ContainerError

__all__ = ["CONTAINERS", "FOLDERS", "container_for", "not_written", "open_model"]

# To add a container, write its file and add one line here.
CONTAINERS: tuple[Container, ...] = (
    Gguf(),
    LilliputSafetensors(),
)  # fmt: skip
# Folders for other runtimes, made from a Hugging Face folder and with its side files.
FOLDERS: tuple[Container, ...] = (
    CompressedTensors(),
    StaticEightBitInputs(),
    EightBitInputs(),
    Gptq(),
    Awq(),
    BitsAndBytes(),
    BitsAndBytesDouble(),
    Mlx(),
    OnnxStandard(),
    OnnxInteger(),
    OnnxTensorRt(),
    Onnx(),
    Qonnx(),
    LiteRt(),
)

_HUB_ID = re.compile(r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::(?P<file>[\w.-]+(?:/[\w.-]+)*))?")


def open_model(path_or_id: str | Path, *, revision: str | None = None) -> ModelSource:
    """Open a Hugging Face folder, a GGUF file (any part of a split), our own safetensors file, or a hub id.

    A hub id may name one file: `organization/name:Q4_K_M` or `organization/name:file.gguf`.
    revision: branch, tag or commit of a hub id.
    Raises CheckpointError, ContainerError or UnsupportedModelError, one line each.
    """
    path = Path(path_or_id)
    if path.is_dir():
        return _open_folder(path)
    if path.is_file():
        return _open_file(path)
    name = str(path_or_id)
    found = _HUB_ID.fullmatch(name)
    if found is not None and (found["file"] is not None or path.suffix != ".gguf"):
        # Half of this room's import time, and only hub ids need it.
        from lilliput.checkpoints.hub import download, download_file

        if found["file"] is not None:
            return _open_file(download_file(found["repository"], found["file"], revision))
        return HuggingFaceModel(download(name, revision), repository=name)
    raise CheckpointError(
        f"{name}: no such file or folder, and not a hub id of the form organization/name or organization/name:Q4_K_M"
    )


# Endings that people try, and what is meant for them.
_ELSEWHERE = {
    ("openvino", "xml"): "OpenVINO reads -o NAME.qdq.onnx as it is, and saves its IR from it (docs/onnx.md)",
    ("engine", "plan", "trt", "tensorrt"): "TensorRT builds its engine from -o NAME.tensorrt.onnx where it is used",
    ("exl2", "exl3", "exllama"): "its kernels are CUDA alone, so nothing could be proven; ExLlama reads -o NAME.gptq",
    ("mlpackage", "mlmodel", "coreml"): "Core ML's packages are not written; -o NAME.tflite and .onnx run on phones",
    ("keras", "h5", "tf", "pb"): "TensorFlow reads -o NAME.tflite (docs/litert.md)",
    ("bin", "pt", "pth", "ckpt"): "pickled weights run code where they are read; -o NAME.safetensors does not",
    ("ggml", "ggjt"): "the files of 2023 are read, not written; -o NAME.gguf took their place",
    ("hqq", "quanto", "torchao"): "it takes no weights of others; transformers reads -o NAME.compressed-tensors",
}  # fmt: skip


def not_written(name: str) -> None:
    """Raise ContainerError with what is meant for an ending or container that people try and that is not written."""
    wanted = name.lower().removeprefix(".")
    for names, advice in _ELSEWHERE.items():
        if wanted in names:
            raise ContainerError(f"{wanted}: not a container that is written here: {advice}")


def container_for(target: Path) -> Container:
    """What an output's name asks for. Raises ContainerError."""
    # Of two endings that fit (.onnx, .int8.onnx), the longer one is meant; it stands first.
    for container in (*CONTAINERS, *FOLDERS):
        if target.name.endswith(container.suffix):
            return container
    not_written(target.suffix)
    suffixes = [container.suffix for container in (*CONTAINERS, *FOLDERS)]
    near = get_close_matches(target.suffix, suffixes, n=3, cutoff=0.0)
    raise ContainerError(
        f"{target.name}: the name must end in a known ending, which decides the file format; nearest: "
        f"{', '.join(near)}; `lilliput formats` lists all"
    )


def _open_folder(folder: Path) -> ModelSource:
    inside = sorted(path.name for path in folder.glob("*.gguf"))
    if inside and not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder.name}: this folder holds GGUF files; give one of them, such as {inside[0]}")
    if Onnx().recognises(folder):
        return Onnx().open(folder)
    return HuggingFaceModel(folder)


def _open_file(path: Path) -> ModelSource:
    for container in CONTAINERS:
        if container.recognises(path):
            return container.open(path)
    if legacy_ggml.recognises(path):
        return legacy_ggml.LegacyModel(path)
    if path.suffix == ".onnx":
        return Onnx().open(path)
    if path.suffix in PICKLED_SUFFIXES:
        raise CheckpointError(
            f"{path.name}: pickled weights; unpickling runs code from the file, so it is refused; "
            "convert them to safetensors first"
        )
    raise CheckpointError(f"{path.name}: not a model file; give a GGUF file or the folder that holds config.json")
