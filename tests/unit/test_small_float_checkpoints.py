# SPDX-License-Identifier: Apache-2.0
"""FP8 and MXFP4 checkpoints keep their codes and scales, or become the floats that they stand for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from model_files import source_tensors, write_folder, write_safetensors

from lilliput.architectures.architecture import Json
from lilliput.checkpoints import four_bit_floats
from lilliput.checkpoints.huggingface import HuggingFaceModel
from lilliput.checkpoints.safetensors_reader import SafetensorsFile, decode_float32
from lilliput.errors import CheckpointError
from lilliput.records import QuantizedTensor

FP8: Json = {"quant_method": "fp8", "weight_block_size": [128, 128]}
Q, DOWN = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight"
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=np.float32)


def opened(folder: Path, changes: dict[str, tuple[str, tuple[int, ...], bytes]], **config: Json) -> HuggingFaceModel:
    write_folder(folder, **config)
    write_safetensors(folder / "model.safetensors", {**source_tensors(**config), **changes})
    return HuggingFaceModel(folder)


def eight_bit(rows: int, columns: int, name: str, seed: int = 0) -> tuple[dict, np.ndarray]:
    """An FP8 weight with a scale for each block of 128 x 128, and its values."""
    generator = np.random.default_rng(seed)
    codes = generator.integers(0, 0x7E, (rows, columns), dtype=np.uint8)
    scale = generator.uniform(0.001, 0.1, (-(-rows // 128), -(-columns // 128))).astype(np.float32)
    spread = np.repeat(np.repeat(scale, 128, axis=0)[:rows], 128, axis=1)[:, :columns]
    values = decode_float32("F8_E4M3", codes.reshape(-1)).reshape(rows, columns) * spread
    arrays = {
        name: ("F8_E4M3", codes.shape, codes.tobytes()),
        f"{name}_scale_inv": ("F32", scale.shape, scale.tobytes()),
    }
    return arrays, values


def test_blocks_of_fp8_stay_what_they_are(tmp_path: Path) -> None:
    arrays, values = eight_bit(256, 512, DOWN)
    found = opened(tmp_path / "m", arrays, quantization_config=FP8).tensor("blk.0.ffn_down.weight")
    assert found.format.name == "fp8_e4m3_block128"
    assert np.array_equal(found.dequantize(), values)


@pytest.mark.parametrize(("heads", "expected"), [(4, "fp8_e4m3_block128"), (1, "f32")])
def test_rows_that_leave_their_block_become_floats(heads: int, expected: str, tmp_path: Path) -> None:
    # Heads of 64 rows are reordered within blocks of 128; one head of 256 is not.
    arrays, values = eight_bit(256, 256, Q)
    config: dict[str, Json] = {"num_attention_heads": heads, "num_key_value_heads": 1, "quantization_config": FP8}
    found = opened(tmp_path / "m", arrays, **config).tensor("blk.0.attn_q.weight")
    order = np.arange(256).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)
    assert found.format.name == expected
    assert np.array_equal(found.dequantize(), values[order])


def test_rows_that_do_not_divide_into_blocks_become_floats(tmp_path: Path) -> None:
    arrays, values = eight_bit(256, 320, DOWN)
    config: dict[str, Json] = {"intermediate_size": 320, "quantization_config": FP8}
    found = opened(tmp_path / "m", arrays, **config).tensor("blk.0.ffn_down.weight")
    assert found.format.name == "f32"
    assert np.array_equal(found.dequantize(), values)


def four_bit(lead: tuple[int, ...], groups: int, name: str) -> tuple[dict, np.ndarray]:
    generator = np.random.default_rng(3)
    codes = generator.integers(0, 256, (*lead, groups, 16), dtype=np.uint8)
    scales = generator.integers(110, 130, (*lead, groups), dtype=np.uint8)
    pairs = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*lead, groups, 32)
    values = E2M1[pairs] * np.exp2(scales.astype(np.float32) - 127)[..., None]
    arrays = {
        f"{name}_blocks": ("U8", codes.shape, codes.tobytes()),
        f"{name}_scales": ("U8", scales.shape, scales.tobytes()),
    }
    return arrays, values.reshape(*lead, -1)


def test_blocks_of_mxfp4_stay_what_they_are(tmp_path: Path) -> None:
    arrays, values = four_bit((256,), 16, DOWN)
    tensors = {name: array for name, array in source_tensors().items() if name != DOWN}
    write_folder(tmp_path / "m", quantization_config={"quant_method": "mxfp4"})
    write_safetensors(tmp_path / "m" / "model.safetensors", {**tensors, **arrays})
    found = HuggingFaceModel(tmp_path / "m").tensor("blk.0.ffn_down.weight")
    assert found.format.name == "mxfp4"
    assert np.array_equal(found.dequantize(), values)


def test_experts_of_mxfp4_keep_their_axis(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.experts.gate_up_proj"
    arrays, values = four_bit((3, 8), 2, name)
    write_safetensors(tmp_path / "x.safetensors", arrays)
    file = SafetensorsFile(tmp_path / "x.safetensors")
    files = dict.fromkeys(file.tensors, file)
    found = four_bit_floats.packed_weights(files)[name]
    assert found.shape == (3, 8, 64)
    tensor = QuantizedTensor(name, found.shape, found.format, found.planes(files))
    assert np.array_equal(tensor.dequantize(), values)


def test_strange_shapes_of_mxfp4_are_named(tmp_path: Path) -> None:
    write_safetensors(
        tmp_path / "x.safetensors", {"a_blocks": ("U8", (4, 8), bytes(32)), "a_scales": ("U8", (4,), bytes(4))}
    )
    file = SafetensorsFile(tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"'a_blocks' has shape \[4, 8\]; its last axis must be 16 bytes"):
        four_bit_floats.packed_weights(dict.fromkeys(file.tensors, file))
