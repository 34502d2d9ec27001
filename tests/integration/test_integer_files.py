# SPDX-License-Identifier: Apache-2.0
"""Files of integers alone: ranges of what operations give, and .int8.tflite files that are made with them.

tests/external/test_litert_integers.py runs these files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx_models import contents_of, quantized_model
from random_models import CONFIGS, RandomModel
from reference_program import ProgramSource, run_program
from test_encoder_calibration import encoder

from lilliput import workflows
from lilliput.architectures.architecture import Json
from lilliput.arrays import Array, FloatArray
from lilliput.calibration.output_ranges import output_ranges
from lilliput.calibration.statistics_file import merge, read_statistics
from lilliput.cli import main
from lilliput.containers.container import Contents, Split
from lilliput.containers.litert import integer_container
from lilliput.containers.litert.integer_container import IntegerLiteRt
from lilliput.containers.litert.reader import LiteRtFile
from lilliput.containers.onnx.operations import tensors_read
from lilliput.containers.onnx.qonnx import Qonnx
from lilliput.containers.onnx.reader import OnnxFile
from lilliput.containers.publish import publish
from lilliput.errors import CalibrationError, ContainerError

BERT: dict[str, Json] = {"model_type": "bert"}


def with_ranges(model: RandomModel) -> Contents:
    return replace(contents_of(model), output_ranges=output_ranges(model, [np.arange(2, 60)]))


@pytest.mark.parametrize(
    "name", ["int8_channel_narrow", "int8_tensor_narrow", "int4_channel_narrow", "ternary_channel"]
)
def test_files_of_integers_hold_our_weights(name: str, tmp_path: Path) -> None:
    model = quantized_model(BERT, name)
    publish(IntegerLiteRt(), with_ranges(model), model.tensors.values(), tmp_path / "m.int8.tflite")
    file = LiteRtFile(tmp_path / "m.int8.tflite")
    read = tensors_read(model.architecture.program(model.config))
    for weight, tensor in model.tensors.items():
        if weight not in read:
            # BERT's pooler, beside sentence vectors.
            continue
        if tensor.format.name != "f32":
            values = np.concatenate([part.reshape(-1) for part in file.values(weight)]).reshape(tensor.shape)
            assert np.array_equal(values, tensor.dequantize())
            continue
        # Vectors are rounded to 16 bits, biases to 32; norms' weights are stored times the root of their width.
        (rounded,) = (item for item in file.weights if item.startswith(f"{weight}.rounded"))
        values = np.concatenate([part.reshape(-1) for part in file.values(rounded)])
        wanted = tensor.dequantize().reshape(-1)[: values.size].astype(np.float64)
        wanted *= np.sqrt(wanted.size) if "norm.weight" in weight else 1.0
        steps = file.scales_of(rounded)
        # Of few bits, weights have large steps, and so have the biases beside them.
        assert steps.max() < np.abs(wanted).max() / 64 or not name.startswith("int8")
        # Half a step, and the rounding of what is read to float32.
        assert (np.abs(values - wanted) <= steps * 0.5 + 2.0**-23 * np.abs(wanted)).all()


def test_files_of_integers_need_ranges_of_outputs() -> None:
    model = quantized_model(BERT, "int8_channel_narrow")
    with pytest.raises(ContainerError, match=r"its range is not known; give --statistics FILE of .* --outputs"):
        IntegerLiteRt().layout(contents_of(model), "m.int8.tflite", Split())


def test_files_of_integers_are_of_encoders() -> None:
    model = quantized_model(CONFIGS["llama"], "int8_channel_narrow")
    with pytest.raises(ContainerError, match=r"llama: integer files are of encoders .* causal masks"):
        IntegerLiteRt().layout(with_ranges(model), "m.int8.tflite", Split())


def test_a_decoder_is_refused_by_the_plan_whatever_format_is_asked_for() -> None:
    # The format has no place in such a file either; a refusal of that alone would send the user to another one.
    with pytest.raises(ContainerError, match=r"causal masks, rotated positions .* -o NAME.tflite holds it"):
        workflows.plan("gulliver", "Q4_K_M", "X.int8.tflite")


def test_a_matrix_of_floats_is_refused_in_a_file_of_integers() -> None:
    model = quantized_model(BERT, "f32")
    with pytest.raises(ContainerError, match=r"attn_q.weight.: an integer file multiplies integers alone; choose INT8"):
        IntegerLiteRt().layout(with_ranges(model), "m.int8.tflite", Split())


def test_a_constant_that_was_changed_on_the_disk_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = quantized_model(BERT, "int8_channel_narrow")
    real = integer_container.fill

    def damaged(path: Path, constants: dict[str, tuple[Array | None, FloatArray]]) -> None:
        name = next(name for name, (codes, _) in constants.items() if codes is not None)
        codes, scales = constants[name]
        assert codes is not None
        real(path, {**constants, name: (codes ^ 1, scales)})

    monkeypatch.setattr(integer_container, "fill", damaged)
    with pytest.raises(ContainerError, match="read back differs from what was written"):
        publish(IntegerLiteRt(), with_ranges(model), model.tensors.values(), tmp_path / "m.int8.tflite")


def test_ranges_are_those_of_the_results_of_every_operation() -> None:
    model = quantized_model(BERT, "f32")
    tokens = np.arange(2, 60)
    ranges = output_ranges(model, [tokens[:30], tokens])
    program = model.architecture.program(model.config)
    for number, operation in enumerate(program.operations):
        buffer = getattr(operation, "out", "")
        cut = replace(program, operations=program.operations[: number + 1], output=buffer)
        both = [
            run_program(ProgramSource(cut, model.tensors), ids, range(len(ids)), np.float64)
            for ids in (tokens[:30].tolist(), tokens.tolist())
        ]
        low, high = min(found.min() for found in both), max(found.max() for found in both)
        assert np.allclose(ranges[f"{number}.{buffer}.out"], (low, high), atol=1e-4 * (high - low))
    parts = {name.rpartition(".")[2] for name in ranges}
    assert parts == {"out", "mean", "centred", "squares", "inverse", "normed", "scaled", "scores"}


def test_calibrate_and_quantize_write_a_file_of_integers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = encoder(tmp_path / "bert")
    (tmp_path / "text.txt").write_text("the cat sat on a mat and read of rain, wind and far hills. " * 60)
    for name, words in {"a": [], "b": ["--merge", str(tmp_path / "a.safetensors")]}.items():
        command = ["calibrate", str(folder), "--text", str(tmp_path / "text.txt"), "--outputs", "--context", "64"]
        assert main([*command, *words, "-o", str(tmp_path / f"{name}.safetensors")]) == 0
    first, both = (read_statistics(tmp_path / f"{name}.safetensors") for name in "ab")
    assert first.outputs
    assert both.outputs == first.outputs
    wider = {name: (low - 1.0, high) for name, (low, high) in first.outputs.items()}
    assert merge(first, replace(first, outputs=wider)).outputs == wider
    output = tmp_path / "m.int8.tflite"
    command = ["quantize", str(folder), "--to", "int8_channel_narrow", "-o", str(output)]
    assert main(command) == 1
    assert "--outputs" in capsys.readouterr().err
    assert main([*command, "--statistics", str(tmp_path / "b.safetensors")]) == 0
    assert "blk.0.ffn_up.weight" in LiteRtFile(output).weights


def test_damaged_ranges_are_refused(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    folder = encoder(tmp_path / "bert")
    path = tmp_path / "a.safetensors"
    assert main(["calibrate", str(folder), "--outputs", "--context", "64", "--tokens", "64", "-o", str(path)]) == 0
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        metadata: Mapping[str, str] = file.metadata()
    arrays = load_file(path)
    name = next(name for name in arrays if name.endswith(".range"))
    for ends in ([1.0, -1.0], [0.0, np.nan], [0.0, 1.0, 2.0]):
        save_file({**arrays, name: np.array(ends, "<f4")}, path, metadata=dict(metadata))
        with pytest.raises(CalibrationError, match=r"range is not a smallest and a largest value"):
            read_statistics(path)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_nothing_between_two_products_of_a_qonnx_graph_is_off_its_grid(family: str, tmp_path: Path) -> None:
    model = quantized_model(CONFIGS[family], "int8_channel_pow2")
    contents = replace(contents_of(model), output_ranges=output_ranges(model, [np.arange(2, 34)]))
    publish(Qonnx(), contents, model.tensors.values(), tmp_path / "m.qonnx")
    graph = OnnxFile(tmp_path / "m.qonnx" / "model.onnx").graph
    makers = {out: node for node in graph.nodes for out in node.outputs}
    moves = {"Reshape", "Transpose", "Identity", "Split", "Concat", "Unsqueeze"}

    def on_a_grid(value: str) -> bool:
        node = makers.get(value)
        return node is not None and (
            node.operation == "Quant" or (node.operation in moves and on_a_grid(node.inputs[0]))
        )

    products = [node for node in graph.nodes if node.operation == "Gemm"]
    assert len(products) > 8
    inside = [node for node in products if not on_a_grid(node.inputs[0])]
    # Of a mixture of experts, the gate's product with the other half lies inside one operation.
    assert not inside or family == "mixtral"
    assert on_a_grid(graph.outputs[0].name)
