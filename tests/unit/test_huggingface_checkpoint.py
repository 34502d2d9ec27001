# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from model_files import CONFIG, source_tensors, tiny_model, write_folder, write_safetensors

from lilliput.checkpoints.huggingface import HuggingFaceModel
from lilliput.containers import CONTAINERS, open_model
from lilliput.containers.container import Container, Split
from lilliput.errors import CheckpointError, ContainerError, UnsupportedModelError
from lilliput.text.vocabulary import TokenType


def add_tensor(folder: Path, name: str, dtype: str, shape: tuple[int, ...], data: bytes, **changes: object) -> None:
    tensors = source_tensors(**changes)  # type: ignore[arg-type]
    tensors[name] = (dtype, shape, data)
    write_safetensors(folder / "model.safetensors", tensors)


def test_tensors_have_the_shapes_and_values_of_the_checkpoint(tmp_path: Path) -> None:
    model = HuggingFaceModel(write_folder(tmp_path / "m"))
    stored = source_tensors()
    _, shape, data = stored["model.layers.0.mlp.down_proj.weight"]
    tensor = model.tensor("blk.0.ffn_down.weight")
    assert tensor.shape == shape
    assert np.array_equal(tensor.dequantize(), np.frombuffer(data, dtype=np.float32).reshape(shape))
    assert model.source_name("blk.0.ffn_down.weight") == "model.layers.0.mlp.down_proj.weight"


def test_query_rows_come_in_adjacent_pairs(tmp_path: Path) -> None:
    model = HuggingFaceModel(write_folder(tmp_path / "m"))
    _, shape, data = source_tensors()["model.layers.1.self_attn.q_proj.weight"]
    weight = np.frombuffer(data, dtype=np.float32).reshape(shape)
    found = model.tensor("blk.1.attn_q.weight").dequantize()
    head_dim = 64
    # Head 1: output rows 0 and 1 are its input rows 0 and d/2.
    assert np.array_equal(found[head_dim], weight[head_dim])
    assert np.array_equal(found[head_dim + 1], weight[head_dim + head_dim // 2])
    assert np.array_equal(np.sort(found, axis=0), np.sort(weight, axis=0))


def test_shards_hold_the_same_model_as_one_file(tmp_path: Path) -> None:
    one = HuggingFaceModel(write_folder(tmp_path / "a"))
    three = HuggingFaceModel(write_folder(tmp_path / "b", shards=3))
    assert list(one.headers) == list(three.headers)
    for name in one.headers:
        assert np.array_equal(one.tensor(name).dequantize(), three.tensor(name).dequantize())


@pytest.mark.parametrize(("dtype", "expected"), [("BF16", "bf16"), ("F16", "f16"), ("F32", "f32"), ("F64", "f32")])
def test_floats_stay_in_their_format(tmp_path: Path, dtype: str, expected: str) -> None:
    model = HuggingFaceModel(write_folder(tmp_path / "m", dtype=dtype))
    assert {header.format.name for header in model.headers.values()} == {expected}
    assert np.isfinite(model.tensor("blk.0.attn_k.weight").dequantize()).all()


def test_eight_bit_weights_are_multiplied_by_their_block_scales(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]})
    name = "model.layers.0.mlp.down_proj.weight"
    codes = np.random.default_rng(0).integers(0, 0x7E, (256, 512), dtype=np.uint8)
    scale = np.arange(1, 9, dtype=np.float32).reshape(2, 4)
    tensors = source_tensors()
    tensors[name] = ("F8_E4M3", codes.shape, codes.tobytes())
    tensors[name + "_scale_inv"] = ("F32", scale.shape, scale.tobytes())
    write_safetensors(folder / "model.safetensors", tensors)
    model = HuggingFaceModel(folder)
    values = model.tensor("blk.0.ffn_down.weight").dequantize()
    tensors[name + "_scale_inv"] = ("F32", scale.shape, np.ones_like(scale).tobytes())
    write_safetensors(folder / "model.safetensors", tensors)
    plain = HuggingFaceModel(folder).tensor("blk.0.ffn_down.weight").dequantize()
    assert np.array_equal(values[130, 300], plain[130, 300] * scale[1, 2])
    assert np.array_equal(values, plain * np.repeat(np.repeat(scale, 128, axis=0), 128, axis=1))


@pytest.mark.parametrize("shape", [(), (1,), (256, 1)])
def test_eight_bit_weights_may_have_a_scale_per_tensor_or_row(tmp_path: Path, shape: tuple[int, ...]) -> None:
    folder = write_folder(
        tmp_path / "m", quantization_config={"quant_method": "compressed-tensors", "format": "float-quantized"}
    )
    tensors = source_tensors()
    name = "model.layers.0.mlp.down_proj.weight"
    scale = np.full(shape, 0.5, dtype=np.float32)
    tensors[name] = ("F8_E4M3", (256, 512), bytes([0x38]) * (256 * 512))
    tensors[name + "_scale"] = ("F32", shape, scale.tobytes())
    tensors["model.layers.0.mlp.down_proj.input_scale"] = ("F32", (), np.float32(1).tobytes())
    write_safetensors(folder / "model.safetensors", tensors)
    assert np.array_equal(
        HuggingFaceModel(folder).tensor("blk.0.ffn_down.weight").dequantize(), np.full((256, 512), 0.5, np.float32)
    )


def test_a_scale_of_another_shape_names_the_tensor(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m")
    tensors = source_tensors()
    name = "model.layers.0.mlp.down_proj.weight"
    tensors[name] = ("F8_E4M3", (256, 512), bytes(256 * 512))
    tensors[name + "_scale"] = ("F32", (3,), bytes(12))
    write_safetensors(folder / "model.safetensors", tensors)
    with pytest.raises(CheckpointError, match=r"down_proj.weight.*scale of shape \[3\]"):
        HuggingFaceModel(folder).tensor("blk.0.ffn_down.weight")


def test_other_quantized_checkpoints_are_refused_by_name(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", quantization_config={"quant_method": "quip", "bits": 4})
    with pytest.raises(CheckpointError, match="already quantized with quip"):
        HuggingFaceModel(folder)


def test_a_tied_checkpoint_that_repeats_its_output_stays_tied(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", tie_word_embeddings=True)
    _, shape, data = source_tensors(tie_word_embeddings=True)["model.embed_tokens.weight"]
    add_tensor(folder, "lm_head.weight", "F32", shape, data, tie_word_embeddings=True)
    model = HuggingFaceModel(folder)
    assert model.config.tied
    assert "output.weight" not in model.headers


def test_a_checkpoint_that_claims_to_be_tied_but_has_another_output_is_not(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", tie_word_embeddings=True)
    _, shape, data = source_tensors(tie_word_embeddings=True)["model.embed_tokens.weight"]
    add_tensor(folder, "lm_head.weight", "F32", shape, data[4:] + bytes(4), tie_word_embeddings=True)
    model = HuggingFaceModel(folder)
    assert not model.config.tied
    assert "output.weight" in model.headers


def test_recomputed_buffers_are_ignored_and_other_strangers_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m")
    add_tensor(folder, "model.layers.0.self_attn.rotary_emb.inv_freq", "F32", (2,), bytes(8))
    HuggingFaceModel(folder)
    add_tensor(folder, "model.layers.0.mlp.secret.weight", "F32", (2,), bytes(8))
    with pytest.raises(CheckpointError, match=r"1 tensors that llama does not know.*secret"):
        HuggingFaceModel(folder)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m")
    tensors = source_tensors()
    del tensors["model.norm.weight"]
    write_safetensors(folder / "model.safetensors", tensors)
    with pytest.raises(CheckpointError, match=r"1 tensors missing that llama needs: model.norm.weight"):
        HuggingFaceModel(folder)


def test_a_shape_that_contradicts_the_config_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m")
    add_tensor(folder, "model.norm.weight", "F32", (2,), bytes(8))
    with pytest.raises(CheckpointError, match=r"model.norm.weight' has shape \[2\], config.json implies \[256\]"):
        HuggingFaceModel(folder)


def test_integer_weights_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m")
    add_tensor(folder, "model.norm.weight", "I32", (256,), bytes(1024))
    with pytest.raises(CheckpointError, match="is I32; weights may be"):
        HuggingFaceModel(folder)


def test_a_folder_that_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config.json here"):
        open_model(tmp_path)


def test_an_adapter_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="an adapter, not a whole model"):
        open_model(tmp_path)


def test_an_unknown_architecture_opens_by_its_names_and_has_no_program(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m")
    (folder / "config.json").write_text(json.dumps({**CONFIG, "model_type": "mammoth"}))
    source = open_model(folder)
    assert source.headers["model.layers.0.mlp.down_proj.weight"].shape[0] == source.config.hidden_size
    with pytest.raises(UnsupportedModelError, match=r"mammoth.*transformers"):
        source.architecture.program(source.config)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"1 of 3 shards missing: model-00002-of-00003.safetensors"):
        open_model(folder)


@pytest.mark.parametrize("shard", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", 3])
def test_a_shard_name_that_leaves_the_folder_is_refused(tmp_path: Path, shard: object) -> None:
    folder = write_folder(tmp_path / "m", shards=2)
    index = {"weight_map": {"model.norm.weight": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="leaves the model folder; refused"):
        open_model(folder)


def test_a_tensor_that_the_index_promises_in_vain_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", shards=2)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["ghost"] = "model-00001-of-00002.safetensors"
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="'ghost' is promised"):
        open_model(folder)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 1}'])
def test_a_damaged_index_is_one_clear_line(tmp_path: Path, text: str) -> None:
    folder = write_folder(tmp_path / "m", shards=2)
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"model.safetensors.index.json"):
        open_model(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickled_weights_are_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    folder = write_folder(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(b"\x80\x04")
    for path in (folder, folder / name):
        with pytest.raises(CheckpointError, match="runs code from the file, so it is refused"):
            open_model(path)


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model.safetensors: truncated"):
        open_model(folder)


def test_rope_factors_of_llama3_are_computed(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    model = HuggingFaceModel(write_folder(tmp_path / "m", rope_scaling=scaling))
    factors = model.tensor("rope_freqs.weight").dequantize()
    assert factors.shape == (32,)
    assert factors.min() == 1.0
    assert factors.max() == 8.0


def test_the_vocabulary_has_a_token_for_every_row_of_the_embedding(stories_folder: Path, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", vocab_size=520)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((stories_folder / name).read_bytes())
    vocabulary = HuggingFaceModel(folder).vocabulary()
    assert vocabulary.tokens[511:514] == (vocabulary.tokens[511], "[PAD512]", "[PAD513]")
    assert vocabulary.token_types[512:] == (TokenType.UNUSED,) * 8


def test_nothing_by_that_name_is_said_in_one_line() -> None:
    with pytest.raises(CheckpointError, match="no such file or folder, and not a hub id"):
        open_model("no-such-thing")


@pytest.mark.parametrize(
    ("field", "says"), [("num_hidden_layers", "claims 999999999 layers"), ("head_dim", "heads of")]
)
def test_an_absurd_size_does_not_fill_the_memory(tmp_path: Path, field: str, says: str) -> None:
    folder = write_folder(tmp_path / "m")
    (folder / "config.json").write_text(json.dumps({**CONFIG, field: 999_999_999}))
    with pytest.raises(CheckpointError, match=says):
        open_model(folder)


@pytest.mark.parametrize("container", CONTAINERS, ids=lambda container: container.name)
def test_an_absurd_layer_count_in_a_file_does_not_fill_the_memory(container: Container, tmp_path: Path) -> None:
    contents, _ = tiny_model()
    absurd = replace(contents, config=replace(contents.config, layers=999_999_999))
    (part,) = container.layout(absurd, "x", Split())
    path = tmp_path / ("x" + container.suffix)
    path.write_bytes(part.prefix + bytes(part.size - len(part.prefix)))
    with pytest.raises(ContainerError, match="claims 999999999 layers"):
        open_model(path)


def test_a_tensor_in_two_shards_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", shards=2)
    write_safetensors(folder / "model-00002-of-00002.safetensors", source_tensors())
    with pytest.raises(CheckpointError, match="is in two shards: model-00001-of-00002"):
        open_model(folder)


def test_a_folder_with_weights_of_another_name_or_none_says_which(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    with pytest.raises(CheckpointError, match=r"found consolidated.safetensors but neither model.safetensors nor"):
        open_model(folder)
    (folder / "consolidated.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no model.safetensors and no .* is it a model folder"):
        open_model(folder)


def test_a_model_has_one_fingerprint_whatever_its_shards(tmp_path: Path) -> None:
    one = HuggingFaceModel(write_folder(tmp_path / "a"))
    three = HuggingFaceModel(write_folder(tmp_path / "b", shards=3))
    other = HuggingFaceModel(write_folder(tmp_path / "c", rms_norm_eps=1e-6))
    assert one.fingerprint() == three.fingerprint() != other.fingerprint()
    assert [len(model.weight_files) for model in (one, three)] == [1, 3]
