# SPDX-License-Identifier: Apache-2.0
"""GPTQ, AWQ and bitsandbytes folders: written, read back bit for bit, refused in one line where they are damaged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from model_files import CONFIG, random_tensor, tiny_model
from safetensors.numpy import load_file, save_file

from lilliput.architectures.architecture import Json
from lilliput.checkpoints.model_source import Provenance
from lilliput.containers import container_for, open_model
from lilliput.containers.awq import Awq
from lilliput.containers.bitsandbytes import BitsAndBytes, BitsAndBytesDouble
from lilliput.containers.checkpoint_folder import CheckpointFolder
from lilliput.containers.compressed_tensors import EightBitInputs
from lilliput.containers.container import Contents, Split
from lilliput.containers.gptq import Gptq
from lilliput.containers.mlx import Mlx
from lilliput.containers.publish import publish
from lilliput.errors import CheckpointError, ContainerError, LilliputError
from lilliput.formats import get_format
from lilliput.records import QuantizedTensor, TensorHeader

SMALL: dict[str, Json] = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1}
MODULE = "model.layers.0.mlp.down_proj"
NAME = "blk.0.ffn_down.weight"
HELD = (
    *((Gptq(), name) for name in ("int4_g128", "int4_g32", "int8_g64", "int2_g32", "int3_g64", "int4_channel")),
    *((Gptq(), name) for name in ("int4_g128_asym", "int2_g16_asym", "int3_g32_asym", "int8_channel_asym")),
    *((Gptq(), name) for name in ("int4_g32_ordered", "int8_g64_ordered", "int2_g16_asym_ordered")),
    *((Awq(), name) for name in ("int4_g128_asym", "int4_g32_asym", "int4_g64_asym")),
    *((EightBitInputs(), name) for name in ("int8_channel", "fp8_e4m3_channel", "fp8_e4m3_tensor")),
    *((BitsAndBytesDouble(), name) for name in ("nf4", "nf4_g128", "fp4bnb")),
    *((BitsAndBytes(), name) for name in ("nf4", "nf4_g128", "fp4bnb", "fp4bnb_g128", "int8_channel")),
    *((Mlx(), f"int{bits}_g{group}_affine") for bits, group in ((2, 32), (3, 64), (4, 64), (5, 128), (6, 32), (8, 64))),
    *((Mlx(), name) for name in ("mxfp4", "nvfp4")),
)


def model(kind: str, **changes: Json) -> tuple[Contents, dict[str, QuantizedTensor]]:
    """The tiny Llama as if from a Hugging Face folder: layers in one format, the rest F32."""
    fields = {**SMALL, **changes}
    contents, tensors = tiny_model(get_format(kind), **fields)
    for name in ("token_embd.weight", "output.weight"):
        if name in tensors:
            tensors[name] = random_tensor(name, tensors[name].shape, get_format("f32"), 1)
    headers = tuple(TensorHeader(tensor.name, tensor.shape, tensor.format) for tensor in tensors.values())
    provenance = Provenance(huggingface_config={**CONFIG, **fields})
    return replace(contents, headers=headers, provenance=provenance), tensors


def made(container: CheckpointFolder, folder: Path, kind: str, **changes: Json) -> Path:
    contents, tensors = model(kind, **changes)
    target = folder / f"m{container.suffix}"
    publish(container, contents, tensors.values(), target)
    return target


def edited(target: Path, **arrays: np.ndarray | None) -> None:
    """Replace or remove arrays of MODULE by their last part."""
    stored = load_file(target / "model.safetensors")
    for part, array in arrays.items():
        if array is None:
            del stored[f"{MODULE}.{part}"]
        else:
            stored[f"{MODULE}.{part}"] = np.ascontiguousarray(array)
    save_file(stored, target / "model.safetensors", metadata={"format": "pt"})


def configured(target: Path, **fields: Json) -> None:
    config = json.loads((target / "config.json").read_text())
    for key in {"quantization", "quantization_config"} & set(config):
        config[key] |= fields
    (target / "config.json").write_text(json.dumps(config))


def arrays_of(target: Path) -> dict[str, np.ndarray]:
    found = load_file(target / "model.safetensors")
    return {name.removeprefix(f"{MODULE}."): array for name, array in found.items() if name.startswith(MODULE)}


def fields(words: np.ndarray, bits: int) -> np.ndarray:
    """Little-endian bit strings along the last axis -> codes."""
    stream = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, bitorder="little")
    return stream.reshape(len(words), -1, bits) @ (1 << np.arange(bits))


@pytest.mark.parametrize(("container", "kind"), HELD, ids=lambda item: getattr(item, "name", item))
def test_what_is_written_is_read_back_bit_for_bit(container: CheckpointFolder, kind: str, tmp_path: Path) -> None:
    contents, tensors = model(kind)
    parts = container.layout(contents, f"m{container.suffix}", Split())
    target = made(container, tmp_path, kind)
    assert sum(part.size for part in parts) == sum(path.stat().st_size for path in target.iterdir())
    found = open_model(target)
    sources = {entry.name: entry.source for entry in contents.architecture.tensor_table(contents.config)}
    for name, tensor in tensors.items():
        expected = container.settled(tensor, sources[name])
        again = found.tensor(name)
        assert (again.shape, again.format.name) == (tensor.shape, tensor.format.name), name
        assert {plane: array.tobytes() for plane, array in again.planes.items()} == {
            plane: array.tobytes() for plane, array in expected.planes.items()
        }
    assert container_for(target).name == container.name
    assert container.recognises(target)


def test_scales_of_int8_move_by_one_unit_in_the_last_place_at_most_for_bitsandbytes() -> None:
    tensor = random_tensor("x", (512, 8), get_format("int8_channel"), 3)
    scale = np.linspace(1e-4, 0.3, 512, dtype=np.float32).reshape(-1, 1)
    tensor = replace(tensor, planes={**tensor.planes, "scale": scale})
    settled = BitsAndBytes().packing.settled(tensor)
    distance = np.abs(settled.planes["scale"].view(np.int32) - scale.view(np.int32))
    assert 0 < (distance > 0).mean() < 0.02
    assert distance.max() == 1
    again = BitsAndBytes().packing.settled(settled)
    assert np.array_equal(again.planes["scale"], settled.planes["scale"])


@pytest.mark.parametrize(("kind", "bits", "stored_less"), [("int4_g32", 4, 1), ("int3_g32_asym", 3, 0)])
def test_gptq_arrays_lie_as_the_layout_says(kind: str, bits: int, stored_less: int, tmp_path: Path) -> None:
    target = made(Gptq(), tmp_path, kind)
    tensor = model(kind)[1][NAME]
    encoded = tensor.format.unpack(tensor.planes, 256)
    arrays = arrays_of(target)
    assert np.array_equal(fields(arrays["qweight"].T, bits), encoded.codes)
    zero_point = encoded.parameters.get("zero_point", np.full((128, 8), 1 << (bits - 1)))
    assert np.array_equal(fields(arrays["qzeros"], bits).T, zero_point - stored_less)
    assert np.array_equal(arrays["scales"].T, encoded.parameters["scale"])
    assert arrays["g_idx"].tolist() == [column // 32 for column in range(256)]
    config = json.loads((target / "config.json").read_text())["quantization_config"]
    assert config["checkpoint_format"] == ("gptq" if stored_less else "gptq_v2")


def test_awq_nibbles_are_in_their_order(tmp_path: Path) -> None:
    target = made(Awq(), tmp_path, "int4_g32_asym")
    tensor = model("int4_g32_asym")[1][NAME]
    codes = np.asarray(tensor.format.unpack(tensor.planes, 256).codes)
    word = int(arrays_of(target)["qweight"].view(np.uint32)[5, 2])
    assert [word >> 4 * nibble & 15 for nibble in range(8)] == [
        int(codes[16 + output, 5]) for output in (0, 2, 4, 6, 1, 3, 5, 7)
    ]


def test_columns_in_another_order_keep_their_codes_and_their_groups(tmp_path: Path) -> None:
    target = made(Gptq(), tmp_path, "int4_g32_asym")
    encoded = (tensor := model("int4_g32_asym")[1][NAME]).format.unpack(tensor.planes, 256)
    order = np.random.default_rng(0).permutation(256).astype(np.int32) // 32
    edited(target, g_idx=order)
    found = open_model(target).tensor(NAME)
    scale = encoded.parameters["scale"].astype(np.float32)[:, order]
    level = encoded.codes.astype(np.float32) - encoded.parameters["zero_point"][:, order]
    assert found.format.name == "int4_g32_asym_ordered"
    assert np.array_equal(found.planes["codes"], tensor.planes["codes"])
    assert np.array_equal(found.dequantize(), scale * level)


def test_groups_of_another_size_in_another_order_are_cut_in_that_order(tmp_path: Path) -> None:
    target = made(Gptq(), tmp_path, "int4_g256_ordered", intermediate_size=1024, hidden_size=1024)
    arrays = arrays_of(target)
    edited(target, scales=arrays["scales"][::2], qzeros=arrays["qzeros"][::2], g_idx=arrays["g_idx"] // 2)
    found = open_model(target).tensor(NAME)
    assert found.format.name == "int4_g256_ordered"
    codes = np.asarray(found.format.unpack(found.planes, 1024).codes).astype(np.float32)
    assert np.bincount(found.planes["column_group"].reshape(-1)).tolist() == [256] * 4
    scale = arrays["scales"][::2].T.astype(np.float32)[:, arrays["g_idx"] // 2]
    assert np.array_equal(found.dequantize(), scale * (codes - 8))


def test_groups_of_different_sizes_are_read_as_the_group_index_says(tmp_path: Path) -> None:
    target = made(Gptq(), tmp_path, "int4_g32")
    arrays = arrays_of(target)
    order = np.where(np.arange(256) < 100, 3, np.arange(256) // 32).astype(np.int32)
    edited(target, g_idx=order)
    found = open_model(target).tensor(NAME)
    assert found.format.name == "int4_g32_ordered"
    codes = np.asarray(found.format.unpack(found.planes, 256).codes).astype(np.float32)
    assert np.array_equal(found.dequantize(), arrays["scales"].T.astype(np.float32)[:, order] * (codes - 8))


@pytest.mark.parametrize(("kind", "layout"), [("int4_g32_ordered", "gptq"), ("int4_g32_asym_ordered", "gptq_v2")])
def test_the_config_says_that_columns_have_an_order(kind: str, layout: str, tmp_path: Path) -> None:
    target = made(Gptq(), tmp_path, kind)
    config = json.loads((target / "config.json").read_text())["quantization_config"]
    assert (config["desc_act"], config["checkpoint_format"], config["group_size"]) == (True, layout, 32)
    assert arrays_of(target)["g_idx"].tolist() == model(kind)[1][NAME].planes["column_group"].reshape(-1).tolist()


def test_an_order_that_is_the_columns_own_is_no_order_to_the_reader(tmp_path: Path) -> None:
    contents, tensors = model("int4_g32_ordered")
    for name, tensor in tensors.items():
        if "column_group" in tensor.planes:
            natural = (np.arange(tensor.columns) // 32).astype("<i4")[None, None, :]
            tensors[name] = replace(tensor, planes={**tensor.planes, "column_group": natural})
    publish(Gptq(), contents, tensors.values(), tmp_path / "m.gptq")
    found = open_model(tmp_path / "m.gptq").tensor(NAME)
    assert found.format.name == "int4_g32"
    assert np.array_equal(found.dequantize(), tensors[NAME].dequantize())


def test_an_order_of_columns_has_no_place_elsewhere() -> None:
    contents, _ = model("int4_g32_asym_ordered")
    with pytest.raises(ContainerError, match="an awq folder cannot hold INT4_G32_ASYM_ORDERED"):
        Awq().layout(contents, "m.awq", Split())


def test_zero_points_of_v1_wrap_around(tmp_path: Path) -> None:
    target = made(Gptq(), tmp_path, "int4_g32_asym")
    words = arrays_of(target)["qzeros"].view(np.uint32)
    less_one = sum((((words >> 4 * n & 15) - 1) & 15) << 4 * n for n in range(8)).astype(np.uint32)
    before = open_model(target).tensor(NAME).dequantize()
    stored = load_file(target / "model.safetensors")
    for name, array in stored.items():
        if name.endswith("qzeros"):
            stored[name] = np.zeros_like(array)
    stored[f"{MODULE}.qzeros"] = less_one.view(np.int32)
    save_file(stored, target / "model.safetensors", metadata={"format": "pt"})
    configured(target, checkpoint_format="gptq")
    assert np.array_equal(open_model(target).tensor(NAME).dequantize(), before)


def test_groups_without_a_format_of_their_own_are_cut(tmp_path: Path) -> None:
    target = made(Gptq(), tmp_path, "int4_g256", intermediate_size=1024, hidden_size=1024)
    arrays = arrays_of(target)
    edited(target, scales=arrays["scales"][::2], qzeros=arrays["qzeros"][::2], g_idx=arrays["g_idx"] // 2)
    found = open_model(target).tensor(NAME)
    assert found.format.name == "int4_g256"
    assert np.array_equal(found.planes["scale"], np.repeat(arrays["scales"].T[:, ::2], 2, axis=1))


def test_nf4_blocks_that_run_over_rows_are_cut_where_rows_end(tmp_path: Path) -> None:
    # Rows of 96 in blocks of 64: borders at multiples of 32.
    shape: dict[str, Json] = {"hidden_size": 96, "intermediate_size": 128, "num_attention_heads": 2}
    target = made(BitsAndBytes(), tmp_path, "nf4", hidden_size=128, intermediate_size=128)
    config = json.loads((target / "config.json").read_text()) | shape | {"num_key_value_heads": 1}
    stored = load_file(target / "model.safetensors")
    generator = np.random.default_rng(0)
    codes = generator.integers(0, 16, 96 * 96, dtype=np.uint8)
    absmax = generator.uniform(0.1, 1.0, 96 * 96 // 64).astype(np.float32)
    state = json.dumps({"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [96, 96]}).encode()
    name = "model.layers.0.self_attn.o_proj.weight"
    plain = {
        "model.embed_tokens.weight": (64, 96), "model.norm.weight": (96,), "lm_head.weight": (64, 96),
        "model.layers.0.input_layernorm.weight": (96,), "model.layers.0.post_attention_layernorm.weight": (96,),
        "model.layers.0.self_attn.q_proj.weight": (96, 96), "model.layers.0.self_attn.k_proj.weight": (48, 96),
        "model.layers.0.self_attn.v_proj.weight": (48, 96), "model.layers.0.mlp.gate_proj.weight": (128, 96),
        "model.layers.0.mlp.up_proj.weight": (128, 96), "model.layers.0.mlp.down_proj.weight": (96, 128),
    }  # fmt: skip
    levels = stored[f"{name}.quant_map"]
    stored = {key: np.zeros(size, np.float32) for key, size in plain.items()} | {
        name: (codes[::2] << 4 | codes[1::2]).reshape(-1, 1),
        f"{name}.absmax": absmax,
        f"{name}.quant_map": levels,
        f"{name}.quant_state.bitsandbytes__nf4": np.frombuffer(state, np.uint8),
    }
    save_file(stored, target / "model.safetensors", metadata={"format": "pt"})
    (target / "config.json").write_text(json.dumps(config))
    found = open_model(target).tensor("blk.0.attn_output.weight")
    assert found.format.name == "nf4_g32"
    expected = levels[codes] * np.repeat(absmax, 64)
    assert np.array_equal(found.dequantize().reshape(-1), expected)


def test_doubly_quantized_scales_are_decoded_exactly(tmp_path: Path) -> None:
    target = made(BitsAndBytes(), tmp_path, "nf4")
    blocks = 128 * 256 // 64
    generator = np.random.default_rng(1)
    codes = generator.integers(0, 256, blocks, dtype=np.uint8)
    table, outer = np.linspace(-1, 1, 256, dtype=np.float32), generator.uniform(1, 2, 2).astype(np.float32)
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [128, 256], "nested_blocksize": 256}
    text = json.dumps(state | {"nested_dtype": "float32", "nested_offset": 2.5}).encode()
    stored = load_file(target / "model.safetensors")
    name = f"{MODULE}.weight"
    stored |= {
        f"{name}.absmax": codes, f"{name}.nested_absmax": outer, f"{name}.nested_quant_map": table,
        f"{name}.quant_state.bitsandbytes__nf4": np.frombuffer(text, np.uint8),
    }  # fmt: skip
    save_file(stored, target / "model.safetensors", metadata={"format": "pt"})
    found = open_model(target).tensor(NAME)
    expected = table[codes] * np.repeat(outer, 256) + np.float32(2.5)
    assert found.format.name == "nf4"
    assert np.array_equal(found.planes["scale"].reshape(-1), expected)


def test_several_formats_in_one_folder_are_refused_before_any_work(tmp_path: Path) -> None:
    contents, tensors = model("int4_g32")
    other = random_tensor(NAME, tensors[NAME].shape, get_format("int4_g64"), 1)
    headers = tuple(
        TensorHeader(header.name, header.shape, other.format) if header.name == NAME else header
        for header in contents.headers
    )
    with pytest.raises(ContainerError, match="one quantized format for all layers"):
        Gptq().layout(replace(contents, headers=headers), "m.gptq", Split())


def test_layers_left_in_floats_are_named_for_each_reader(tmp_path: Path) -> None:
    contents, tensors = model("int4_g32")
    tensors[NAME] = random_tensor(NAME, tensors[NAME].shape, get_format("f16"), 1)
    headers = tuple(TensorHeader(tensor.name, tensor.shape, tensor.format) for tensor in tensors.values())
    publish(Gptq(), replace(contents, headers=headers), tensors.values(), tmp_path / "m.gptq")
    config = json.loads((tmp_path / "m.gptq" / "config.json").read_text())["quantization_config"]
    assert MODULE not in config["modules_in_block_to_quantize"][0]
    assert len(config["modules_in_block_to_quantize"][0]) == 6
    assert list(config["dynamic"]) == [r"-:^model\.layers\.0\.mlp\.down_proj$"]
    assert open_model(tmp_path / "m.gptq").headers[NAME].format.name == "f16"


@pytest.mark.parametrize(
    ("container", "kind", "changes", "says"),
    [
        (Gptq(), "int4_g32", {"qzeros": None}, "qzeros' is missing"),
        (Gptq(), "int4_g32", {"qzeros": np.zeros((3, 16), np.int32)}, r"qzeros' is I32 \[3, 16\]"),
        (Gptq(), "int4_g32", {"qweight": np.zeros((32, 8), np.float32)}, "qweight' is F32"),
        (Gptq(), "int4_g32", {"qweight": np.zeros((7, 128), np.int32)}, "readable are 2, 3, 4, 8"),
        (Gptq(), "int4_g32", {"g_idx": np.full(256, 9, np.int32)}, "names group 9; the layer has 8"),
        (Gptq(), "int4_g32", {"scales": np.zeros((7, 128), np.float16)}, "in 7 groups is no matrix"),
        (Awq(), "int4_g32_asym", {"scales": np.zeros((7, 128), np.float16)}, r"implies I32 \[7, 16\]"),
        (Awq(), "int4_g32_asym", {"qzeros": None}, "qzeros' is missing"),
        (BitsAndBytes(), "int8_channel", {"SCB": np.zeros(3, np.float32)}, r"SCB' is F32 \[3\]"),
        (BitsAndBytes(), "int8_channel", {"weight_format": np.ones((), np.uint8)}, "another order"),
        (BitsAndBytes(), "nf4", {"weight.absmax": np.zeros(3, np.float32)}, r"absmax' is F32 \[3\]"),
        (BitsAndBytes(), "nf4", {"weight.quant_map": None}, "quant_map' is missing"),
        (Mlx(), "int4_g64_affine", {"biases": None}, "biases' is missing"),
        (Mlx(), "int4_g64_affine", {"biases": np.zeros((128, 3), np.float16)}, r"biases' is F16 \[128, 3\]"),
        (Mlx(), "int4_g64_affine", {"scales": np.zeros(7, np.float16)}, r"scales' has shape \[7\]"),
        (Mlx(), "int4_g64_affine", {"weight": np.zeros((128, 31), np.uint32)}, r"weight' is U32 \[128, 31\]"),
        (Mlx(), "nvfp4", {"global_scale": np.ones(1, np.float32)}, "a second scale of a matrix"),
    ],
)
def test_damaged_arrays_are_named(
    container: CheckpointFolder, kind: str, changes: dict[str, np.ndarray | None], says: str, tmp_path: Path
) -> None:
    target = made(container, tmp_path, kind)
    edited(target, **changes)
    with pytest.raises(CheckpointError, match=says) as caught:
        open_model(target)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"shape": [1 << 40, 2]}, "no shape of a matrix"),
        ({"shape": [128, 256], "blocksize": 0}, "blocks of 0"),
        ({"shape": [128, 256], "blocksize": 64, "nested_blocksize": 0, "nested_offset": 1.0}, "nested_blocksize 0"),
        ({"shape": [128, 256], "blocksize": 64, "nested_blocksize": 256}, "nested_offset None"),
        ([], "not a JSON object"),
    ],
)
def test_a_strange_quant_state_is_refused(state: object, says: str, tmp_path: Path) -> None:
    target = made(BitsAndBytes(), tmp_path, "nf4")
    text = np.frombuffer(json.dumps(state).encode(), np.uint8)
    edited(target, **{"weight.quant_state.bitsandbytes__nf4": text})
    with pytest.raises(CheckpointError, match=says):
        open_model(target)


@pytest.mark.parametrize(
    ("container", "kind", "changes", "says"),
    [
        (Gptq(), "int4_g32", {"checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'"),
        (Gptq(), "int4_g32", {"adapter": {"x": 1}}, "adapter is set"),
        (Awq(), "int4_g32_asym", {"version": "gemv"}, "version is 'gemv'"),
        (Awq(), "int4_g32_asym", {"bits": 3}, "bits is 3"),
        (Mlx(), "int4_g64_affine", {"bits": 7}, "bits 7 of 'model.layers.0"),
        (Mlx(), "int4_g64_affine", {"group_size": "64"}, "group_size '64' and bits 4"),
        (Mlx(), "int4_g64_affine", {"mode": "mxfp8"}, "mode is 'mxfp8'"),
    ],
)
def test_an_unknown_layout_names_the_field(
    container: CheckpointFolder, kind: str, changes: dict[str, Json], says: str, tmp_path: Path
) -> None:
    target = made(container, tmp_path, kind)
    configured(target, **changes)
    with pytest.raises(LilliputError, match=says):
        open_model(target)


@pytest.mark.parametrize(
    ("container", "kind", "file_name", "renamed"),
    [
        (Gptq(), "int4_g32", "quantize_config.json", "gptq_model-4bit-32g.safetensors"),
        (Awq(), "int4_g32_asym", "quant_config.json", "model.safetensors"),
    ],
)
def test_folders_of_2023_are_described_by_a_file_of_their_own(
    container: CheckpointFolder, kind: str, file_name: str, renamed: str, tmp_path: Path
) -> None:
    target = made(container, tmp_path, kind)
    before = open_model(target).tensor(NAME)
    config = json.loads((target / "config.json").read_text())
    described = config.pop("quantization_config")
    del described["quant_method"]
    if file_name == "quant_config.json":
        described |= {"w_bit": described.pop("bits"), "q_group_size": described.pop("group_size"), "version": "GEMM"}
    (target / "config.json").write_text(json.dumps(config))
    (target / file_name).write_text(json.dumps(described))
    (target / "model.safetensors").rename(target / renamed)
    found = open_model(target).tensor(NAME)
    assert found.format.name == kind
    assert all(np.array_equal(found.planes[name], before.planes[name]) for name in before.planes)
