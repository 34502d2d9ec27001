# SPDX-License-Identifier: Apache-2.0
"""Static inputs: one command finds their ranges, the file holds them, and what runs the file multiplies integers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run
from safetensors.numpy import load_file, save_file
from tiny_llama import TEXT, write_tiny_llama
from transformers import AutoModelForCausalLM

from lilliput import workflows
from lilliput.activations import RANGE_METHODS, FixedScale, RangeObserver
from lilliput.activations.stored_range import INPUT_SCALE, INPUT_ZERO_POINT, STORED_INPUTS, fixed_scale_of
from lilliput.containers import open_model
from lilliput.converting import ConvertOptions, convert
from lilliput.errors import CalibrationError, ContainerError, RecipeError, RuntimeModelError
from lilliput.planning import text_chunks
from lilliput.runtime.session import EngineOptions, Session

TOKENS = 256
LAYER = "blk.1.ffn_down.weight"
MODULE = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("static") / "tiny", hidden=64, ffn=96)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT * 20)
    return path


def quantized(folder: Path, text: Path, output: Path, activations: str, to: str = "INT8_CHANNEL") -> Path:
    options = workflows.QuantizeOptions(activations=activations, effort="fast", tokens=TOKENS, force=True)
    workflows.quantize(folder, to, output, guidance=workflows.Guidance(text=(text,)), options=options)
    return output


def seen_by_transformers(folder: Path, text: Path) -> RangeObserver:
    """What enters LAYER in the float model."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    observer = RangeObserver()
    model.get_submodule(MODULE).register_forward_pre_hook(lambda _, inputs: observer.observe(inputs[0][0].numpy()))
    with torch.no_grad():
        for chunk in text_chunks(open_model(folder), (text,), TOKENS):
            model(torch.from_numpy(chunk.astype(np.int64))[None])
    return observer


@pytest.mark.parametrize("inputs", STORED_INPUTS)
@pytest.mark.parametrize("method", RANGE_METHODS)
def test_the_file_holds_the_range_that_each_method_finds_on_the_text(
    method: str, inputs: str, folder: Path, text: Path, tmp_path: Path
) -> None:
    file = open_model(quantized(folder, text, tmp_path / "m.safetensors", f"{inputs}:{method}"))
    static = STORED_INPUTS[inputs]
    assert file.headers[LAYER].inputs == static
    expected = seen_by_transformers(folder, text).fixed_scale(static, method)
    found = fixed_scale_of(file.tensor(LAYER).sidecars, static.middle)
    # Another program computes the same inputs with sums in another order.
    assert found.scale == pytest.approx(expected.scale, rel=1e-4)
    assert abs(found.zero_point - expected.zero_point) <= 1
    # Every linear layer has one, the head too; no vector and no table of tokens has.
    static_layers = {name for name, header in file.headers.items() if header.inputs is not None}
    layers = {name for name, header in file.headers.items() if name.startswith("blk") and len(header.shape) == 2}
    assert static_layers == layers | {"output.weight"}


def test_methods_find_different_ranges(folder: Path, text: Path, tmp_path: Path) -> None:
    scales = {
        method: fixed_scale_of(
            open_model(quantized(folder, text, tmp_path / f"{method}.safetensors", f"int8_static:{method}"))
            .tensor(LAYER)
            .sidecars,
            128,
        ).scale
        for method in RANGE_METHODS
    }
    assert len(set(scales.values())) == len(RANGE_METHODS)
    assert max(scales, key=lambda method: scales[method]) == "min_max"


@pytest.mark.parametrize("to", ["INT8_CHANNEL", "INT4_G32", "Q8_0"])
def test_a_session_without_any_option_computes_with_the_ranges_of_the_file(
    to: str, folder: Path, text: Path, tmp_path: Path
) -> None:
    source = open_model(quantized(folder, text, tmp_path / "m.safetensors", "int8_static_asym:mse", to))
    # So few that attention multiplies floats in every way.
    tokens = np.arange(5, 13)

    def logits(activations: str) -> np.ndarray:
        return Session(source, EngineOptions(threads=1, activations=activations)).forward(tokens, "all")

    # The default, then as the measurement of a file, then by name: all multiply the same integers.
    static = logits("int8_static_asym")
    assert np.array_equal(logits("engine"), static)
    assert np.array_equal(logits("file"), static)
    assert not np.array_equal(logits("int8_token_asym"), static)
    assert not np.array_equal(logits("f32"), static)
    with pytest.raises(RuntimeModelError, match="'int8_static' need the range of its inputs"):
        logits("int8_static")


def test_feedback_block_by_block_and_smoothing_get_ranges_too(folder: Path, text: Path, tmp_path: Path) -> None:
    options = workflows.QuantizeOptions(
        activations="int8_static", tokens=TOKENS, transforms=("smooth_quant:0.5",), effort="balanced"
    )
    guidance = workflows.Guidance(text=(text,))
    workflows.quantize(folder, "INT8_CHANNEL", tmp_path / "m.safetensors", guidance=guidance, options=options)
    smooth = open_model(tmp_path / "m.safetensors")
    plain = open_model(quantized(folder, text, tmp_path / "p.safetensors", "int8_static"))
    name = "blk.0.attn_q.weight"
    # Inputs are smoothed, so that their range is another.
    scales = [fixed_scale_of(model.tensor(name).sidecars, 128).scale for model in (smooth, plain)]
    assert scales[0] != pytest.approx(scales[1], rel=0.05)


def test_rules_of_a_recipe_give_each_role_its_own_inputs(folder: Path, text: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mix.yaml"
    recipe.write_text(
        "name: mix\nrules:\n"
        "  - {role: attention, format: INT8_CHANNEL, inputs: 'int8_static:percentile'}\n"
        "  - {role: ffn, format: INT4_G32, inputs: int8_static_asym}\n"
        "  - {match: '*', format: INT8_CHANNEL}\n"
    )
    guidance = workflows.Guidance(text=(text,))
    options = workflows.QuantizeOptions(effort="fast", tokens=TOKENS)
    report = workflows.plan(folder, str(recipe), guidance=guidance, options=options)
    rows = {row["name"]: row for row in report.to_json()["tensors"]}
    assert rows["blk.0.attn_q.weight"]["inputs"] == "int8_static:percentile"
    assert "inputs int8_static_asym:min_max" in str(rows[LAYER]["reason"])
    assert rows["output.weight"]["inputs"] is None
    made = workflows.quantize(folder, str(recipe), tmp_path / "m.safetensors", guidance=guidance, options=options)
    headers = open_model(made.output[0]).headers
    assert headers["blk.0.attn_q.weight"].inputs == STORED_INPUTS["int8_static"]
    assert headers[LAYER].inputs == STORED_INPUTS["int8_static_asym"]
    assert headers["output.weight"].inputs is None
    assert made.bytes == made.output[0].stat().st_size


@pytest.mark.parametrize("activations", ["int8_static_asym:mse", "int8_static"])
def test_ranges_go_into_a_compressed_tensors_folder_and_come_back(
    activations: str, folder: Path, text: Path, tmp_path: Path
) -> None:
    ours = quantized(folder, text, tmp_path / "m.safetensors", activations)
    there, again = tmp_path / "m.w8a8-static", tmp_path / "again.safetensors"
    options = ConvertOptions(base=folder, format="INT8_CHANNEL")
    convert(ours, there, options)
    convert(there, again)
    arrays = load_file(there / "model.safetensors")
    sidecars = open_model(ours).tensor(LAYER).sidecars
    fixed = fixed_scale_of(sidecars, 128)
    assert arrays[f"{MODULE}.input_scale"].tolist() == [np.float32(fixed.scale)]
    is_symmetric = activations == "int8_static"
    (group,) = json.loads((there / "config.json").read_text())["quantization_config"]["config_groups"].values()
    assert group["input_activations"]["symmetric"] is is_symmetric
    assert (f"{MODULE}.input_zero_point" in arrays) is not is_symmetric
    if not is_symmetric:
        assert arrays[f"{MODULE}.input_zero_point"].tolist() == [fixed.zero_point - 128]
    # Symmetric inputs of such a folder use the code -128, as ours with a zero point in the middle do.
    for model in (there, again):
        read = open_model(model)
        assert read.headers[LAYER].inputs == STORED_INPUTS["int8_static_asym"]
        assert fixed_scale_of(read.tensor(LAYER).sidecars, 128) == fixed
    tokens = np.arange(5, 40)
    logits = [Session(open_model(model), EngineOptions(threads=1)).forward(tokens, "all") for model in (there, again)]
    assert np.array_equal(*logits)
    # And from there into a folder again, array for array.
    convert(again, tmp_path / "third.w8a8-static", ConvertOptions(base=folder))
    third = load_file(tmp_path / "third.w8a8-static" / "model.safetensors")
    assert set(third) == set(arrays)
    assert all(np.array_equal(third[name], arrays[name]) for name in arrays)


def test_one_run_writes_our_layout_and_a_folder_with_the_same_ranges(
    folder: Path, text: Path, tmp_path: Path, run: Run
) -> None:
    outputs = [tmp_path / "m.safetensors", tmp_path / "m.w8a8-static"]
    words = [word for output in outputs for word in ("-o", output)]
    status, _, problems = run(
        "quantize", folder, "--to", "INT8_CHANNEL", "--effort", "fast", "--activations", "INT8_STATIC_ASYM:entropy",
        "--text", text, "--tokens", TOKENS, *words,
    )  # fmt: skip
    assert status == 0, problems
    found = [fixed_scale_of(open_model(output).tensor(LAYER).sidecars, 128) for output in outputs]
    assert found[0] == found[1]


def test_containers_without_a_place_for_ranges_say_so(folder: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(ContainerError, match="GGUF cannot hold sidecars"):
        quantized(folder, text, tmp_path / "m.gguf", "int8_static", "Q8_0")
    ours = quantized(folder, text, tmp_path / "m.safetensors", "int8_static", "Q8_0")
    result = convert(ours, tmp_path / "moved.gguf")
    assert any("15 layers have static inputs, whose ranges have no place in gguf" in note for note in result.notes)
    assert open_model(tmp_path / "moved.gguf").headers[LAYER].inputs is None


def test_static_inputs_that_make_no_sense_are_refused(folder: Path, text: Path, tmp_path: Path) -> None:
    def options(words: str) -> workflows.QuantizeOptions:
        return workflows.QuantizeOptions(activations=words, effort="fast")

    with pytest.raises(CalibrationError, match=r"inputs int8_static:min_max have a range, .* give --text FILE"):
        workflows.plan(folder, "INT8_CHANNEL", options=options("int8_static"))
    with pytest.raises(
        RecipeError, match=r"--activations: unknown static inputs 'int8_token'; .* int8_static and int8_"
    ):
        workflows.plan(folder, "INT8_CHANNEL", options=options("int8_token"))
    with pytest.raises(
        RecipeError, match="unknown ranges 'best' of int8_static; known: min_max, percentile, mse, entro"
    ):
        workflows.plan(folder, "INT8_CHANNEL", options=options("int8_static:best"))
    guidance = workflows.Guidance(text=(text,))
    with pytest.raises(RecipeError, match="no layer of this plan has any; choose INT8_CHANNEL"):
        workflows.plan(folder, "NF4", guidance=guidance, options=options("int8_static"))


@pytest.mark.parametrize(
    ("key", "array"),
    [(INPUT_SCALE, np.float32([0.0])), (INPUT_SCALE, np.float32([np.nan])), (INPUT_ZERO_POINT, np.int32([300]))],
)
def test_a_damaged_range_is_refused_where_the_file_is_run(
    key: str, array: np.ndarray, folder: Path, text: Path, tmp_path: Path
) -> None:
    file = quantized(folder, text, tmp_path / "m.safetensors", "int8_static_asym")
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
    start = 8 + length + header[f"{LAYER}.sidecar.{key}"]["data_offsets"][0]
    with file.open("r+b") as opened:
        opened.seek(start)
        opened.write(array.tobytes())
    with pytest.raises(
        RuntimeModelError, match=r"ffn_down.weight: its inputs have scale .*; the file is damaged, make it again"
    ):
        Session(open_model(file), EngineOptions(threads=1))


def test_ranges_of_foreign_folders_are_read_in_every_spelling(folder: Path, text: Path, tmp_path: Path) -> None:
    ours = quantized(folder, text, tmp_path / "m.safetensors", "int8_static_asym")
    there = tmp_path / "m.w8a8-static"
    convert(ours, there, ConvertOptions(base=folder, format="INT8_CHANNEL"))
    weights = there / "model.safetensors"
    arrays = load_file(weights)
    # A scalar without an axis, and a zero point as wide as some tools write it.
    arrays[f"{MODULE}.input_scale"] = np.array(0.125, np.float32)
    arrays[f"{MODULE}.input_zero_point"] = np.array(-7, np.int32)
    save_file(arrays, weights, metadata={"format": "pt"})
    assert fixed_scale_of(open_model(there).tensor(LAYER).sidecars, 0) == FixedScale(0.125, 121)
