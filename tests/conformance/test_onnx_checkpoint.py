# SPDX-License-Identifier: Apache-2.0
"""ONNX files are opened as models: ours, and those of ONNX Runtime's quantizers, whose codes are kept."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_llama import write_tiny_llama

from lilliput import workflows
from lilliput.containers import open_model
from lilliput.converting import convert
from lilliput.errors import CheckpointError, ContainerError

onnx = pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "Tiny"
    return write_tiny_llama(folder, hidden=64, ffn=96, layers=1, heads=2, kv_heads=1, context=64)


@pytest.mark.parametrize(
    ("kind", "suffix", "expected"),
    [
        ("int4_g32", ".onnx", "int4_g32"),
        ("int4_g16_asym", ".onnx", "int4_g16_asym"),
        ("int8_channel", ".onnx", None),
        ("q8_0", ".onnx", "int8_g32"),
        ("int4_g32", ".qdq.onnx", "int4_g32"),
        ("int8_channel", ".qdq.onnx", "int8_channel"),
        ("int8_channel", ".int8.onnx", "int8_channel"),
    ],
)
def test_what_was_written_is_opened_as_the_same_model(
    kind: str, suffix: str, expected: str | None, tiny: Path, tmp_path: Path
) -> None:
    target, reference = tmp_path / f"m{suffix}", tmp_path / "m.safetensors"
    workflows.quantize(tiny, kind, target)
    # The embedding stays in floats in the profiles, so that the layers are what is compared.
    workflows.quantize(tiny, kind, reference)
    found, right = open_model(target), open_model(reference)
    assert set(found.headers) == set(right.headers)
    layers = [name for name in right.headers if name.startswith("blk") and right.headers[name].rows > 1]
    for name in layers:
        assert np.array_equal(found.tensor(name).dequantize(), right.tensor(name).dequantize()), name
        assert expected is None or found.headers[name].format.name == expected
    assert found.vocabulary().tokens == right.vocabulary().tokens


def test_a_graph_moves_into_a_gguf_without_rounding(tiny: Path, tmp_path: Path) -> None:
    workflows.quantize(tiny, "int4_g32", tmp_path / "m.onnx")
    result = convert(tmp_path / "m.onnx", tmp_path / "m.gguf")
    assert result.is_exact
    assert open_model(tmp_path / "m.gguf").headers["blk.0.ffn_down.weight"].format.name == "q4_0"


def graph(tiny: Path, folder: Path, *, named: bool = True) -> Path:
    """Products of a layer's names as exporters of PyTorch write them: constants without names, operators with."""
    from onnx import TensorProto, helper, numpy_helper

    source = open_model(tiny)
    nodes, constants, last = [], [], "x"
    for number, (name, header) in enumerate(source.headers.items()):
        theirs, values = source.source_name(name), source.tensor(name).dequantize()
        if name.endswith(("attn_q.weight", "attn_k.weight")):
            heads = header.rows // 32
            values = values.reshape(heads, 16, 2, -1).swapaxes(1, 2).reshape(header.rows, -1)
        if len(header.shape) > 1 and "embed" not in theirs:
            stored, path = f"onnx::MatMul_{number}", "/model/" + theirs.removesuffix(".weight").replace(".", "/")
            path = path.replace("/layers/0/", "/layers.0/")
            constants.append(numpy_helper.from_array(np.ascontiguousarray(values.T), stored))
            nodes.append(
                helper.make_node("MatMul", [last, stored], [f"y{number}"], name=f"{path}/MatMul" if named else "")
            )
        else:
            constants.append(numpy_helper.from_array(values, f"model.{theirs}"))
            nodes.append(helper.make_node("Mul", [last, f"model.{theirs}"], [f"y{number}"], name=f"/model/mul{number}"))
    ports = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "n"])]
    made = helper.make_graph(
        nodes, "g", ports, [helper.make_tensor_value_info("y0", TensorProto.FLOAT, None)], constants
    )
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)]), folder / "model.onnx")
    for path in tiny.iterdir():
        if path.suffix == ".json":
            shutil.copy(path, folder / path.name)
    return folder


def test_weights_are_known_by_the_operators_that_multiply_with_them(tiny: Path, tmp_path: Path) -> None:
    found, right = open_model(graph(tiny, tmp_path / "theirs")), open_model(tiny)
    assert set(found.headers) == set(right.headers)
    for name in right.headers:
        assert np.array_equal(found.tensor(name).dequantize(), right.tensor(name).dequantize()), name


@pytest.mark.parametrize("per_channel", [True, False])
def test_integers_of_quantize_dynamic_keep_their_codes(per_channel: bool, tiny: Path, tmp_path: Path) -> None:
    quantization = pytest.importorskip("onnxruntime.quantization")
    start = graph(tiny, tmp_path / "floats")
    target = graph(tiny, tmp_path / "theirs") / "model.onnx"
    kind = quantization.QuantType.QInt8 if per_channel else quantization.QuantType.QUInt8
    quantization.quantize_dynamic(start / "model.onnx", target, per_channel=per_channel, weight_type=kind)
    found, right = open_model(target), open_model(tiny)
    name = "blk.0.ffn_down.weight"
    assert found.headers[name].format.name.startswith("int8_channel")
    values, floats = found.tensor(name).dequantize(), right.tensor(name).dequantize()
    # Half a step of the widest row.
    assert 0 < np.abs(values - floats).max() <= 0.51 * (floats.max() - floats.min()) / 127
    stored = {item.name: onnx.numpy_helper.to_array(item) for item in onnx.load(target).graph.initializer}
    codes = next(array for key, array in stored.items() if key.endswith("_quantized") and array.shape == (96, 64))
    assert codes.dtype == (np.int8 if per_channel else np.uint8)


def test_what_is_not_recognised_is_said(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ContainerError, match=r"model.onnx: 8 tensors were not recognised, first .*'blk.0.attn_q"):
        open_model(graph(tiny, tmp_path / "a", named=False))
    folder = graph(tiny, tmp_path / "b")
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"put the model's config\.json beside it"):
        open_model(folder / "model.onnx")
    (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes()[:1000])
    shutil.copy(tiny / "config.json", folder / "config.json")
    with pytest.raises(ContainerError):
        open_model(folder)
