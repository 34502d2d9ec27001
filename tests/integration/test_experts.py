# SPDX-License-Identifier: Apache-2.0
"""Mixtures of experts: what each expert sees, what starved ones are given, and files of both layouts."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from lilliput import workflows
from lilliput.calibration.collect import CalibrationOptions, collect
from lilliput.calibration.expert_inputs import STARVED_BELOW, expert_inputs, of_expert, split_name, with_prior
from lilliput.calibration.statistics_file import merge, read_statistics, write_statistics
from lilliput.checkpoints.huggingface import HuggingFaceModel
from lilliput.containers import open_model
from lilliput.exporting import quantize_all
from lilliput.records import NO_INPUTS, InputStatistics, LayerInputs, Statistics
from lilliput.runtime.integer_weights import in_blocks
from lilliput.runtime.lowering import say_decoded
from lilliput.runtime.session import EngineOptions, Session
from lilliput.workflows import Guidance, QuantizeOptions

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from family_folders import write_family  # noqa: E402

CHUNKS = np.random.default_rng(2).integers(3, 300, (3, 40)).astype(np.int32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family(tmp_path_factory.mktemp("experts") / "tiny", "qwen3_moe")


def test_each_expert_is_shown_the_tokens_that_are_routed_to_it(folder: Path) -> None:
    found = collect(HuggingFaceModel(folder), CHUNKS, CalibrationOptions())
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    experts = model.model.layers[1].mlp.experts
    experts.register_forward_pre_hook(lambda _, given: seen.append((given[0], given[1])))
    with torch.no_grad():
        for chunk in CHUNKS:
            model(torch.from_numpy(chunk.astype(np.int64))[None])
    for expert in range(8):
        rows = torch.cat([x[(chosen == expert).any(-1)] for x, chosen in seen]).double()
        name = of_expert("blk.1.ffn_up_exps.weight", expert)
        assert found[name].tokens == len(rows)
        np.testing.assert_allclose(found[name].sum_of_squares, rows.square().sum(0).numpy(), rtol=1e-5)
        assert found[of_expert("blk.1.ffn_gate_exps.weight", expert)] is found[name]
        gate, up = torch.nn.functional.linear(rows, experts.gate_up_proj[expert].double()).chunk(2, -1)
        inner = torch.nn.functional.silu(gate) * up
        down = found[of_expert("blk.1.ffn_down_exps.weight", expert)]
        np.testing.assert_allclose(down.sum_of_squares, inner.square().sum(0).detach().numpy(), rtol=1e-5)
    assert sum(found[of_expert("blk.1.ffn_up_exps.weight", expert)].tokens for expert in range(8)) == 3 * CHUNKS.size


def statistics(tokens: list[int]) -> Statistics:
    inputs = {
        of_expert("w", expert): InputStatistics(count, np.full(4, float(count * (expert + 1))), np.ones(4, np.float32))
        for expert, count in enumerate(tokens)
        if count
    }
    return Statistics(inputs, 1, 10, ("text",), "")


def test_a_starved_expert_is_given_the_mean_of_all_as_a_prior() -> None:
    inputs = expert_inputs(statistics([500, 100, 16, 0]), "w", 4)
    assert [each.tokens for each in inputs] == [500, 100, 16, 0]
    given = with_prior(inputs)
    assert given[0] is inputs[0]
    assert given[1] is inputs[1]
    mean = (500 * 1 + 100 * 2 + 16 * 3) / 616
    np.testing.assert_allclose(given[2].mean_square, (16 * 3 + STARVED_BELOW * mean) / (16 + STARVED_BELOW))
    np.testing.assert_allclose(given[3].mean_square, mean)
    assert with_prior([NO_INPUTS, NO_INPUTS]) == [NO_INPUTS, NO_INPUTS]
    enough = [LayerInputs(STARVED_BELOW, np.ones(4, np.float32))]
    assert with_prior(enough) == enough


@pytest.mark.parametrize("suffix", [".safetensors", ".gguf"])
def test_statistics_of_experts_survive_their_files_and_merge(tmp_path: Path, suffix: str) -> None:
    first = statistics([500, 0, 3])
    write_statistics(tmp_path / f"s{suffix}", first)
    again = read_statistics(tmp_path / f"s{suffix}")
    assert {name: entry.tokens for name, entry in again.inputs.items()} == {"w#0": 500, "w#2": 3}
    for name, entry in again.inputs.items():
        np.testing.assert_allclose(entry.sum_of_squares, first.inputs[name].sum_of_squares, rtol=1e-6)
    both = merge(again, statistics([1, 2, 0]))
    assert {name: entry.tokens for name, entry in both.inputs.items()} == {"w#0": 501, "w#1": 2, "w#2": 3}
    assert split_name("blk.0.ffn_up_exps.weight#12") == ("blk.0.ffn_up_exps.weight", 12)
    assert split_name("blk.0.ffn_up.weight") == ("blk.0.ffn_up.weight", None)


@pytest.mark.parametrize("effort", ["fast", "balanced", "best"])
def test_the_ledger_names_starved_experts(folder: Path, tmp_path: Path, effort: str) -> None:
    text, output = tmp_path / "text.txt", tmp_path / "tiny.gguf"
    text.write_text("Once upon a time there was a little model.\n" * 9)
    options = QuantizeOptions(effort=effort)  # type: ignore[arg-type]
    result = workflows.quantize(folder, "Q4_0", output, guidance=Guidance(text=(text,)), options=options)
    entries = {entry["name"]: entry for entry in json.loads(result.ledger.read_text())["entries"]}
    entry = entries["blk.0.ffn_up_exps.weight"]
    assert "experts saw fewer than 64 tokens" in entry["reason"]
    assert entry["shape"] == [8, 96, 64]
    assert 0 < entry["relative_error"] < 0.02
    assert entries["blk.0.ffn_gate_inp.weight"]["format"] == "F32"


def test_experts_that_a_checkpoint_keeps_joined_are_the_same(folder: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    for layer in range(2):
        prefix = f"model.layers.{layer}.mlp.experts."
        parts = {
            part: np.stack([tensors.pop(f"{prefix}{expert}.{part}_proj.weight") for expert in range(8)])
            for part in ("gate", "up", "down")
        }
        tensors[f"{prefix}gate_up_proj"] = np.concatenate([parts["gate"], parts["up"]], axis=1)
        tensors[f"{prefix}down_proj"] = parts["down"]
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    save_file(tensors, tmp_path / "model.safetensors")
    options = EngineOptions(threads=1)
    logits = [Session(open_model(path), options).forward([5, 6, 7], "all") for path in (folder, tmp_path)]
    np.testing.assert_array_equal(*logits)


@pytest.mark.parametrize(
    ("to", "block"), [("INT4_G32", "q4_0"), ("INT4_G32_ASYM", "q5_0"), ("INT8_G32", "q8_0"), ("INT3_G32", "q4_0")]
)
def test_experts_of_integers_are_multiplied_in_blocks_of_the_same_values(
    folder: Path, tmp_path: Path, to: str, block: str, caplog: pytest.LogCaptureFixture
) -> None:
    say_decoded.cache_clear()
    workflows.quantize(folder, to, tmp_path / "m.safetensors")
    source = open_model(tmp_path / "m.safetensors")
    name = "blk.0.ffn_up_exps.weight"
    made = in_blocks(source.tensor(name))
    assert made is not None
    assert made.format.name == block
    assert np.array_equal(made.dequantize(), source.tensor(name).dequantize())
    # As the engine multiplies blocks: in integers, near to the exact products of the same values and not at them.
    logits = Session(source, EngineOptions(threads=1)).forward([5, 6, 7, 8], "all")
    assert not caplog.records
    exact = Session(source, EngineOptions(threads=1, activations="f32")).forward([5, 6, 7, 8], "all")
    assert 0 < np.abs(logits - exact).max() < 0.1 * np.abs(exact).max()


def test_experts_with_a_scale_for_each_row_are_multiplied_in_integers(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    say_decoded.cache_clear()
    workflows.quantize(folder, "INT8_CHANNEL", tmp_path / "m.safetensors")
    source = open_model(tmp_path / "m.safetensors")
    logits = Session(source, EngineOptions(threads=1)).forward([5, 6, 7, 8], "all")
    assert not caplog.records
    exact = Session(source, EngineOptions(threads=1, activations="f32")).forward([5, 6, 7, 8], "all")
    assert 0 < np.abs(logits - exact).max() < 0.1 * np.abs(exact).max()


def test_llama_quantize_reads_our_imatrix_of_experts(llama_cpp: Path, folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a little model. It had 3 layers, and 42 heads: hello!\n" * 60)
    workflows.calibrate(folder, [text], tmp_path / "imatrix.gguf")
    workflows.quantize(folder, "F32", tmp_path / "f32.gguf")
    command = [llama_cpp / "llama-quantize", "--imatrix", tmp_path / "imatrix.gguf", tmp_path / "f32.gguf"]
    command += [tmp_path / "q.gguf", "Q4_0", "1"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "did not find weights for blk" not in done.stdout + done.stderr
    # And ours of the same type and statistics is as near to the original.
    guidance = Guidance(imatrix=tmp_path / "imatrix.gguf")
    workflows.quantize(folder, "Q4_0", tmp_path / "ours.gguf", guidance=guidance)
    original = open_model(folder).tensor("blk.0.ffn_up_exps.weight").dequantize()
    errors = [
        float(np.square(open_model(tmp_path / name).tensor("blk.0.ffn_up_exps.weight").dequantize() - original).sum())
        for name in ("ours.gguf", "q.gguf")
    ]
    assert errors[0] < 1.3 * errors[1]


def test_a_mixtral_goes_into_files_of_several_runtimes_at_once(tmp_path: Path) -> None:
    source = write_family(tmp_path / "m", "mixtral")
    made = quantize_all(source, "int4_g32", [tmp_path / "a.compressed-tensors", tmp_path / "a.gguf"])
    assert [output.is_exact for output in made.outputs] == [True, True]
    folder, file = (open_model(output.target) for output in made.outputs)
    for name in ("blk.0.ffn_down_exps.weight", "blk.1.ffn_gate_exps.weight"):
        assert np.array_equal(folder.tensor(name).dequantize(), file.tensor(name).dequantize())
