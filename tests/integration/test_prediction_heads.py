# SPDX-License-Identifier: Apache-2.0
"""Heads that predict several tokens ahead, beside a model of a known family: kept, told of, never dropped silently."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_llama import write_tiny_llama

from lilliput import workflows
from lilliput.containers import open_model
from lilliput.errors import CheckpointError, ContainerError, RecipeError
from lilliput.runtime.session import EngineOptions, Session
from lilliput.workflows import Guidance, QuantizeOptions

TOKENS = np.arange(3, 35)


def with_heads(folder: Path, prefix: str) -> Path:
    """A tiny Llama with a block of two linears, a norm and a joint projection more. prefix: of their names."""
    write_tiny_llama(folder)
    tensors = load_file(folder / "model.safetensors")
    rng = np.random.default_rng(2)
    width = tensors["model.norm.weight"].shape[0]
    extra = {
        "eh_proj.weight": (width, 2 * width), "self_attn.q_proj.weight": (width, width), "enorm.weight": (width,),
        "mlp.down_proj.weight": (width, 128),
    }  # fmt: skip
    for name, shape in extra.items():
        tensors[prefix + name] = rng.normal(size=shape).astype(np.float32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**described, "num_nextn_predict_layers": 1}))
    return folder


def block_past_the_last(folder: Path) -> str:
    write_tiny_llama(folder)
    return f"model.layers.{json.loads((folder / 'config.json').read_text())['num_hidden_layers']}."


@pytest.fixture(params=["mtp.layers.0.", "past the last"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    is_named = request.param != "past the last"
    return with_heads(tmp_path / "model", request.param if is_named else block_past_the_last(tmp_path / "other"))


def head_names(folder: Path) -> set[str]:
    return {item.name for item in open_model(folder).config.prediction_heads}


@pytest.mark.parametrize("suffix", [".safetensors", ".compressed-tensors"])
def test_they_are_kept_and_quantized_and_said(folder: Path, suffix: str, tmp_path: Path) -> None:
    result = workflows.quantize(folder, "int4_g32", tmp_path / f"made{suffix}")
    source, names = open_model(tmp_path / f"made{suffix}"), head_names(folder)
    assert len(names) == 4
    formats = {name.split(".")[-2]: source.headers[name].format.name for name in names}
    assert formats == {"eh_proj": "int4_g32", "q_proj": "int4_g32", "down_proj": "int4_g32", "enorm": "f32"}
    stored = load_file(folder / "model.safetensors")
    for name in names:
        # Half a step of an eighth of the largest of 32 normal values.
        assert np.abs(source.tensor(name).dequantize() - stored[name]).max() < 0.5
    assert any("4 tensors of heads that predict further tokens" in warning for warning in result.warnings)
    assert "predict further tokens" in result.ledger.read_text()
    # They change nothing in what is computed.
    for opened in (folder, tmp_path / f"made{suffix}"):
        Session(open_model(opened), EngineOptions(threads=1)).forward(TOKENS, "all")


def test_gguf_leaves_them_out_and_says_so(folder: Path, tmp_path: Path) -> None:
    result = workflows.quantize(folder, "Q8_0", tmp_path / "made.gguf")
    names = head_names(folder)
    assert not names & set(open_model(tmp_path / "made.gguf").headers)
    assert any("NOT in the output" in warning and ".safetensors" in warning for warning in result.warnings)
    assert "NOT in the output" in result.ledger.read_text()
    assert any("NOT in the output" in warning for warning in workflows.plan(folder, "Q8_0").plan.warnings)


def test_a_converted_file_does_not_lose_them_silently(folder: Path, tmp_path: Path) -> None:
    from lilliput.converting import convert

    workflows.quantize(folder, "Q8_0", tmp_path / "made.safetensors")
    with pytest.raises(ContainerError, match="predicts further tokens"):
        convert(tmp_path / "made.safetensors", tmp_path / "made.gguf")


def test_methods_with_text_take_them_without_inputs(folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "t.txt"
    text.write_text("Once upon a time there was a little model that said hello.\n" * 40)
    options = QuantizeOptions(effort="balanced", tokens=512, threads=1)
    workflows.quantize(folder, "int4_g32", tmp_path / "m.safetensors", guidance=Guidance((text,)), options=options)
    ledger = json.loads((tmp_path / "m.safetensors.ledger.json").read_text())
    methods = {entry["name"]: entry for entry in ledger["entries"]}
    projected = next(name for name in methods if "eh_proj" in name)
    assert "no inputs to calibrate on" in methods[projected]["reason"]
    with pytest.raises(RecipeError, match="further tokens"):
        workflows.plan(folder, "int4_g32", options=QuantizeOptions(transforms=("residual_rotation",)))


def test_other_tensors_that_nobody_knows_are_still_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"llama does not know.*side\.eh_proj"):
        open_model(with_heads(tmp_path / "model", "side."))


def test_a_block_that_the_config_does_not_announce_is_no_head(tmp_path: Path) -> None:
    folder = with_heads(tmp_path / "model", block_past_the_last(tmp_path / "other"))
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**described, "num_nextn_predict_layers": 0}))
    with pytest.raises(CheckpointError, match=r"llama does not know.*layers\.2\."):
        open_model(folder)
