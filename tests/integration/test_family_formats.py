# SPDX-License-Identifier: Apache-2.0
"""Formats that GGUF has no type for, from the command line to logits."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from header_models import header_model
from tiny_llama import TEXT, write_tiny_llama

from lilliput import workflows
from lilliput.containers import open_model
from lilliput.errors import ContainerError
from lilliput.formats import get_format
from lilliput.methods import METHODS
from lilliput.recipes.plan import resolve
from lilliput.records import NO_INPUTS
from lilliput.runtime.lowering import plain_tensor, say_decoded
from lilliput.runtime.session import Session

NAMES = [
    *("int4_g32", "int3_g32_asym", "int4_g32_affine", "int8_channel", "int4_tensor", "int6_channel_pow2"),
    *("fp8_e4m3_block128", "fp8_e5m2_tensor", "fp4_g32", "nf4_g32", "palette4_tensor", "palette3_rows16"),
    *(
        "pot4_g32",
        "fixed0.15",
        "ternary_g32",
        "binary_channel",
        "int4_g32+columns2",
        "int3_g32+sparse1",
        "q4_k+sparse1",
    ),
]
Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("name", NAMES)
def test_slabs_give_the_planes_of_the_whole_tensor(
    name: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Small slabs and pieces, so that the tiny model has several of each.
    monkeypatch.setattr("lilliput.pipeline.quantize_tensors.SLAB_WEIGHTS", 4096)
    monkeypatch.setattr("lilliput.methods.searched_scales.PIECE_WEIGHTS", 1024)
    monkeypatch.setattr("lilliput.formats.regions.PIECE_WEIGHTS", 512)
    output = tmp_path / "tiny.safetensors"
    result = workflows.quantize(model, name, output)
    monkeypatch.undo()
    source, found = open_model(model), open_model(output)
    tensor = "blk.0.ffn_down.weight"
    assert found.headers[tensor].format.name == name
    weight = source.tensor(tensor).dequantize()
    expected = METHODS["searched_scales"].quantize(get_format(name), weight, NO_INPUTS, threads=1)
    for plane, array in expected.items():
        np.testing.assert_array_equal(found.tensor(tensor).planes[plane], array)
    entry = next(e for e in json.loads(result.ledger.read_text())["entries"] if e["name"] == tensor)
    error = ((found.tensor(tensor).dequantize() - weight) ** 2).sum() / (weight**2).sum()
    assert entry["relative_error"] == pytest.approx(error, rel=1e-5)


@pytest.mark.parametrize("name", ["nf4", "palette4_tensor"])
def test_the_engine_runs_the_values_of_the_file_and_says_so_once(
    name: str, model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output, plain = tmp_path / "tiny.safetensors", tmp_path / "plain.safetensors"
    workflows.quantize(model, name, output)
    say_decoded.cache_clear()
    with caplog.at_level(logging.WARNING):
        logits = Session(open_model(output)).forward([1, 5, 7, 2], output="all")
        Session(open_model(output))
    said = [record.getMessage() for record in caplog.records if "plain floats" in record.getMessage()]
    assert len(said) == 1
    assert name.upper() in said[0]
    # Quantizing the decoded values to F32 changes nothing: the same numbers in a format that the engine knows.
    workflows.quantize(output, "F32" if name == "nf4" else "F16", plain)
    np.testing.assert_array_equal(Session(open_model(plain)).forward([1, 5, 7, 2], output="all"), logits)


def test_decoded_tensors_are_f16_only_where_that_is_exact(model: Path, tmp_path: Path) -> None:
    for name, expected in (("palette4_tensor", "f16"), ("int4_g32", "f32"), ("int8_channel_pow2", "f16")):
        output = tmp_path / f"{name}.safetensors"
        workflows.quantize(model, name, output)
        tensor = open_model(output).tensor("blk.0.ffn_up.weight")
        plain = plain_tensor(tensor)
        assert plain.format.name == expected
        np.testing.assert_array_equal(plain.dequantize(), tensor.dequantize())


def test_plan_and_quantize_say_before_any_work_that_gguf_cannot_hold_it(run: Run, model: Path, tmp_path: Path) -> None:
    code, out, err = run("plan", model, "--to", "int4_g32")
    assert code == 0
    assert "INT4_G32" in out
    assert "GGUF has no type for INT4_G32: the output will be lilliput's own layout (-o NAME.safetensors)" in err
    code, _, err = run("quantize", model, "--to", "int4_g32", "-o", tmp_path / "x.gguf")
    assert code == 1
    assert "GGUF has no type for INT4_G32; give -o NAME.safetensors" in err
    assert not (tmp_path / "x.gguf").exists()


def test_the_plan_knows_the_exact_size_of_our_own_layout(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _, out, _ = run("plan", model, "--to", "int4_g32_asym", "--json")
    planned = json.loads(out)["bytes"]
    code, out, _ = run("quantize", model, "--to", "int4_g32_asym", "--json")
    assert code == 0
    (written,) = json.loads(out)["output"]
    assert written.endswith("-INT4_G32_ASYM.safetensors")
    assert Path(written).stat().st_size == planned


def test_rows_that_do_not_divide_fall_back_within_the_family() -> None:
    plan = resolve(header_model(hidden_size=576, heads=9), "int4_g128_asym", statistics_present=False)
    formats = {row.shape[1]: row.format.name for row in plan.rows if len(row.shape) > 1}
    assert formats == {576: "int4_g64_asym", 1536: "int4_g128_asym"}
    assert any("fall back" in warning for warning in plan.warnings)


def test_every_command_takes_such_a_file(run: Run, model: Path, tmp_path: Path) -> None:
    output, text = tmp_path / "tiny.safetensors", tmp_path / "text.txt"
    text.write_text(TEXT * 30)
    assert run("quantize", model, "--to", "nf4_g32", "--text", text, "-o", output)[0] == 0
    code, out, _ = run("inspect", output)
    assert code == 0
    assert "nf4_g32" in out.lower()
    assert run("run", output, "--prompt", "a", "--max-tokens", 3)[0] == 0
    code, out, _ = run("eval", model, output, "--text", text, "--json")
    assert code == 0
    assert "nf4" in out.lower() or json.loads(out)


def test_a_file_that_asks_for_an_illegal_format_is_refused(model: Path, tmp_path: Path) -> None:
    output = tmp_path / "tiny.safetensors"
    workflows.quantize(model, "int4_g32", output)
    data = output.read_bytes()
    assert data.count(b"int4_g32") > 2
    output.write_bytes(data.replace(b"int4_g32", b"int9_g32"))
    with pytest.raises(ContainerError, match="unknown number format 'int9_g32'"):
        open_model(output)


@pytest.mark.parametrize(("method", "name"), [("sparse_gpt_2_4", "int4_g32"), ("wanda", "q4_0")])
def test_masks_work_from_end_to_end(method: str, name: str, run: Run, tmp_path: Path) -> None:
    small = write_tiny_llama(tmp_path / "small", hidden=64, ffn=64, layers=1)
    output, text = tmp_path / "small.safetensors", tmp_path / "text.txt"
    text.write_text(TEXT * 8)
    code, _, err = run("quantize", small, "--to", name, "--method", method, "--text", text, "-o", output)
    assert code == 0, err
    ledger = json.loads((tmp_path / "small.safetensors.ledger.json").read_text())
    done = {entry["name"]: entry["method"] for entry in ledger["entries"]}
    assert done["blk.0.attn_q.weight"] in (method, METHODS[method].baseline)
    assert (open_model(output).tensor("blk.0.ffn_down.weight").dequantize() == 0).mean() >= 0.5
    assert (open_model(output).tensor("token_embd.weight").dequantize() == 0).mean() < 0.3
