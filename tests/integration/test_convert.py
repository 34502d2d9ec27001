# SPDX-License-Identifier: Apache-2.0
"""`convert` moves quantized models between containers bit for bit where grids agree, and says where they do not."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from legacy_files import write_legacy
from tiny_llama import TEXT, write_tiny_llama

from lilliput import workflows
from lilliput.calibration.statistics_file import write_statistics
from lilliput.cli import main
from lilliput.containers import open_model
from lilliput.converting import ConvertOptions, convert, convert_all
from lilliput.errors import ContainerError, RecipeError
from lilliput.pipeline.repack import Move
from lilliput.recipes.recipe import parse_recipe
from lilliput.records import Statistics
from lilliput.text.tokenizer import Tokenizer

FLOATS = "  - {role: token_embedding, format: F32}\n  - {role: output, format: F32}\n"
NAME = "blk.0.ffn_down.weight"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "Tiny"
    write_tiny_llama(folder, hidden=128, ffn=256, layers=1, heads=2, kv_heads=1)
    (folder / "LICENSE").write_text("Do as you like.\n")
    (folder / "generation_config.json").write_text('{"temperature": 0.5}')
    card = "---\nlicense: mit\nbase_model: someone/base\n---\n# Tiny\n"
    (folder / "README.md").write_text(card)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": "{{ messages }}"}))
    return folder


def made(tiny: Path, kind: str, target: Path) -> Path:
    """The tiny model in one format, embedding and head in F32."""
    recipe = parse_recipe(f'name: x\nrules:\n{FLOATS}  - {{match: "*", format: {kind}}}\n', "x.yaml")
    workflows.quantize(tiny, recipe, target, options=workflows.QuantizeOptions(method="round_to_nearest"))
    return target


def assert_same_values(first: Path, second: Path) -> None:
    one, other = open_model(first), open_model(second)
    assert set(one.headers) == set(other.headers)
    for name in one.headers:
        assert np.array_equal(one.tensor(name).dequantize(), other.tensor(name).dequantize()), name


@pytest.mark.parametrize(
    ("kind", "chain"),
    [
        ("q4_0", (("a.gptq", "int4_g32"), ("b.gguf", "q4_0"))),
        ("q4_0", (("a.compressed-tensors", "int4_g32"), ("b.gptq", "int4_g32"), ("c.gguf", "q4_0"))),
        ("int4_g32", (("a.gguf", "q4_0"), ("b.safetensors", "q4_0"), ("c.gptq", "int4_g32"))),
        ("q8_0", (("a.compressed-tensors", "int8_g32"), ("b.gguf", "q8_0"), ("c.gptq", "int8_g32"))),
        ("mxfp4", (("a.compressed-tensors", "mxfp4"), ("b.gguf", "mxfp4"))),
        ("nvfp4", (("a.compressed-tensors", "nvfp4"), ("b.gguf", "nvfp4"))),
    ],
)
def test_grids_that_agree_come_back_bit_for_bit(
    kind: str, chain: tuple[tuple[str, str], ...], tiny: Path, tmp_path: Path
) -> None:
    start = made(tiny, kind, tmp_path / ("start.gguf" if not kind.startswith("int") else "start.compressed-tensors"))
    before = start
    for file_name, expected in chain:
        after = tmp_path / file_name
        result = convert(before, after)
        assert result.is_exact
        assert open_model(after).headers[NAME].format.name == expected
        assert_same_values(start, after)
        before = after
    first, last = open_model(start).tensor(NAME), open_model(before).tensor(NAME)
    if first.format.name == last.format.name:
        assert all(np.array_equal(first.planes[name], last.planes[name]) for name in first.planes)


def test_awq_and_asymmetric_compressed_tensors_hold_the_same(tiny: Path, tmp_path: Path) -> None:
    start = made(tiny, "int4_g128_asym", tmp_path / "start.awq")
    for name in ("a.compressed-tensors", "b.gptq", "c.awq"):
        assert convert(start, tmp_path / name).is_exact
        assert_same_values(start, tmp_path / name)
    first, last = open_model(start).tensor(NAME), open_model(tmp_path / "c.awq").tensor(NAME)
    assert all(np.array_equal(first.planes[name], last.planes[name]) for name in first.planes)
    # Symmetric weights get the zero point that AWQ wants.
    assert convert(made(tiny, "int4_g128", tmp_path / "s.gptq"), tmp_path / "s.awq").is_exact
    assert_same_values(tmp_path / "s.gptq", tmp_path / "s.awq")


def test_zero_points_go_to_gguf_exactly_in_five_bits_or_nearly_in_four(tiny: Path, tmp_path: Path) -> None:
    start = made(tiny, "int4_g128_asym", tmp_path / "start.awq")
    exact = convert(start, tmp_path / "exact.gguf")
    assert exact.is_exact
    assert open_model(tmp_path / "exact.gguf").headers[NAME].format.name == "q5_0"
    nearly = convert(start, tmp_path / "nearly.gguf", ConvertOptions(format="q4_1"))
    assert not nearly.is_exact
    changed = [tensor for tensor in nearly.tensors if not tensor.is_exact]
    assert {tensor.move for tensor in changed} == {Move.ROUNDED}
    # A minimum of up to 15 scales is rounded to 11 bits.
    assert all(0 < tensor.rms_error <= tensor.max_error * 16 < 2.0**-6 for tensor in changed)
    assert nearly.bytes < exact.bytes


def test_nothing_is_rounded_anew_without_being_asked(tiny: Path, tmp_path: Path) -> None:
    start = made(tiny, "q4_0", tmp_path / "start.gguf")
    with pytest.raises(ContainerError, match=r"is Q4_0, whose codes have no place .* pass --requantize"):
        convert(start, tmp_path / "a.bitsandbytes")
    with pytest.raises(ContainerError, match=r"is Q4_0, whose codes have no place as INT4_G128; pass --requantize"):
        convert(start, tmp_path / "a.gptq", ConvertOptions(format="int4_g128"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["start.gguf", "start.gguf.ledger.json"]
    result = convert(start, tmp_path / "a.bitsandbytes", ConvertOptions(requantize=True))
    assert {tensor.move for tensor in result.tensors if not tensor.is_exact} == {Move.REQUANTIZED}
    assert open_model(tmp_path / "a.bitsandbytes").headers[NAME].format.name == "nf4"


def test_floats_are_written_when_asked_for(tiny: Path, tmp_path: Path) -> None:
    start = made(tiny, "int4_g32", tmp_path / "start.gptq")
    result = convert(start, tmp_path / "a.gguf", ConvertOptions(format="F32"))
    assert result.is_exact
    assert any(note.startswith("a.gguf takes") and "times the bytes of the input" in note for note in result.notes)
    assert_same_values(start, tmp_path / "a.gguf")
    # Nothing to remark where it shrinks.
    back = convert(made(tiny, "q8_0", tmp_path / "b.gguf"), tmp_path / "c.safetensors")
    assert not any("times the bytes" in note for note in back.notes)


def test_floats_alone_are_left_to_quantize(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ContainerError, match="nothing in it is quantized; use `lilliput quantize`"):
        convert(tiny, tmp_path / "a.gguf")


def test_what_travels_with_the_weights_is_kept(tiny: Path, tmp_path: Path) -> None:
    convert(made(tiny, "int4_g32", tmp_path / "start.gptq"), tmp_path / "a.gguf")
    general = open_model(tmp_path / "a.gguf").provenance.general
    assert general["license"] == "mit"
    assert general["base_model.0.name"] == "base"
    # Back in a folder: rebuilt from the GGUF alone.
    result = convert(tmp_path / "a.gguf", tmp_path / "b.gptq")
    folder = tmp_path / "b.gptq"
    assert "--base" in " ".join(result.notes)
    assert (folder / "LICENSE").read_text() == "Do as you like.\n"
    assert json.loads((folder / "generation_config.json").read_text()) == {"temperature": 0.5}
    again, original = open_model(folder).vocabulary(), open_model(tiny).vocabulary()
    assert again.chat_template == original.chat_template == "{{ messages }}"
    assert Tokenizer(again).encode(TEXT) == Tokenizer(original).encode(TEXT)
    assert not list(folder.glob("*.partial"))
    # Or with the original's files.
    convert(tmp_path / "a.gguf", tmp_path / "c.gptq", ConvertOptions(base=tiny))
    assert (tmp_path / "c.gptq" / "tokenizer.json").read_bytes() == (tiny / "tokenizer.json").read_bytes()
    assert_same_values(folder, tmp_path / "c.gptq")


def test_mixed_files_keep_what_each_reader_takes(tiny: Path, tmp_path: Path) -> None:
    workflows.quantize(tiny, "Q4_0", tmp_path / "start.gguf", options=workflows.QuantizeOptions())
    assert open_model(tmp_path / "start.gguf").headers["output.weight"].format.name == "q8_0"
    result = convert(tmp_path / "start.gguf", tmp_path / "a.gptq")
    assert result.is_exact
    assert {tensor.name for tensor in result.tensors if tensor.move is Move.DECODED} == {
        "token_embd.weight",
        "output.weight",
    }
    assert_same_values(tmp_path / "start.gguf", tmp_path / "a.gptq")


def test_the_command_line_reports_and_measures(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = made(tiny, "int4_g128_asym", tmp_path / "start.awq")
    text = tmp_path / "text.txt"
    text.write_text(TEXT * 40)
    words = ["convert", str(start), str(tmp_path / "a.gguf"), "--format", "Q4_1", "--text", str(text), "--json"]
    assert main([*words, "--threads", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["exact"] is False
    assert 0 <= found["mean_kl"] < 1e-4
    assert {entry["move"] for entry in found["tensors"]} == {"rounded", "kept"}
    ledger = json.loads((tmp_path / "a.gguf.ledger.json").read_text())
    assert ledger["recipe"] == "convert to gguf"
    assert main(["convert", str(start), str(tmp_path / "b.gguf")]) == 0
    assert "every value is the same" in capsys.readouterr().out
    assert main(["convert", str(start), str(tmp_path / "b.gguf")]) == 1
    assert "exists already" in capsys.readouterr().err
    assert main(["convert", str(start), str(tmp_path / "c"), "--to", "gpt"]) == 1
    assert "known: gguf, lilliput, compressed-tensors" in capsys.readouterr().err


def test_a_file_of_2023_becomes_a_gguf_with_its_codes(tmp_path: Path) -> None:
    write_legacy(tmp_path / "old.bin", b"tjgg", 1, 2)
    nearly = convert(tmp_path / "old.bin", tmp_path / "new.gguf")
    old, new = (open_model(tmp_path / name) for name in ("old.bin", "new.gguf"))
    assert new.headers[NAME].format.name == "q4_0"
    # float32 scales become fp16 ones, nothing else.
    assert {tensor.move for tensor in nearly.tensors if not tensor.is_exact} == {Move.ROUNDED}
    gap = np.abs(new.tensor(NAME).dequantize() - old.tensor(NAME).dequantize())
    assert gap.max() <= 2.0**-11 * np.abs(old.tensor(NAME).dequantize()).max()
    assert new.vocabulary().tokens == old.vocabulary().tokens
    write_legacy(tmp_path / "later.bin", b"tjgg", 3, 2)
    assert convert(tmp_path / "later.bin", tmp_path / "later.gguf").is_exact


def test_codes_chosen_anew_use_the_statistics_that_are_given(tiny: Path, tmp_path: Path) -> None:
    start = made(tiny, "q8_0", tmp_path / "start.gguf")
    text = tmp_path / "text.txt"
    text.write_text(TEXT * 40)
    workflows.calibrate(tiny, [text], tmp_path / "imatrix.gguf")
    plain = convert(start, tmp_path / "plain.gptq", ConvertOptions(requantize=True, format="int2_g32"))
    guidance = workflows.Guidance(imatrix=tmp_path / "imatrix.gguf")
    chosen = ConvertOptions(requantize=True, format="int2_g32", guidance=guidance)
    guided = convert(start, tmp_path / "guided.gptq", chosen)
    assert {tensor.move for tensor in plain.tensors} == {tensor.move for tensor in guided.tensors}
    first, second = (open_model(tmp_path / name).tensor(NAME) for name in ("plain.gptq", "guided.gptq"))
    assert not np.array_equal(first.planes["codes"], second.planes["codes"])


@pytest.mark.parametrize("factor", [8.0, 5.0])
def test_rope_scaling_that_a_gguf_holds_as_numbers_is_recovered_or_refused(
    factor: float, tiny: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "Scaled"
    shutil.copytree(tiny, folder)
    config = json.loads((folder / "config.json").read_text())
    config["rope_scaling"] = {
        "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    (folder / "config.json").write_text(
        json.dumps({**config, "rope_theta": 500000.0, "max_position_embeddings": 16384})
    )
    start = made(folder, "q4_0", tmp_path / "start.gguf")
    assert "rope_freqs.weight" in open_model(start).headers
    if factor == 5.0:
        with pytest.raises(ContainerError, match="no known llama3 scaling gives; give the original's folder"):
            convert(start, tmp_path / "a.gptq")
        # With the original's config.json it is known.
        convert(start, tmp_path / "a.gptq", ConvertOptions(base=folder))
    else:
        convert(start, tmp_path / "a.gptq")
        written = json.loads((tmp_path / "a.gptq" / "config.json").read_text())
        assert written["rope_parameters"]["factor"] == 8.0
    assert_same_values(start, tmp_path / "a.gptq")


def test_scales_that_the_container_keeps_in_another_unit_are_reported(tiny: Path, tmp_path: Path) -> None:
    start = made(tiny, "nf4", tmp_path / "start.safetensors")
    exact = convert(start, tmp_path / "a.bitsandbytes", ConvertOptions(base=tiny))
    assert exact.is_exact
    nearly = convert(start, tmp_path / "b.bitsandbytes-double", ConvertOptions(base=tiny))
    changed = [tensor for tensor in nearly.tensors if not tensor.is_exact]
    assert {tensor.move for tensor in changed} == {Move.ROUNDED}
    old, new = open_model(start), open_model(tmp_path / "b.bitsandbytes-double")
    for tensor in changed:
        before, after = old.tensor(tensor.name).dequantize(), new.tensor(tensor.name).dequantize()
        assert tensor.max_error == pytest.approx(np.abs(after - before).max() / np.abs(before).max(), rel=1e-6)
        # 8 bits with a decade of fine steps: scales move by a few parts of a thousand.
        assert 0.0 < tensor.rms_error < 0.01


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("quantize", "TINY", "--to", "Q4_K_M", "-o", "a.onnx"), "Q4_K_M is a mix for GGUF of .* such as INT4_G32"),
        (("quantize", "TINY", "--to", "Q4_K_M", "-o", "a.gptq"), "Q4_K_M is a mix for GGUF of .* such as INT4_G128"),
        (("quantize", "TINY", "--to", "Q4_0", "-o", "a.tflite"), "a .tflite file cannot hold|INT8_CHANNEL_NARROW"),
        (("quantize", "TINY", "-o", "a.openvino"), r"openvino: not a container .* -o NAME.qdq.onnx"),
        (("convert", "QUANT", "a.xyz", "--to", "exl2"), r"exl2: not a container .* CUDA"),
        (
            ("convert", "QUANT", "a.gptq", "--format", "F16"),
            "at least one quantized layer, and --format F16 leaves none",
        ),
        (
            ("convert", "QUANT", "a.tflite", "--text", "TEXT"),
            "--text runs the output here, and litert files are not run",
        ),
        (("convert", "QUANT", "a.awq"), r"no place in .awq; pass --requantize .* or another container; it holds int4"),
    ],
)
def test_what_cannot_be_done_is_one_line_that_says_what_to_do(
    words: tuple[str, ...], said: str, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.txt").write_text(TEXT)
    names = {"TINY": str(tiny), "TEXT": "t.txt", "QUANT": "q.gguf"}
    if "QUANT" in words:
        made(tiny, "iq4_nl", tmp_path / "q.gguf")
    assert main([names.get(word, word) for word in words]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert re.search(said, lines[-1]), lines
    assert not any(path.name.startswith("a.") for path in tmp_path.iterdir())


def test_what_changes_no_output_is_refused(tiny: Path, tmp_path: Path) -> None:
    start = made(tiny, "q4_0", tmp_path / "start.gguf")
    statistics = tmp_path / "statistics.safetensors"
    write_statistics(statistics, Statistics({}, chunks=1, chunk_size=16, datasets=("x",), model=""))
    given = ConvertOptions(guidance=workflows.Guidance((), statistics))
    with pytest.raises(RecipeError, match=r"--statistics statistics.safetensors: without effect where no codes"):
        convert(start, tmp_path / "a.gptq", given)
    with pytest.raises(RecipeError, match=r"--requantize: without effect here, as every tensor's codes can be kept"):
        convert(start, tmp_path / "a.gptq", ConvertOptions(requantize=True))
    with pytest.raises(RecipeError, match=r"--base: without effect, as lilliput files take everything from the input"):
        convert(start, tmp_path / "a.safetensors", ConvertOptions(base=str(tiny)))
    assert not list(tmp_path.glob("a.*"))
    # Of two outputs one may use them.
    both = convert_all(start, [tmp_path / "a.gptq", tmp_path / "a.bitsandbytes"], replace(given, requantize=True))
    assert [[note for note in result.notes if "is not used" in note] for result in both] == [
        ["gptq: statistics.safetensors is not used: no codes are chosen anew"],
        [],
    ]
