# SPDX-License-Identifier: Apache-2.0
"""The streaming pass against the whole model with hooks, on tiny random models of every family."""

from __future__ import annotations

import errno
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from lilliput.architectures.architecture import Json
from lilliput.calibration.block_stream import BlockStream
from lilliput.calibration.collect import CalibrationOptions, InputSums, calibrate, collect
from lilliput.checkpoints.huggingface import HuggingFaceModel
from lilliput.checkpoints.model_source import ModelSource
from lilliput.containers import open_model
from lilliput.containers.gguf_writer import write_float_arrays
from lilliput.errors import CalibrationError
from lilliput.records import InputStatistics

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")
transformers = pytest.importorskip("transformers")

SIZES: dict[str, Json] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.08,
}
LLAMA3: dict[str, Json] = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
MODELS: dict[str, dict[str, Json]] = {
    "llama": {"model_type": "llama", "rope_parameters": LLAMA3},
    "llama-tied-biases": {
        "model_type": "llama",
        "tie_word_embeddings": True,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "mistral": {"model_type": "mistral", "sliding_window": 8},
    "smollm3": {"model_type": "smollm3", "num_hidden_layers": 5, "pad_token_id": None},
    "qwen2": {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "qwen3": {"model_type": "qwen3", "head_dim": 32, "rope_parameters": {"rope_type": "linear", "factor": 2.0}},
}
CHUNKS = np.random.default_rng(5).integers(0, 96, size=(3, 24), dtype=np.int32)


def save_model(folder: Path, name: str) -> Path:
    torch.manual_seed(3)
    config = transformers.AutoConfig.for_model(**{**SIZES, **MODELS[name]})
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.copy_(0.5 + torch.rand(parameter.shape))
    model.save_pretrained(folder)
    return folder


def brute_force(folder: Path) -> dict[str, InputStatistics]:
    """Hooks on every linear of the whole model, by module name."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    sums: dict[str, list[object]] = {}

    def watch(name: str) -> None:
        seen = sums.setdefault(name, [])
        model.get_submodule(name).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0].clone()))

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            watch(name)
    with torch.no_grad():
        for chunk in CHUNKS:
            model(torch.from_numpy(chunk)[None].long())
    result = {}
    for name, seen in sums.items():
        x = torch.cat(seen).double()
        result[name] = InputStatistics(len(x), (x * x).sum(0).numpy(), x.abs().amax(0).float().numpy())
    return result


def write_gguf(source: ModelSource, path: Path) -> Path:
    arrays = {name: source.tensor(name).dequantize() for name in source.headers}
    metadata = {"general.architecture": source.config.family, **source.architecture.gguf_metadata(source.config)}
    write_float_arrays(path, metadata, arrays)
    return path


def assert_close(found: InputStatistics, expected: InputStatistics) -> None:
    """Inputs are made by the same float32 operations in another order: some hundred roundings of each."""
    assert found.tokens == expected.tokens
    np.testing.assert_allclose(found.sum_of_squares, expected.sum_of_squares, rtol=512 * 2.0**-24)
    np.testing.assert_allclose(found.absmax, expected.absmax, rtol=512 * 2.0**-24)


@pytest.mark.parametrize("name", MODELS)
def test_streamed_statistics_equal_hooks_on_the_whole_model(name: str, tmp_path: Path) -> None:
    source = HuggingFaceModel(save_model(tmp_path, name))
    found = collect(source, CHUNKS, CalibrationOptions())
    expected = brute_force(tmp_path)
    table = source.architecture.tensor_table(source.config)
    linears = {entry.name: entry for entry in table if entry.input_group is not None}
    assert set(found) - {"token_embd.weight"} == set(linears)
    for tensor, entry in linears.items():
        module = source.source_name(tensor).removesuffix(".weight") if entry.tied_to is None else "lm_head"
        assert_close(found[tensor], expected[module])
    assert found["blk.0.attn_q.weight"] is found["blk.0.attn_v.weight"]
    assert found["blk.2.ffn_gate.weight"] is found["blk.2.ffn_up.weight"]
    assert ("token_embd.weight" in found) == source.config.tied
    if source.config.tied:
        assert found["token_embd.weight"] is found["output.weight"]


@pytest.mark.parametrize("name", MODELS)
def test_a_gguf_file_gives_the_statistics_of_the_folder_it_came_from(name: str, tmp_path: Path) -> None:
    folder = HuggingFaceModel(save_model(tmp_path / "hf", name))
    file = open_model(write_gguf(folder, tmp_path / "model.gguf"))
    found = collect(file, CHUNKS, CalibrationOptions())
    expected = collect(folder, CHUNKS, CalibrationOptions())
    assert set(found) == set(expected)
    for tensor, entry in expected.items():
        # GGUF keeps rope's divisors and epsilon in float32, so angles may differ by a rounding at each position.
        np.testing.assert_allclose(
            found[tensor].sum_of_squares, entry.sum_of_squares, rtol=CHUNKS.shape[1] * 3 * 2.0**-20
        )


def test_only_one_block_is_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = HuggingFaceModel(save_model(tmp_path, "llama-tied-biases"))
    streams: list[BlockStream] = []
    seen: list[int] = []
    original = BlockStream.__init__

    def remember(self: BlockStream, *arguments: object) -> None:
        original(self, *arguments)  # type: ignore[arg-type]
        streams.append(self)

    monkeypatch.setattr(BlockStream, "__init__", remember)
    collect(source, CHUNKS, CalibrationOptions(), lambda done, total: seen.append(streams[0].materialized_bytes()))
    steps = (source.config.layers + 1) * len(CHUNKS)
    assert len(seen) == steps
    assert max(seen) == streams[0].block_bytes()
    assert seen[-1] == 4 * source.config.hidden_size
    assert streams[0].materialized_bytes() == 0


def test_progress_counts_every_chunk_of_every_block_and_the_head(tmp_path: Path) -> None:
    source = HuggingFaceModel(save_model(tmp_path, "qwen2"))
    seen: list[tuple[int, int]] = []
    collect(source, CHUNKS, CalibrationOptions(), lambda done, total: seen.append((done, total)))
    assert seen == [(done, 12) for done in range(1, 13)]


def test_thread_count_and_spilling_to_disk_change_no_bit(tmp_path: Path) -> None:
    source = HuggingFaceModel(save_model(tmp_path, "qwen3"))
    expected = collect(source, CHUNKS, CalibrationOptions(threads=1))
    for options in (CalibrationOptions(threads=2), CalibrationOptions(memory_limit=1)):
        found = collect(source, CHUNKS, options)
        for tensor, entry in expected.items():
            np.testing.assert_array_equal(found[tensor].sum_of_squares, entry.sum_of_squares)


def test_activations_that_overflow_are_named(tmp_path: Path) -> None:
    folder = save_model(tmp_path, "llama")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[5] = 3e38
        model.model.layers[1].mlp.gate_proj.weight[5] = 3e38
    model.save_pretrained(folder)
    with pytest.raises(CalibrationError, match=r"blk\.1\.ffn_down\.weight: its input holds NaN or Inf \(feature 5"):
        collect(HuggingFaceModel(folder), CHUNKS, CalibrationOptions())


def test_a_token_outside_the_embedding_is_refused(tmp_path: Path) -> None:
    source = HuggingFaceModel(save_model(tmp_path, "llama"))
    with pytest.raises(CalibrationError, match="token id 96, but the embedding has 96 rows"):
        collect(source, np.full((1, 4), 96, dtype=np.int32), CalibrationOptions())


def test_sums_over_many_rows_keep_float64_precision() -> None:
    sums = InputSums("a")
    rows = np.full((1000, 1), 1.0 + 2.0**-20, dtype=np.float32)
    for _ in range(100):
        sums.add(rows)
    exact = 100_000 * (1.0 + 2.0**-20) ** 2
    assert abs(sums.statistics().sum_of_squares[0] - exact) <= 100_000 * exact * 2.0**-53


def test_calibrating_a_folder_says_what_was_seen(stories_folder: Path, tmp_path: Path) -> None:
    source = open_model(stories_folder)
    mix = calibrate(source, options=CalibrationOptions(chunk_size=64, tokens=300))
    assert (mix.chunks, mix.chunk_size, mix.datasets) == (4, 64, ("built-in mix",))
    assert mix.model == source.fingerprint()
    assert {entry.tokens for entry in mix.inputs.values()} == {4 * 64}
    text = tmp_path / "story.txt"
    text.write_text("Once upon a time there was a dog. " * 40)
    long = calibrate(source, [text], CalibrationOptions(chunk_size=100_000))
    assert long.datasets == ("story.txt",)
    assert long.chunk_size <= source.config.context_length


def test_a_folder_of_eight_bit_weights_calibrates_like_its_decoded_weights(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "float", "llama")
    scaled, decoded = {}, {}
    for name, weight in safetensors_torch.load_file(folder / "model.safetensors").items():
        scaled[name] = decoded[name] = weight
        if "_proj" in name:
            blocks = weight.reshape(weight.shape[0] // 32, 32, weight.shape[1] // 32, 32)
            scale = blocks.abs().amax(dim=(1, 3)) / 448
            codes = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
            scaled[name], scaled[f"{name}_scale_inv"] = codes.reshape(weight.shape), scale
            decoded[name] = (codes.float() * scale[:, None, :, None]).reshape(weight.shape)
    config = json.loads((folder / "config.json").read_text())
    fp8 = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [32, 32]}}
    found = []
    for name, tensors, extra in (("fp8", scaled, fp8), ("decoded", decoded, {})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({**config, **extra}))
        safetensors_torch.save_file(tensors, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
        found.append(collect(HuggingFaceModel(tmp_path / name), CHUNKS, CalibrationOptions()))
    for tensor, entry in found[1].items():
        assert_close(found[0][tensor], entry)


@pytest.mark.parametrize("device", ["toaster", "meta:x"])
def test_a_device_that_is_not_there_is_refused(device: str, tmp_path: Path) -> None:
    source = HuggingFaceModel(save_model(tmp_path, "llama"))
    with pytest.raises(CalibrationError, match=f"device '{device}' cannot be used"):
        collect(source, CHUNKS, CalibrationOptions(device=device))


def test_a_disk_without_room_for_hidden_states_is_said_before_the_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    source = HuggingFaceModel(save_model(tmp_path, "llama"))
    with pytest.raises(CalibrationError, match=r"no room for 18432 bytes.*No space left"):
        collect(source, CHUNKS, CalibrationOptions(memory_limit=1))


def test_missing_torch_names_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = HuggingFaceModel(save_model(tmp_path, "llama"))
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(CalibrationError, match=r"torch is not installed.*pip install torch"):
        BlockStream(source)
