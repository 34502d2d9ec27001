# SPDX-License-Identifier: Apache-2.0
"""`-o NAME.onnx`: planned, written, up to date, replaced; needs no package of the ONNX project."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_llama import write_tiny_llama

from lilliput import workflows
from lilliput.errors import ContainerError


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "m"
    return write_tiny_llama(folder, hidden=64, ffn=96, layers=1, heads=2, kv_heads=1, is_tied=True)


def test_a_folder_is_planned_to_the_byte_and_written_once(tiny: Path, tmp_path: Path) -> None:
    target = tmp_path / "m.onnx"
    made = workflows.quantize(tiny, "int4_g32", target)
    assert made.output[:2] == (target / "model.onnx", target / "model.onnx.data")
    assert workflows.plan(tiny, "int4_g32", target).bytes == made.bytes
    assert made.bytes == sum(path.stat().st_size for path in target.iterdir())
    names = {path.name for path in target.iterdir()}
    assert names >= {"genai_config.json", "config.json", "tokenizer.json", "tokenizer_config.json"}
    config = json.loads((target / "genai_config.json").read_text())
    assert (config["model"]["eos_token_id"], config["model"]["vocab_size"]) == (0, 384)
    assert workflows.quantize(tiny, "int4_g32", target).is_up_to_date
    other = workflows.quantize(tiny, "int8_channel", target, options=workflows.QuantizeOptions(force=True))
    assert other.bytes > made.bytes
    assert workflows.inspect(target).metadata["lilliput.recipe"] == "INT8_CHANNEL"


def test_the_plan_names_what_cannot_be_held(tiny: Path) -> None:
    with pytest.raises(ContainerError, match=r"'token_embd.weight': an ONNX file cannot hold NF4_G32"):
        workflows.plan(tiny, "nf4_g32", "m.onnx")
