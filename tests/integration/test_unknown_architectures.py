# SPDX-License-Identifier: Apache-2.0
"""Architectures without a family here: told apart by names and shapes, quantized, and run by transformers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_tokenizers import byte_level, named, write_folder
from typer.testing import CliRunner

from lilliput import workflows
from lilliput.cli import app
from lilliput.containers import open_model
from lilliput.errors import CalibrationError, ContainerError, UnsupportedModelError
from lilliput.records import InputStatistics, Statistics
from lilliput.runtime.session import Session
from lilliput.workflows import Guidance

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

# Attention with fused rows and a tied head; no attention at all; a head of its own and a gate.
MODELS: dict[str, dict[str, object]] = {
    "falcon": {"num_attention_heads": 4, "bias": True, "multi_query": True, "alibi": False},
    "mamba": {"state_size": 8, "time_step_rank": 16, "intermediate_size": 128},
    "helium": {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 96},
}
# How many kinds of linear layers a block of each has, and whether there is a head.
LINEARS = {"falcon": 4, "mamba": 4, "helium": 7}
TOKENS = torch.arange(3, 35).reshape(2, 16) * 7 % 300


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root, found = tmp_path_factory.mktemp("unknown"), {}
    tokenizer = byte_level(named("gpt-2"))
    for name, fields in MODELS.items():
        torch.manual_seed(1)
        settings = transformers.AutoConfig.for_model(
            name, vocab_size=tokenizer.get_vocab_size(), hidden_size=64, num_hidden_layers=2, initializer_range=0.15,
            bos_token_id=0, eos_token_id=1, **fields,
        )  # fmt: skip
        model = transformers.AutoModelForCausalLM.from_config(settings, dtype=torch.float32)
        model.save_pretrained(root / name)
        found[name] = write_folder(root / name, tokenizer, bos_token="<|begin|>", eos_token="<|end|>")
    return found


def logits(folder: Path, weights: dict[str, np.ndarray] | None = None, **options: object) -> np.ndarray:
    """transformers' logits of a folder, with other weights where some are given."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()
    if weights is not None:
        missing = model.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()}, strict=False)
        assert not missing.unexpected_keys
        model.tie_weights()
    with torch.no_grad():
        return np.asarray(model(TOKENS).logits.numpy())


def decoded(path: Path) -> dict[str, np.ndarray]:
    source = open_model(path)
    return {name: source.tensor(name).dequantize().copy() for name in source.headers}


@pytest.mark.parametrize("name", MODELS)
def test_transformers_runs_the_folder_and_computes_what_our_decoded_weights_say(
    name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    pytest.importorskip("compressed_tensors")
    made = tmp_path / "made.compressed-tensors"
    workflows.quantize(folders[name], "int8_channel", made)
    # The code of Falcon and Mamba reads the weights of its layers, which the default path packs away.
    options = {"quantization_config": transformers.CompressedTensorsConfig(dequantize=True)}
    found, float_logits = logits(made, **options), logits(folders[name])
    if name == "helium":
        np.testing.assert_array_equal(found, logits(made))
    np.testing.assert_array_equal(found, logits(folders[name], decoded(made)))
    # Eight bits a row: near the float model, and not the float model.
    assert 0 < np.abs(found - float_logits).max() < 0.1 * np.abs(float_logits).max()
    targets = json.loads((made / "config.json").read_text())["quantization_config"]["config_groups"]["group_0"]
    assert len(targets["targets"]) == 2 * LINEARS[name]


@pytest.mark.parametrize("name", MODELS)
def test_our_own_layout_holds_every_tensor_and_gives_the_model_back(
    name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    output = tmp_path / "made.safetensors"
    workflows.quantize(folders[name], "int8_channel", output)
    weights, stored = decoded(output), load_file(folders[name] / "model.safetensors")
    assert weights.keys() == stored.keys()
    kept = {item.name for item in open_model(output).config.unknown.tensors if item.assumed.startswith("kept")}
    assert {key for key in stored if np.array_equal(weights[key], stored[key])} == kept
    float_logits = logits(folders[name])
    assert 0 < np.abs(logits(folders[name], weights) - float_logits).max() < 0.1 * np.abs(float_logits).max()
    assert open_model(output).vocabulary() == open_model(folders[name]).vocabulary()


def test_a_plan_says_in_one_table_what_was_assumed(folders: dict[str, Path]) -> None:
    found = workflows.plan(folders["mamba"], "int4_g32", "made.compressed-tensors").to_json()
    assumed = {item["tensors"]: item for item in found["assumed"]}
    assert assumed["backbone.layers.#.mixer.in_proj.weight"] == {
        "kind": "linear", "tensors": "backbone.layers.#.mixer.in_proj.weight", "count": 2, "shape": [256, 64],
        "reason": "a matrix called .weight",
    }  # fmt: skip
    assert assumed["backbone.embeddings.weight"]["kind"] == "embedding"
    assert assumed["backbone.layers.#.mixer.A_log"]["reason"] == "a matrix that is not called .weight"
    assert assumed["backbone.layers.#.mixer.conv1d.weight"]["kind"] == "kept"
    assert sum(item["count"] for item in found["assumed"]) == len(found["tensors"])
    shown = CliRunner().invoke(app, ["plan", str(folders["mamba"]), "--to", "Q8_0"]).stdout
    assert "taken for" in shown
    assert "backbone.layers.#.mixer.x_proj.weight" in shown
    shown = CliRunner().invoke(app, ["inspect", str(folders["mamba"])]).stdout
    assert "linear: a matrix called .weight" in shown


def test_presets_find_roles_and_the_ledger_keeps_the_assumptions(folders: dict[str, Path], tmp_path: Path) -> None:
    result = workflows.quantize(folders["helium"], "INT8_EMBEDDINGS_ATTENTION", tmp_path / "made.safetensors")
    formats = {name: header.format.name for name, header in open_model(result.output[0]).headers.items()}
    assert formats["model.layers.0.self_attn.q_proj.weight"] == "int8_channel"
    assert formats["model.layers.1.self_attn.o_proj.weight"] == "int8_channel"
    assert formats["model.embed_tokens.weight"] == "int8_channel"
    assert formats["model.layers.0.mlp.up_proj.weight"] == "f32"
    ledger = result.ledger.read_text()
    assert "assumed linear: 2 tensors model.layers.#.self_attn.q_proj.weight" in ledger


def test_importance_is_taken_by_the_names_of_the_checkpoint(folders: dict[str, Path], tmp_path: Path) -> None:
    from lilliput.calibration.statistics_file import write_statistics

    name = "model.layers.0.mlp.down_proj.weight"
    squares = np.linspace(1.0, 500.0, 96) ** 2
    inputs = {name: InputStatistics(10, squares, np.sqrt(squares).astype(np.float32))}
    write_statistics(tmp_path / "s.safetensors", Statistics(inputs, 1, 10, ("t",), ""))
    stored = load_file(folders["helium"] / "model.safetensors")[name]
    errors = {}
    for guidance in (Guidance(), Guidance(statistics=tmp_path / "s.safetensors")):
        output = tmp_path / f"{guidance.is_given}.safetensors"
        workflows.quantize(folders["helium"], "int4_g32", output, guidance=guidance)
        errors[guidance.is_given] = float(((decoded(output)[name] - stored) ** 2 @ squares).sum())
    assert errors[True] < errors[False]


def test_what_cannot_be_done_is_said_with_what_can(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = folders["falcon"]
    with pytest.raises(ContainerError, match=r"falcon.*\.safetensors"):
        workflows.quantize(folder, "Q8_0", tmp_path / "made.gguf")
    with pytest.raises(ContainerError, match=r"falcon.*compressed-tensors"):
        workflows.quantize(folder, "int4_g32", tmp_path / "made.gptq")
    with pytest.raises(CalibrationError, match=r"falcon.*--imatrix"):
        workflows.quantize(folder, "Q8_0", guidance=Guidance(text=(Path("builtin"),)))
    with pytest.raises(UnsupportedModelError, match=r"falcon.*transformers"):
        Session(open_model(folder))
    assert not list(tmp_path.iterdir())


def test_buffers_routers_and_transposed_matrices_stay_as_they_are(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    described = json.loads((folders["falcon"] / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**described, "model_type": "sphinx", "num_experts": 16}))
    rng = np.random.default_rng(0)
    extra = {
        "blocks.0.turned.weight": rng.normal(size=(32, 64)), "blocks.0.turned.bias": rng.normal(size=64),
        "blocks.0.moe.gate.weight": rng.normal(size=(16, 64)), "blocks.0.one.weight": rng.normal(size=(1, 64)),
        "blocks.0.experts.up": rng.normal(size=(16, 32, 64)),
    }  # fmt: skip
    tensors = {key: value.astype(np.float32) for key, value in extra.items()}
    tensors["blocks.0.seen"] = np.array(7, dtype=np.int64)
    tensors["blocks.0.position_ids"] = np.arange(16, dtype=np.int64).reshape(1, 16)
    tensors["blocks.0.lin.weight"] = rng.normal(size=(32, 64)).astype(np.float32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for output in (tmp_path / "made.safetensors", tmp_path / "made.compressed-tensors"):
        workflows.quantize(folder, "int4_g32", output)
        source = open_model(output)
        formats = {name: header.format.name for name, header in source.headers.items()}
        assert formats.pop("blocks.0.lin.weight") == "int4_g32"
        assert set(formats.values()) == {"f32", "i64"}
        assert source.tensor("blocks.0.seen").planes["blocks"].view(np.int64).item() == 7
        np.testing.assert_array_equal(source.tensor("blocks.0.experts.up").dequantize(), tensors["blocks.0.experts.up"])


CLASSIFIERS: dict[str, dict[str, object]] = {
    "llama": {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 1
    },
    "bart": {
        "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "pad_token_id": 1,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96, "max_position_embeddings": 64,
    },
    "t5": {
        "d_model": 64, "num_layers": 2, "num_heads": 4, "d_kv": 16, "d_ff": 96, "pad_token_id": 1,
        "decoder_start_token_id": 0,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_families_with_a_head_for_classes_are_quantized_by_their_tensors(name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    settings = transformers.AutoConfig.for_model(
        name, vocab_size=300, num_labels=3, bos_token_id=0, eos_token_id=2, **CLASSIFIERS[name]
    )
    model = transformers.AutoModelForSequenceClassification.from_config(settings, dtype=torch.float32).eval()
    model.save_pretrained(tmp_path / "float")
    # One end of sentence at the end of each row, which BART and T5 look for.
    tokens = torch.cat([torch.arange(3, 35).reshape(2, 16) * 7 % 290 + 3, torch.full((2, 1), 2)], dim=1)
    workflows.quantize(tmp_path / "float", "int8_channel", tmp_path / "made.compressed-tensors")
    weights = {key: torch.from_numpy(array) for key, array in decoded(tmp_path / "made.compressed-tensors").items()}
    with torch.no_grad():
        wanted = model(tokens).logits
        missing, unexpected = model.load_state_dict(weights, strict=False)
        found = model(tokens).logits
    assert not unexpected
    # What is missing is what the model shares with a tensor that is there.
    assert all("embed_tokens" in key or "relative" in key for key in missing)
    # Steps of 8 bits: a hundredth of what the logits are, and not nothing.
    assert 0 < (wanted - found).abs().max() < 0.05 * wanted.abs().max()
    source = open_model(tmp_path / "float")
    with pytest.raises(UnsupportedModelError, match="ForSequenceClassification: lilliput does not know how"):
        Session(source)
