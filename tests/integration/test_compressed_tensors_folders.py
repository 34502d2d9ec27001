# SPDX-License-Identifier: Apache-2.0
"""A model goes into a compressed-tensors folder, and the folder is a model like any other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from family_folders import write_family
from safetensors.numpy import load_file, save_file
from tiny_llama import TEXT, write_tiny_llama

from lilliput import workflows
from lilliput.calibration.statistics_file import write_statistics
from lilliput.containers import open_model
from lilliput.containers.gptq import GptqPacking
from lilliput.converting import ConvertOptions, convert
from lilliput.errors import ContainerError
from lilliput.evaluation.model_logits import EvaluationOptions
from lilliput.formats import Encoded, get_format
from lilliput.generating import GenerateOptions, generate
from lilliput.records import InputStatistics, Statistics, TensorHeader


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "m"
    return write_tiny_llama(folder, hidden=64, ffn=96, layers=1, heads=2, kv_heads=1, is_tied=True)


def test_a_folder_runs_is_measured_and_is_written_again_without_loss(tiny: Path, tmp_path: Path) -> None:
    target = tmp_path / "m.compressed-tensors"
    made = workflows.quantize(tiny, "int8_channel", target)
    assert made.output[0] == target / "model.safetensors"
    assert made.ledger == tmp_path / "m.compressed-tensors.ledger.json"
    assert workflows.plan(tiny, "int8_channel", target).bytes == pytest.approx(made.bytes, abs=64)
    assert workflows.quantize(tiny, "int8_channel", target).is_up_to_date
    # Its name decides nothing once it is written.
    renamed = target.rename(tmp_path / "renamed")
    text = tmp_path / "text.txt"
    text.write_text(TEXT * 8)
    chosen = EvaluationOptions(context=64, measure_floor=False, threads=1)
    found = workflows.evaluate(tiny, [renamed], text, options=chosen)
    assert 0.0 < found.files[0].divergence.mean_kld.value < 0.01
    assert generate(renamed, "The ", options=GenerateOptions(max_tokens=4)).token_ids
    again = tmp_path / "again.compressed-tensors"
    workflows.quantize(renamed, "int8_channel", again)
    assert open_model(again).fingerprint() == open_model(renamed).fingerprint()


def test_a_format_alone_leaves_embedding_and_head_in_floats_also_after_a_transform(tiny: Path) -> None:
    options = workflows.QuantizeOptions(transforms=("untie",))
    report = workflows.plan(tiny, "int4_g32", "m.compressed-tensors", options=options)
    formats = {row.name: row.format.name for row in report.plan.rows}
    assert (formats["token_embd.weight"], formats["output.weight"]) == ("f32", "f32")
    assert formats["blk.0.ffn_up.weight"] == "int4_g32"
    # Other outputs quantize them as before.
    elsewhere = workflows.plan(tiny, "int4_g32", "m.safetensors", options=options)
    assert {row.format.name for row in elsewhere.plan.rows if len(row.shape) == 2} == {"int4_g32"}


def test_the_plan_says_what_the_folder_cannot_hold(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ContainerError, match=r"'blk.0.attn_q.weight' .* cannot hold POT4_G32; it holds int2 to int8"):
        workflows.plan(tiny, "pot4_g32", "m.compressed-tensors")
    with pytest.raises(ContainerError, match="cannot hold POT4_G32"):
        workflows.quantize(tiny, "pot4_g32", tmp_path / "m.compressed-tensors")
    assert list(tmp_path.iterdir()) == []


def test_an_untied_head_is_said_in_the_config(tiny: Path, tmp_path: Path) -> None:
    target = tmp_path / "m.compressed-tensors"
    workflows.quantize(tiny, "int4_g32", target, options=workflows.QuantizeOptions(transforms=("untie",)))
    config = json.loads((target / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    assert "output.weight" in open_model(target).headers


@pytest.mark.parametrize("kind", ["gemma2", "gemma3_text", "opt", "phi"])
def test_other_families_come_back_with_every_value(kind: str, tmp_path: Path) -> None:
    source = write_family(tmp_path / "m", kind)
    target = tmp_path / "made.compressed-tensors"
    workflows.quantize(source, "int8_channel", target, options=workflows.QuantizeOptions(method="round_to_nearest"))
    before, after = open_model(source), open_model(target)
    plain = [name for name, header in after.headers.items() if header.format.name == "f32"]
    # Gemma's norms are stored less one.
    assert any("norm" in name for name in plain)
    for name in plain:
        assert np.array_equal(before.tensor(name).dequantize(), after.tensor(name).dequantize()), name
    assert "int8_channel" in {header.format.name for header in after.headers.values()}


@pytest.mark.parametrize("kinds", [("int4_g32",), ("int4_g32", "int4_g16")])
def test_experts_that_are_quantized_one_by_one_are_read_together(kinds: tuple[str, ...], tmp_path: Path) -> None:
    source = write_family(tmp_path / "m", "mixtral")
    arrays = load_file(source / "model.safetensors")
    packing, expected = GptqPacking(), {}
    for number, name in enumerate(sorted(name for name in arrays if ".experts." in name)):
        weight, number_format = arrays.pop(name), get_format(kinds[number % len(kinds)])
        parameters = number_format.widest_parameters(weight)
        planes = number_format.pack(Encoded(number_format.nearest_codes(weight, parameters), parameters))
        expected[name] = number_format.dequantize(planes, weight.shape[1])
        header = TensorHeader(name, weight.shape, number_format)
        module = name.removesuffix(".weight")
        stored = packing.stored(header, planes, has_wide_scales=False)
        arrays |= {module + part: np.ascontiguousarray(array) for part, array in stored.items()}
    assert expected
    save_file(arrays, source / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True}
    (source / "config.json").write_text(json.dumps(config))
    found = open_model(source)
    name = next(name for name in found.headers if "ffn_down_exps" in name)
    stack = found.tensor(name)
    assert stack.format.name == (kinds[0] if len(kinds) == 1 else "f32")
    own = sorted(
        key for key in expected if f"layers.{name.split('.')[1]}." in key and expected[key].shape == stack.shape[1:]
    )
    own = [key for key in own if ".w2." in key or "down_proj" in key]
    assert np.array_equal(stack.dequantize(), np.stack([expected[key] for key in own]))


def test_scales_of_static_inputs_come_from_statistics_however_the_folder_is_made(tiny: Path, tmp_path: Path) -> None:
    source = open_model(tiny)
    layers = {name: header for name, header in source.headers.items() if name.startswith("blk") and header.rows > 1}
    inputs = {
        name: InputStatistics(4, np.ones(header.columns), np.full(header.columns, 2.0 + place, np.float32))
        for place, (name, header) in enumerate(layers.items())
    }
    statistics = tmp_path / "s.safetensors"
    write_statistics(statistics, Statistics(inputs, 1, 4, ("x",), ""))
    guidance = workflows.Guidance(statistics=statistics)
    static, moved = tmp_path / "m.w8a8-static", tmp_path / "moved.w8a8-static"
    workflows.quantize(tiny, "int8_channel", static, guidance=guidance)
    workflows.quantize(tiny, "int8_channel", tmp_path / "m.compressed-tensors", guidance=guidance)
    result = convert(tmp_path / "m.compressed-tensors", moved, ConvertOptions(guidance=guidance))
    assert result.is_exact
    for folder in (static, moved):
        arrays = load_file(folder / "model.safetensors")
        for name, seen in inputs.items():
            scale = arrays[source.source_name(name).removesuffix("weight") + "input_scale"]
            assert scale.dtype == np.float32
            assert scale.tolist() == [np.float32(seen.absmax[0] / 127.0)]
        assert sum("input_scale" in name for name in arrays) == len(inputs)
        (group,) = json.loads((folder / "config.json").read_text())["quantization_config"]["config_groups"].values()
        described = group["input_activations"]
        assert (described["strategy"], described["dynamic"], described["num_bits"]) == ("tensor", False, 8)
    with pytest.raises(ContainerError, match=r"'blk.0.attn_q.weight': INT8_CHANNEL needs the range .* --statistics"):
        workflows.quantize(tiny, "int8_channel", tmp_path / "without.w8a8-static")
