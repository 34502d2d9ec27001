# SPDX-License-Identifier: Apache-2.0
"""Damaged quantized checkpoints open, or are refused in one line; nothing larger than the file is allocated."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from model_files import CONFIG, random_tensor, tiny_model

from lilliput.checkpoints.model_source import Provenance
from lilliput.containers import FOLDERS, open_model
from lilliput.containers.container import Contents
from lilliput.containers.publish import publish
from lilliput.errors import ContainerError, LilliputError
from lilliput.formats import get_format
from lilliput.records import TensorHeader

SMALL = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
KINDS = {
    "gptq": "int4_g32", "awq": "int4_g32_asym", "bitsandbytes": "nf4", "compressed-tensors": "int3_g32_asym",
}  # fmt: skip
MORE = {"bitsandbytes": "int8_channel", "compressed-tensors": "mxfp4", "mlx": "int4_g64_affine"}
CASES = [
    *KINDS.items(),
    *MORE.items(),
    ("mlx", "nvfp4"),
    ("compressed-tensors", "fp8_e4m3_channel"),
    ("gptq", "int3_g32"),
]
# Smaller damage says nothing that the first found does not.
NO_SHRINKING = (Phase.explicit, Phase.reuse, Phase.generate)
WRONG = [None, 0, -1, 3, 1 << 40, "x", [], {}, [1 << 40], True]
# A few copies of the largest array, as float32.
LIMIT = 16_000_000


def folder_of(container_name: str, kind: str, target: Path) -> Path:
    fields = {**SMALL, "num_key_value_heads": 1}
    contents, tensors = tiny_model(get_format(kind), **fields)
    for name in ("token_embd.weight", "output.weight"):
        tensors[name] = random_tensor(name, tensors[name].shape, get_format("f32"), 1)
    headers = tuple(TensorHeader(tensor.name, tensor.shape, tensor.format) for tensor in tensors.values())
    provenance = Provenance(huggingface_config={**CONFIG, **fields})
    made = Contents(contents.architecture, contents.config, contents.vocabulary, provenance, headers)
    container = next(item for item in FOLDERS if item.name == container_name)
    publish(container, made, tensors.values(), target)
    return target


@pytest.mark.parametrize(("container", "kind"), CASES)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_is_one_line_or_opens(container: str, kind: str, tmp_path: Path, data: st.DataObject) -> None:
    whole = tmp_path / "whole"
    if not whole.exists():
        folder_of(container, kind, whole)
    damaged = tmp_path / "damaged"
    shutil.rmtree(damaged, ignore_errors=True)
    shutil.copytree(whole, damaged)
    weights = damaged / "model.safetensors"
    content = bytearray(weights.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    match data.draw(st.sampled_from(["header", "array", "cut", "config"])):
        case "header":
            content[data.draw(st.integers(0, header - 1))] = data.draw(st.integers(0, 255))
        case "array":
            for _ in range(8):
                content[data.draw(st.integers(header, len(content) - 1))] = data.draw(st.integers(0, 255))
        case "cut":
            del content[data.draw(st.integers(0, len(content) - 1)) :]
        case _:
            text = json.loads((damaged / "config.json").read_text())
            fields = text.get("quantization_config") or text["quantization"]
            field = data.draw(st.sampled_from(sorted(fields)))
            fields[field] = data.draw(st.sampled_from(WRONG))
            (damaged / "config.json").write_text(json.dumps(text))
    weights.write_bytes(content)
    assert_one_line_or_open(damaged)


@pytest.mark.parametrize(
    ("container", "kind"),
    [("onnx", "int4_g32"), ("onnx", "f32"), ("onnx-qdq", "int4_g32_asym"), ("onnx-int8", "int8_channel")],
)
@settings(
    max_examples=40, phases=NO_SHRINKING, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_damaged_onnx_folders_are_one_line_or_open(
    container: str, kind: str, tmp_path: Path, data: st.DataObject
) -> None:
    whole = tmp_path / "whole"
    if not whole.exists():
        folder_of(container, kind, whole)
    damaged = tmp_path / "damaged"
    shutil.rmtree(damaged, ignore_errors=True)
    shutil.copytree(whole, damaged)
    name = data.draw(st.sampled_from(["model.onnx", "model.onnx", "model.onnx.data", "config.json"]))
    content = bytearray((damaged / name).read_bytes())
    if name == "config.json":
        text = json.loads(content)
        field = data.draw(st.sampled_from(sorted(text)))
        text[field] = data.draw(st.sampled_from(WRONG))
        content = bytearray(json.dumps(text).encode())
    elif data.draw(st.booleans()):
        for _ in range(4):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    else:
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    (damaged / name).write_bytes(content)
    assert_one_line_or_open(damaged)


def test_an_opset_without_a_number_is_one_line(tmp_path: Path) -> None:
    folder = folder_of("onnx-qdq", "int4_g32_asym", tmp_path / "whole")
    content = bytearray((folder / "model.onnx").read_bytes())
    # The last field of the last opset: its number, made one of a field that nobody knows.
    place = content.rindex(b"\x10\x15")
    content[place] = 0x18
    (folder / "model.onnx").write_bytes(content)
    with pytest.raises(ContainerError, match=r"^model.onnx: damaged ONNX file: invalid literal"):
        open_model(folder)


def assert_one_line_or_open(damaged: Path) -> None:
    """Every tensor is decoded, or there is one line."""
    message = ""
    tracemalloc.start()
    try:
        source = open_model(damaged)
        with np.errstate(all="ignore"):
            for name in source.headers:
                source.tensor(name).dequantize()
    except LilliputError as failure:
        message = str(failure)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert "\n" not in message
    assert peak < LIMIT
