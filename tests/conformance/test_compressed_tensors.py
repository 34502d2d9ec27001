# SPDX-License-Identifier: Apache-2.0
"""compressed-tensors folders: written, read back bit for bit, and refused in one line where they are damaged."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from model_files import CONFIG, random_tensor, tiny_model
from safetensors.numpy import load_file, save_file

from lilliput.architectures.architecture import Json
from lilliput.checkpoints.model_source import Provenance
from lilliput.containers import container_for, open_model
from lilliput.containers.compressed_tensors import CompressedTensors
from lilliput.containers.container import Contents, Split
from lilliput.containers.publish import publish
from lilliput.errors import CheckpointError, ContainerError, LilliputError, PublishError
from lilliput.formats import FORMATS, NumberFormat, get_format
from lilliput.records import QuantizedTensor, TensorHeader

SMALL: dict[str, Json] = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1}
CONTAINER = CompressedTensors()
HELD = [item for item in FORMATS.values() if CONTAINER.holds(item) and item.name not in ("f32", "f16", "bf16")]
MODULE = "model.layers.0.mlp.down_proj"
NAME = "blk.0.ffn_down.weight"


def model(number_format: NumberFormat, folder: Path | None = None, **changes: Json) -> tuple[Contents, dict]:
    """The tiny Llama as if from a Hugging Face folder: layers in `number_format`, the rest F32."""
    fields = {**SMALL, **changes}
    contents, tensors = tiny_model(number_format, **fields)
    for name in ("token_embd.weight", "output.weight"):
        if name in tensors:
            tensors[name] = random_tensor(name, tensors[name].shape, get_format("f32"), 1)
    headers = tuple(TensorHeader(tensor.name, tensor.shape, tensor.format) for tensor in tensors.values())
    files = tuple(sorted(folder.iterdir())) if folder is not None else ()
    provenance = Provenance(side_files=files, huggingface_config={**CONFIG, **fields})
    return replace(contents, headers=headers, provenance=provenance), tensors


def made(target: Path, kind: str = "int4_g32", **changes: Json) -> Path:
    contents, tensors = model(get_format(kind), **changes)
    publish(CONTAINER, contents, tensors.values(), target)
    return target


def assert_same(folder: Path, tensors: dict[str, QuantizedTensor]) -> None:
    found = open_model(folder)
    assert set(found.headers) == set(tensors)
    for name, made_tensor in tensors.items():
        # The sign and NaN of random NVFP4 scales, which its readers ignore, are not kept.
        tensor = CONTAINER.packing.settled(made_tensor)
        again = found.tensor(name)
        assert (again.shape, again.format.name) == (tensor.shape, tensor.format.name), name
        for plane, array in tensor.planes.items():
            assert np.array_equal(again.planes[plane], array), (name, plane)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("number_format", HELD, ids=lambda item: item.name)
def test_what_is_written_is_read_back_bit_for_bit(number_format: NumberFormat, dtype: str, tmp_path: Path) -> None:
    target = tmp_path / "m.compressed-tensors"
    contents, tensors = model(number_format, dtype=dtype)
    parts = CONTAINER.layout(contents, target.name, Split())
    published = publish(CONTAINER, contents, tensors.values(), target)
    assert published.nbytes == sum(part.size for part in parts) == sum(path.stat().st_size for path in target.iterdir())
    assert_same(target, tensors)


@pytest.mark.parametrize("kind", ["int3_channel", "int5_g16_asym", "int7_channel_asym", "int6_tensor"])
def test_widths_that_straddle_words_survive(kind: str, tmp_path: Path) -> None:
    # Rows of 80 columns: none of these widths fills whole words of 32 bits.
    changes: dict[str, Json] = {"hidden_size": 80, "num_attention_heads": 2, "num_key_value_heads": 1}
    contents, tensors = model(get_format(kind), intermediate_size=48, **changes)
    publish(CONTAINER, contents, tensors.values(), tmp_path / "m.compressed-tensors")
    assert_same(tmp_path / "m.compressed-tensors", tensors)


def test_codes_lie_as_the_layout_says(tmp_path: Path) -> None:
    contents, tensors = model(get_format("int5_g32_asym"))
    target = tmp_path / "m.compressed-tensors"
    publish(CONTAINER, contents, tensors.values(), target)
    arrays = load_file(target / "model.safetensors")
    encoded = tensors[NAME].format.unpack(tensors[NAME].planes, 256)
    words = arrays[f"{MODULE}.weight_packed"]
    bits = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little")
    codes = bits.reshape(128, 256, 5) @ (1 << np.arange(5))
    assert np.array_equal(codes, encoded.codes)
    down = np.ascontiguousarray(arrays[f"{MODULE}.weight_zero_point"].T).view(np.uint8)
    zero_points = np.unpackbits(down, axis=1, bitorder="little").reshape(8, 128, 5) @ (1 << np.arange(5))
    assert np.array_equal(zero_points.T, encoded.parameters["zero_point"])
    assert arrays[f"{MODULE}.weight_shape"].tolist() == [128, 256]
    assert np.array_equal(arrays[f"{MODULE}.weight_scale"], encoded.parameters["scale"].astype(np.float32))


def test_query_rows_are_in_the_checkpoints_order(tmp_path: Path) -> None:
    contents, tensors = model(get_format("int8_channel"))
    publish(CONTAINER, contents, tensors.values(), tmp_path / "m.compressed-tensors")
    arrays = load_file(tmp_path / "m.compressed-tensors" / "model.safetensors")
    stored = arrays["model.layers.0.self_attn.q_proj.weight_packed"].view(np.uint8)
    ours = tensors["blk.0.attn_q.weight"].planes["codes"]
    half = 128 // 4 // 2
    # Head 1: our rows 0 and 1 of a head are its rows 0 and d/2.
    assert np.array_equal(stored[2 * half], ours[2 * half])
    assert np.array_equal(stored[3 * half], ours[2 * half + 1])


def test_a_split_folder_is_the_same_model(tmp_path: Path) -> None:
    contents, tensors = model(get_format("int4_g32"))
    target = tmp_path / "m.compressed-tensors"
    publish(CONTAINER, contents, tensors.values(), target, split=Split(max_bytes=60_000))
    index = json.loads((target / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert len(shards) > 1
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    assert index["metadata"]["total_size"] == sum(
        array.nbytes for shard in shards for array in load_file(target / shard).values()
    )
    assert_same(target, tensors)


def test_only_float_linears_are_ignored_and_groups_are_named(tmp_path: Path) -> None:
    contents, tensors = model(get_format("int4_g32"))
    for name, kind in ((NAME, "int8_channel"), ("blk.0.attn_output.weight", "f32")):
        tensors[name] = random_tensor(name, tensors[name].shape, get_format(kind), 3)
    headers = tuple(TensorHeader(item.name, item.shape, item.format) for item in tensors.values())
    publish(CONTAINER, replace(contents, headers=headers), tensors.values(), tmp_path / "m.compressed-tensors")
    config = json.loads((tmp_path / "m.compressed-tensors" / "config.json").read_text())
    quantization = config["quantization_config"]
    groups = quantization["config_groups"]
    assert quantization["ignore"] == ["model.layers.0.self_attn.o_proj", "lm_head"]
    assert groups["group_1"]["targets"] == [MODULE]
    assert groups["group_1"]["weights"]["strategy"] == "channel"
    assert "model.layers.0.self_attn.q_proj" in groups["group_0"]["targets"]
    assert_same(tmp_path / "m.compressed-tensors", tensors)


def test_a_tied_head_is_ignored_and_side_files_are_copied(tmp_path: Path) -> None:
    beside = tmp_path / "beside"
    beside.mkdir()
    for name in ("LICENSE", "tokenizer.json", "modeling_own.py"):
        (beside / name).write_text(name)
    contents, tensors = model(get_format("int4_g32"), beside, tie_word_embeddings=True)
    target = tmp_path / "m.compressed-tensors"
    publish(CONTAINER, contents, tensors.values(), target)
    config = json.loads((target / "config.json").read_text())
    assert config["quantization_config"]["ignore"] == ["lm_head"]
    assert {key: config[key] for key in CONFIG} == {**CONFIG, **SMALL, "tie_word_embeddings": True}
    assert [(target / name).read_text() for name in ("LICENSE", "modeling_own.py")] == ["LICENSE", "modeling_own.py"]


def formats(**kinds: str) -> Callable[[dict[str, QuantizedTensor]], None]:
    def change(tensors: dict[str, QuantizedTensor]) -> None:
        for name, kind in kinds.items():
            tensors[name] = random_tensor(name, tensors[name].shape, get_format(kind), 3)

    return change


@pytest.mark.parametrize(
    ("kinds", "says"),
    [
        ({NAME: "q4_k"}, f"'{NAME}' ({MODULE}.weight): a compressed-tensors folder cannot hold Q4_K; it holds int2"),
        ({"token_embd.weight": "int8_channel"}, "'token_embd.weight' (model.embed_tokens.weight): readers of"),
        ({"blk.0.attn_k.weight": "int8_channel"}, "'blk.0.attn_k.weight' (INT8_CHANNEL) are one matrix to vLLM"),
    ],
)
def test_what_it_cannot_hold_is_said_before_the_work(kinds: dict[str, str], says: str) -> None:
    contents, tensors = model(get_format("int4_g32"))
    formats(**kinds)(tensors)
    headers = tuple(TensorHeader(item.name, item.shape, item.format) for item in tensors.values())
    with pytest.raises(ContainerError, match=re.escape(says)):
        CONTAINER.layout(replace(contents, headers=headers), "m.compressed-tensors", Split())


def test_other_sources_and_unquantized_plans_are_refused() -> None:
    contents, _ = model(get_format("int4_g32"))
    with pytest.raises(ContainerError, match=r"takes config.json and the tokenizer's files from"):
        CONTAINER.layout(replace(contents, provenance=Provenance()), "m", Split())
    with pytest.raises(ContainerError, match="no tensor of this plan is quantized"):
        CONTAINER.layout(model(get_format("f32"))[0], "m", Split())


def test_a_failing_writer_leaves_nothing_and_force_replaces_only_its_own(tmp_path: Path) -> None:
    target = tmp_path / "m.compressed-tensors"
    contents, tensors = model(get_format("int4_g32"))
    with pytest.raises(ContainerError, match="never made"):
        publish(CONTAINER, contents, list(tensors.values())[:-1], target)
    assert list(tmp_path.iterdir()) == []
    made(target, "int8_channel")
    with pytest.raises(PublishError, match=r"model\.safetensors exists already"):
        publish(CONTAINER, contents, tensors.values(), target)
    publish(CONTAINER, contents, tensors.values(), target, overwrite=True)
    assert_same(target, tensors)
    (target / "thesis.tex").write_text("precious")
    with pytest.raises(PublishError, match=r"holds thesis\.tex, which is no part of the output"):
        publish(CONTAINER, contents, tensors.values(), target, overwrite=True)
    assert (target / "thesis.tex").read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_scales_of_a_foreign_file_that_fp16_cannot_hold_give_exact_floats(tmp_path: Path) -> None:
    target = made(tmp_path / "m.compressed-tensors")
    arrays = load_file(target / "model.safetensors")
    scale = arrays[f"{MODULE}.weight_scale"]
    arrays[f"{MODULE}.weight_scale"] = np.linspace(0.001, 0.01, scale.size, dtype=np.float32).reshape(scale.shape)
    save_file(arrays, target / "model.safetensors", metadata={"format": "pt"})
    found = open_model(target).tensor(NAME)
    codes = arrays[f"{MODULE}.weight_packed"].view(np.uint8)
    levels = np.stack([codes & 15, codes >> 4], axis=-1).reshape(128, 256).astype(np.float32) - 8
    assert found.format.name == "f32"
    assert np.array_equal(found.dequantize(), levels * np.repeat(arrays[f"{MODULE}.weight_scale"], 32, axis=1))


def test_foreign_eight_bit_integers_in_bytes_are_read(tmp_path: Path) -> None:
    target = made(tmp_path / "m.compressed-tensors", "int8_channel")
    ours = open_model(target).tensor(NAME)
    arrays = load_file(target / "model.safetensors")
    packed = arrays.pop(f"{MODULE}.weight_packed")
    del arrays[f"{MODULE}.weight_shape"]
    arrays[f"{MODULE}.weight"] = (packed.view(np.uint8) ^ 0x80).view(np.int8)
    save_file(arrays, target / "model.safetensors", metadata={"format": "pt"})
    found = open_model(target).tensor(NAME)
    assert found.format.name == "int8_channel"
    assert np.array_equal(found.dequantize(), ours.dequantize())


def edited(path: Path, *keys: str, value: object) -> None:
    config = json.loads(path.read_text())
    inner = config
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(config))


WEIGHTS = ("quantization_config", "config_groups", "group_0", "weights")


@pytest.mark.parametrize(
    ("keys", "value", "says"),
    [
        ((*WEIGHTS, "num_bits"), 12, "config_groups.group_0.weights.num_bits is 12; readable is 2 to 8"),
        ((*WEIGHTS, "group_size"), 48, "weights.group_size is 48; readable is 16, 32, 64, 128 or 256"),
        ((*WEIGHTS, "group_size"), 64, r"is F16 \[128, 4\]; quantization_config implies F32 or F16 or BF16 \[128, 2\]"),
        ((*WEIGHTS, "type"), "float", "weights.type is 'float'"),
        ((*WEIGHTS, "strategy"), "block", "weights.strategy is 'block'"),
        ((*WEIGHTS, "actorder"), "group", "weights.actorder is 'group'"),
        ((*WEIGHTS, "symmetric"), False, "weight_zero_point' is missing"),
        ((*WEIGHTS, "num_bits"), 8, r"weight_packed' is I32 \[\d+, \d+\]; quantization_config implies I32"),
        (("quantization_config", "format"), "marlin-24", r"compressed-tensors \(marlin-24\), which cannot be read yet"),
        (("quantization_config", "config_groups"), {}, "no group targets 'model.layers.0"),
        (("quantization_config", "config_groups", "group_0", "targets"), ["re:("], "is not a regular expression"),
        (("quantization_config", "config_groups", "group_0", "targets"), "Linear", "targets must be a list"),
        (("quantization_config", "transform_config"), {"a": 1}, "transform_config is set"),
    ],
)
def test_an_unknown_scheme_names_the_field(keys: tuple[str, ...], value: object, says: str, tmp_path: Path) -> None:
    target = made(tmp_path / "m.compressed-tensors", dtype="bfloat16")
    edited(target / "config.json", *keys, value=value)
    with pytest.raises(CheckpointError, match=says) as caught:
        open_model(target)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["weight_scale", "weight_shape", "weight_packed"])
def test_a_missing_array_is_named(suffix: str, tmp_path: Path) -> None:
    target = made(tmp_path / "m.compressed-tensors")
    arrays = load_file(target / "model.safetensors")
    del arrays[f"{MODULE}.{suffix}"]
    save_file(arrays, target / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"{MODULE}.weight"):
        open_model(target)


def test_damaged_folders_are_refused_in_one_line(tmp_path: Path) -> None:
    target = made(tmp_path / "m.compressed-tensors")
    path = target / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: truncated"):
        open_model(target)
    path.write_bytes(data)
    contents, tensors = model(get_format("int4_g32"))
    split = tmp_path / "s.compressed-tensors"
    publish(CONTAINER, contents, tensors.values(), split, split=Split(max_bytes=60_000))
    index = json.loads((split / "model.safetensors.index.json").read_text())
    del index["weight_map"][f"{MODULE}.weight_scale"]
    shard = index["weight_map"][f"{MODULE}.weight_packed"]
    index["weight_map"][f"{MODULE}.nothing"] = shard
    (split / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"nothing' is promised by"):
        open_model(split)
    (split / shard).unlink()
    with pytest.raises(CheckpointError, match=f"shards missing: {shard}"):
        open_model(split)


@pytest.mark.parametrize("shape", [[0, 256], [1 << 40, 1 << 40], [-128, -256], [64, 256]])
def test_a_wrong_declared_shape_is_refused(shape: list[int], tmp_path: Path) -> None:
    target = made(tmp_path / "m.compressed-tensors")
    arrays = load_file(target / "model.safetensors")
    arrays[f"{MODULE}.weight_shape"] = np.array(shape)
    save_file(arrays, target / "model.safetensors")
    with pytest.raises(LilliputError, match=f"{MODULE}.weight"):
        open_model(target)


def test_the_name_of_the_output_decides(tmp_path: Path) -> None:
    assert container_for(tmp_path / "m.compressed-tensors").name == "compressed-tensors"
    assert CONTAINER.recognises(made(tmp_path / "m.compressed-tensors"))
    assert not CONTAINER.recognises(tmp_path)
    with pytest.raises(ContainerError, match=r"must end in a known ending.*`lilliput formats`"):
        container_for(tmp_path / "m.mdl")
