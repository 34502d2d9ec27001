# SPDX-License-Identifier: Apache-2.0
"""The list of what can be written, and how an output's name chooses from it."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from lilliput.containers.awq import Awq
from lilliput.containers.bitsandbytes import BitsAndBytes, BitsAndBytesDouble
from lilliput.containers.compressed_tensors import CompressedTensors, EightBitInputs, StaticEightBitInputs
from lilliput.containers.container import Container
from lilliput.containers.gguf import Gguf
from lilliput.containers.gptq import Gptq
from lilliput.containers.lilliput_safetensors import LilliputSafetensors
from lilliput.containers.litert.container import LiteRt
from lilliput.containers.litert.integer_container import IntegerLiteRt
from lilliput.containers.mlx import Mlx
from lilliput.containers.onnx.container import Onnx
from lilliput.containers.onnx.profiles import OnnxInteger, OnnxStandard, OnnxTensorRt
from lilliput.containers.onnx.qonnx import Qonnx
from lilliput.errors import ContainerError

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
    IntegerLiteRt(),
    LiteRt(),
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
            raise ContainerError(f"{name}: not a container that is written here: {advice}")


def container_for(target: Path) -> Container:
    """What an output's name asks for. Raises ContainerError."""
    # Of two endings that fit (.onnx, .int8.onnx), the longer one is meant; it stands first.
    for container in (*CONTAINERS, *FOLDERS):
        if target.name.endswith(container.suffix):
            return container
    not_written(target.suffix)
    suffixes = [container.suffix for container in (*CONTAINERS, *FOLDERS)]
    near = get_close_matches(target.suffix, suffixes, n=3, cutoff=0.0)
    words = f"nearest: {', '.join(near)}" if target.suffix else "such as .gguf or .safetensors"
    raise ContainerError(
        f"{target}: the name must end in a known ending, which decides the file format; {words}; "
        "`lilliput formats` lists all"
    )
