# SPDX-License-Identifier: Apache-2.0
"""One command writes one quantized model into several containers, and all hold the same values."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_llama import TEXT, write_tiny_llama

from lilliput import converting
from lilliput.arrays import FloatArray
from lilliput.cli import main
from lilliput.containers import open_model
from lilliput.containers.litert.reader import LiteRtFile
from lilliput.containers.onnx.reader import OnnxFile
from lilliput.errors import ContainerError, PublishError, RecipeError
from lilliput.exporting import quantize_all, shared_formats
from lilliput.fitting import FitOptions
from lilliput.pipeline.repack import Move
from lilliput.recipes.ledger import ledger_path, read_ledger

# The package's own name for it is the function.
explore_module = importlib.import_module("lilliput.fitting.explore")
FILES = ("m.gguf", "m.compressed-tensors", "m.onnx", "m.tflite")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "Tiny"
    return write_tiny_llama(folder, hidden=128, ffn=256, layers=1, heads=2, kv_heads=1, context=64)


def values(path: Path) -> Callable[[str], FloatArray]:
    """How each kind of file is read by the reader that knows only it."""
    if path.suffix in (".onnx", ".tflite"):
        file = LiteRtFile(path) if path.suffix == ".tflite" else OnnxFile(path / "model.onnx")
        return lambda name: np.concatenate([piece.reshape(-1) for piece in file.values(name)])
    source = open_model(path)
    return lambda name: source.tensor(name).dequantize().reshape(-1)


@pytest.mark.parametrize(
    ("name", "gguf_bound"), [("int8_channel_narrow", 2.0**-11), ("int7_channel_pow2", 0.0), ("int4_channel", 2.0**-11)]
)
def test_every_file_holds_the_same_values(
    name: str, gguf_bound: float, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = [word for file in FILES for word in ("-o", str(tmp_path / file))]
    assert main(["quantize", str(tiny), "--to", name, *outputs, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["within_bound"]
    assert [item["bound"] for item in told["outputs"]] == [gguf_bound, 0.0, 0.0, 0.0]
    # The graph's own reader is the one that knows least of plans.
    right = values(tmp_path / "m.onnx")
    for file, item in zip(FILES, told["outputs"], strict=True):
        found = values(tmp_path / file)
        assert item["bytes"] == sum(Path(path).stat().st_size for path in item["output"])
        for tensor in open_model(tmp_path / "m.compressed-tensors").headers:
            expected, stored = right(tensor), found(tensor)
            farthest = float(np.abs(expected - stored).max() / np.abs(expected).max())
            assert farthest <= item["bound"], (file, tensor)
            assert farthest <= item["max_relative_error"] * (1 + 1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [*FILES, *(f"{file}.ledger.json" for file in FILES)]
    )


def test_each_ledger_says_how_codes_were_chosen_and_what_moved(tiny: Path, tmp_path: Path) -> None:
    outputs = [tmp_path / "m.gguf", tmp_path / "m.gptq"]
    made = quantize_all(tiny, "int4_g64", outputs)
    assert made.is_within_bound
    assert [result.is_exact for result in made.outputs] == [True, True]
    for output, expected in zip(outputs, ("Q4_0", "INT4_G64"), strict=True):
        ledger = read_ledger(ledger_path(output))
        entries = {entry.name: entry for entry in ledger.entries}
        entry = entries["blk.0.ffn_down.weight"]
        assert (entry.format, entry.method) == (expected, "searched_scales")
        assert entry.relative_error is not None
        assert 0 < entry.relative_error < 0.1
        assert ledger.recipe == "INT4_G64"
        assert ledger.model == "Tiny"


def test_the_table_names_size_bound_and_runtimes(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quantize", str(tiny), "--to", "Q8_0", "-o", str(tmp_path / "m.gguf")]) == 0
    capsys.readouterr()
    outputs = [str(tmp_path / name) for name in ("a.compressed-tensors", "a.onnx")]
    assert main(["convert", str(tmp_path / "m.gguf"), *outputs]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["output", "container", "size", "layers", "farthest", "bound", "runs", "in"]
    assert "7 INT8_G32" in lines[2]
    assert lines[2].endswith("transformers, transformers, dequantize=True")
    assert lines[3].endswith("0      0  ONNX Runtime, onnxruntime-genai")


def test_what_one_output_cannot_hold_is_refused_before_any_work(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ContainerError, match=r"is Q4_K, .* in .compressed-tensors; it holds .* with --to that"):
        quantize_all(tiny, "Q4_K", [tmp_path / "a.gguf", tmp_path / "a.compressed-tensors"])
    with pytest.raises(ContainerError, match="two outputs have the same name"):
        quantize_all(tiny, "Q8_0", [tmp_path / "a.gguf", tmp_path / "a.gguf"])
    (tmp_path / "b.onnx").mkdir()
    (tmp_path / "b.onnx" / "model.onnx").write_bytes(b"")
    with pytest.raises(PublishError, match="exists already"):
        quantize_all(tiny, "Q8_0", [tmp_path / "a.gguf", tmp_path / "b.onnx"])
    assert [path.name for path in tmp_path.iterdir()] == ["b.onnx"]


def test_a_file_beyond_its_bound_is_an_error_of_the_command(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = converting.moved_tensors

    def shifted(*arguments: object, **options: object) -> object:
        for item in moved(*arguments, **options):  # type: ignore[arg-type]
            yield replace(item, max_error=0.25) if item.plan.move is not Move.KEPT else item

    monkeypatch.setattr(converting, "moved_tensors", shifted)
    outputs = ["-o", str(tmp_path / "a.gguf"), "-o", str(tmp_path / "a.onnx")]
    assert main(["quantize", str(tiny), "--to", "int4_g32", *outputs]) == 1
    told = capsys.readouterr()
    assert "a.gguf: its weights are farther from the model's than rounded scales explain" in told.err


def test_a_search_chooses_among_what_every_output_holds(tmp_path: Path) -> None:
    outputs = [tmp_path / "a.compressed-tensors", tmp_path / "a.gguf", tmp_path / "a.onnx"]
    options = FitOptions(runtime="vllm")
    assert shared_formats(outputs, options) == ("bf16", "int8_channel", "int8_g32", "int4_g32", "int4_g128")
    with pytest.raises(RecipeError, match=r"no format of --for llama.cpp has a place .* such as INT4_CHANNEL"):
        shared_formats([tmp_path / "a.gguf", tmp_path / "a.tflite"], FitOptions())
    with pytest.raises(RecipeError, match="--formats INT4_G32: its codes have no place in a litert output"):
        shared_formats([*outputs, tmp_path / "a.tflite"], replace(options, formats=("int7_channel", "int4_g32")))
    with pytest.raises(RecipeError, match=r"a.tflite: other outputs are made from the first"):
        shared_formats([tmp_path / "a.tflite", tmp_path / "a.gguf"], FitOptions())
    (tmp_path / "a.gguf").write_bytes(b"")
    with pytest.raises(PublishError, match=r"a\.gguf exists already"):
        shared_formats(outputs, options)


def test_one_point_of_a_search_goes_into_four_containers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    # Not what is under test: mixes measured along the frontier and at random.
    monkeypatch.setattr(explore_module, "FRONTIER_POINTS", 2)
    monkeypatch.setattr(explore_module, "RANDOM_CONFIGURATIONS", 2)
    tiny = write_tiny_llama(tmp_path / "T", hidden=64, ffn=64, layers=1, heads=2, kv_heads=1, vocab=300, context=64)
    text = tmp_path / "text.txt"
    text.write_text(TEXT * 15)
    files = ("m.compressed-tensors", "m.gguf", "m.onnx", "m.tflite")
    outputs = [word for file in files for word in ("-o", str(tmp_path / file))]
    formats = "bf16,int7_channel,int4_channel"
    words = ["--text", str(text), "--for", "vllm", "--formats", formats, "--effort", "fast", "--bpw", "23"]
    assert main(["fit", str(tiny), *words, *outputs, "--json", "--threads", "1"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["within_bound"]
    assert [item["bound"] for item in told["outputs"]] == [2.0**-11, 0.0, 0.0]
    right, names = values(tmp_path / files[0]), open_model(tmp_path / files[0]).headers
    kinds = {header.format.name for header in names.values()}
    assert kinds & {"int7_channel", "int4_channel"}
    for file, item in zip(files[1:], told["outputs"], strict=True):
        found = values(tmp_path / file)
        for name in names:
            assert np.abs(found(name) - right(name)).max() <= item["bound"] * np.abs(right(name)).max()


def test_ranges_of_inputs_reach_every_output(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.txt").write_text(TEXT * 20)
    statistics = tmp_path / "s.safetensors"
    assert main(["calibrate", str(tiny), "--text", str(tmp_path / "t.txt"), "-o", str(statistics)]) == 0
    outputs = [word for file in ("m.w8a8-static", "m.int8.onnx") for word in ("-o", str(tmp_path / file))]
    command = ["quantize", str(tiny), "--to", "int8_channel", *outputs]
    assert main(command) == 1
    assert "needs the range of its inputs" in capsys.readouterr().err
    assert main([*command, "--statistics", str(statistics)]) == 0
    operations = {node.operation for node in OnnxFile(tmp_path / "m.int8.onnx" / "model.onnx").graph.nodes}
    assert "QuantizeLinear" in operations
    assert "DynamicQuantizeLinear" not in operations
    assert "is not used" not in capsys.readouterr().err
