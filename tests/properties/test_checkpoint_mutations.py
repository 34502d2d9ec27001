# SPDX-License-Identifier: Apache-2.0
"""Damaged quantized checkpoints open, or are refused in one line; nothing larger than the file is allocated."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_files import CONFIG, random_tensor, tiny_model

from lilliput.checkpoints.model_source import Provenance
from lilliput.containers import FOLDERS, open_model
from lilliput.containers.container import Contents
from lilliput.containers.publish import publish
from lilliput.errors import LilliputError
from lilliput.formats import get_format
from lilliput.records import TensorHeader

SMALL = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
KINDS = {
    "gptq": "int4_g32", "awq": "int4_g32_asym", "bitsandbytes": "nf4", "compressed-tensors": "int3_g32_asym",
}  # fmt: skip
MORE = {"bitsandbytes": "int8_channel", "compressed-tensors": "mxfp4"}
CASES = [*KINDS.items(), *MORE.items()]
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
            fields = text["quantization_config"]
            field = data.draw(st.sampled_from(sorted(fields)))
            fields[field] = data.draw(st.sampled_from([None, 0, -1, 3, 1 << 40, "x", [], {}, [1 << 40], True]))
            (damaged / "config.json").write_text(json.dumps(text))
    weights.write_bytes(content)
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
