# SPDX-License-Identifier: Apache-2.0
"""ONNX folders of standard operators: dequantized weights, 8-bit inputs, TensorRT's rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from onnx_models import Runner, contents_of, expected_and_bound, quantized_model, write
from random_models import CONFIGS, RandomModel
from reference_program import encoded_tensor, float_tensor

from lilliput.architectures import program as operations
from lilliput.architectures.architecture import Json
from lilliput.calibration.input_ranges import input_ranges
from lilliput.containers import container_for
from lilliput.containers.container import Split
from lilliput.containers.onnx.constants import Constants
from lilliput.containers.onnx.container import Onnx
from lilliput.containers.onnx.graph import ElementType, Graph, Initializer, Node
from lilliput.containers.onnx.profiles import OnnxInteger, OnnxStandard, OnnxTensorRt
from lilliput.containers.onnx.reader import OnnxFile
from lilliput.containers.onnx.tensorrt import lint
from lilliput.containers.publish import publish
from lilliput.errors import ContainerError, LilliputError
from lilliput.formats import FORMATS, NumberFormat
from lilliput.records import InputStatistics, Statistics

pytestmark = pytest.mark.filterwarnings("ignore")
onnx = pytest.importorskip("onnx", reason="the extra [onnx] is not installed")
pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")
UNIT = 2.0**-24
TOKENS = [3, 17, 0, 42, 42, 9, 60, 8, 1, 33, 2, 55]
SMALL: dict[str, Json] = {
    "model_type": "llama", "hidden_size": 256, "head_dim": 64, "intermediate_size": 256, "num_hidden_layers": 1
}  # fmt: skip


def held_by(container: Onnx) -> list[NumberFormat]:
    return [item for item in FORMATS.values() if container.holds(item) and item.can_encode]


def by_name(item: object) -> str:
    return str(getattr(item, "name", item))


def with_float_embedding(model: RandomModel) -> RandomModel:
    values = model.tensors["token_embd.weight"].dequantize()
    return replace(model, tensors={**model.tensors, "token_embd.weight": float_tensor("token_embd.weight", values)})


def assert_computes(path: Path, model: RandomModel) -> None:
    expected, bound = expected_and_bound(model, TOKENS)
    runner = Runner(path)
    found = [runner.forward(TOKENS[:-2]), *(runner.forward([token]) for token in TOKENS[-2:])]
    assert np.abs(np.concatenate(found) - expected).max() <= bound


@pytest.mark.parametrize("number_format", held_by(OnnxStandard()), ids=by_name)
def test_dequantized_weights_are_ours_in_every_format_held(number_format: NumberFormat, tmp_path: Path) -> None:
    model = with_float_embedding(quantized_model(SMALL, number_format.name))
    path = write(model, tmp_path / "m.qdq.onnx", OnnxStandard())
    onnx.checker.check_model(str(path))
    assert_computes(path, model)


@pytest.mark.parametrize("family", CONFIGS)
def test_every_family_goes_through_standard_operators(family: str, tmp_path: Path) -> None:
    model = quantized_model(CONFIGS[family], "int8_channel")
    path = write(model, tmp_path / "m.qdq.onnx", OnnxStandard())
    assert {node.domain for node in OnnxFile(path).graph.nodes} == {""}
    assert_computes(path, model)


def test_rows_of_four_bits_are_not_looked_up(tmp_path: Path) -> None:
    with pytest.raises(ContainerError, match=r"'token_embd\.weight': rows of INT4_G32 cannot be looked up"):
        write(quantized_model(SMALL, "int4_g32"), tmp_path / "m.qdq.onnx", OnnxStandard())


@dataclass(frozen=True)
class Toy:
    """An architecture of one program."""

    made: operations.Program

    def program(self, config: object) -> operations.Program:
        return self.made


def one_product(format_name: str, rows: tuple[int, int] | None = None) -> RandomModel:
    """An embedding and a head of 48 outputs, with a bias; inputs of the head are rows of floats."""
    generator = np.random.default_rng(3)
    table = generator.normal(0.2, 1.0, (70, 64)).astype(np.float32)
    weight = generator.normal(0.0, 0.2, (96, 64)).astype(np.float32)
    bias = generator.normal(0.0, 1.0, 96).astype(np.float32)
    outputs = 96 if rows is None else rows[1] - rows[0]
    body: list[operations.Operation] = [operations.Embed("x", "token_embd.weight")]
    if rows is None:
        body.append(operations.Linear("logits", "x", "output.weight", "output.bias"))
    else:
        # The halves of one weight.
        body += [
            operations.Linear("a", "x", "output.weight", "output.bias", rows=(0, rows[0])),
            operations.Linear("b", "x", "output.weight", "output.bias", rows=rows),
            operations.Add("logits", "a", "b"),
        ]
    program = operations.Program({"x": 64, "a": outputs, "b": outputs, "logits": outputs}, (), tuple(body), "logits")
    tensors = {
        "token_embd.weight": float_tensor("token_embd.weight", table),
        "output.weight": encoded_tensor("output.weight", weight, format_name),
        "output.bias": float_tensor("output.bias", bias),
    }
    base = quantized_model({"model_type": "llama"}, "f32")
    return replace(base, architecture=Toy(program), tensors=tensors)  # type: ignore[arg-type]


def written(model: RandomModel, folder: Path, container: Onnx, ranges: dict[str, float]) -> Path:
    publish(container, replace(contents_of(model), input_ranges=ranges), model.tensors.values(), folder)
    return folder / "model.onnx"


def product_and_bound(model: RandomModel, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x @ weight.T + bias in float64, and the bound of float32 sums."""
    weight = model.tensors["output.weight"].dequantize().astype(np.float64)
    bias = model.tensors["output.bias"].dequantize().astype(np.float64)
    terms = np.abs(x) @ np.abs(weight).T + np.abs(bias)
    return x @ weight.T + bias, (weight.shape[1] + 4) * UNIT * terms


@pytest.mark.parametrize("name", ["int8_channel", "int8_tensor", "int4_channel", "ternary_channel"])
def test_dynamic_inputs_are_rounded_as_the_operator_says(name: str, tmp_path: Path) -> None:
    model = one_product(name)
    found = Runner(written(model, tmp_path / "m.int8.onnx", OnnxInteger(), {})).forward(TOKENS)
    x = model.tensors["token_embd.weight"].dequantize()[TOKENS]
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = np.float32((np.float32(high) - np.float32(low)) / np.float32(255))
    zero = np.round(-np.float32(low) / scale)
    rounded = (np.clip(np.round(x / scale) + zero, 0, 255) - zero).astype(np.float64) * float(scale)
    expected, bound = product_and_bound(model, rounded)
    assert (np.abs(found - expected) <= bound).all()
    unrounded, _ = product_and_bound(model, x.astype(np.float64))
    assert np.abs(found - unrounded).max() > 20 * bound.max()


@pytest.mark.parametrize("container", [OnnxInteger(), OnnxTensorRt()], ids=by_name)
@pytest.mark.parametrize("rows", [None, (48, 96)], ids=["whole", "halves"])
def test_static_inputs_are_rounded_to_the_range_that_was_measured(
    container: Onnx, rows: tuple[int, int] | None, tmp_path: Path
) -> None:
    model = one_product("int8_channel_narrow", rows)
    # Smaller than the largest, so that some inputs are clipped.
    ranges = {"output.weight": 2.5}
    found = Runner(written(model, tmp_path / f"m{container.suffix}", container, ranges)).forward(TOKENS)
    x = model.tensors["token_embd.weight"].dequantize()[TOKENS]
    scale = np.float32(2.5 / 127)
    rounded = np.clip(np.round(x / scale), -128, 127).astype(np.float64) * float(scale)
    expected, bound = product_and_bound(model, rounded)
    if rows is not None:
        expected, bound = expected[:, :48] + expected[:, 48:], bound[:, :48] + bound[:, 48:]
    assert (np.abs(found - expected) <= bound).all()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_whole_models_with_dynamic_inputs_stay_near_their_weights(family: str, tmp_path: Path) -> None:
    model = quantized_model(CONFIGS[family], "int8_channel")
    found = Runner(write(model, tmp_path / "m.int8.onnx", OnnxInteger())).forward(TOKENS)
    expected, _ = expected_and_bound(model, TOKENS)
    # A rounding to 1/255 of the range of all tokens is about 1 % of an input, through some ten products in a row.
    assert 0.0 < np.sqrt(np.mean((found - expected) ** 2)) < 0.1 * np.std(expected)


def test_fp8_inputs_are_rounded_to_the_range_that_was_measured(tmp_path: Path) -> None:
    import ml_dtypes

    model = one_product("fp8_e4m3_channel")
    path = written(model, tmp_path / "m.tensorrt.onnx", OnnxTensorRt(), {"output.weight": 4.0})
    x = model.tensors["token_embd.weight"].dequantize()[TOKENS]
    scale = np.float32(4.0 / 448)
    rounded = np.clip(x / scale, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float64) * float(scale)
    expected, bound = product_and_bound(model, rounded)
    assert (np.abs(Runner(path).forward(TOKENS) - expected) <= bound).all()


@pytest.mark.parametrize("name", ["int8_channel_narrow", "int4_g32_narrow", "int8_channel_pow2", "fp8_e4m3_channel"])
def test_negative_scales_are_turned_without_loss_for_tensorrt(name: str, tmp_path: Path) -> None:
    model = one_product(name)
    tensor = model.tensors["output.weight"]
    if "scale" in tensor.planes:
        # A row of zeros, and one whose scale is negative.
        scale = np.array(tensor.planes["scale"])
        scale[3], scale[5] = 0, -np.abs(scale[5])
        tensor = replace(tensor, planes={**tensor.planes, "scale": scale})
        model = replace(model, tensors={**model.tensors, "output.weight": tensor})
    path = written(model, tmp_path / "m.tensorrt.onnx", OnnxTensorRt(), {"output.weight": 4.0})
    file = OnnxFile(path)
    assert (file.constants.floats("output.weight.scale") > 0).all()
    assert np.array_equal(np.concatenate(list(file.values("output.weight"))).reshape(96, 64), tensor.dequantize())


def test_what_tensorrt_cannot_take_is_refused_with_what_it_can(tmp_path: Path) -> None:
    def planned(name: str, container: Onnx, ranges: dict[str, float]) -> None:
        contents = replace(contents_of(one_product(name)), input_ranges=ranges)
        container.layout(contents, "m", Split())

    for name in ("int8_channel", "int4_g32", "int4_g32_asym", "int8_g32_narrow", "int8_g32", "q4_0"):
        with pytest.raises(ContainerError, match=r"'output.weight'.*TensorRT takes positive scales and no zero points"):
            planned(name, OnnxTensorRt(), {"output.weight": 1.0})
    with pytest.raises(ContainerError, match=r"'output.weight': FP8_E4M3_TENSOR needs the range of its inputs"):
        planned("fp8_e4m3_tensor", OnnxTensorRt(), {})
    planned("int4_g32_narrow", OnnxTensorRt(), {})
    with pytest.raises(ContainerError, match=r"'output.weight': INT8_CHANNEL needs the range of its inputs"):
        planned("int8_channel", OnnxInteger(), {"other.weight": 1.0})
    with pytest.raises(ContainerError, match=r"cannot hold INT4_G32; it holds integers with one scale a row"):
        planned("int4_g32", OnnxInteger(), {})
    with pytest.raises(ContainerError, match=r"'token_embd.weight': TensorRT looks up rows of floats"):
        OnnxTensorRt().layout(contents_of(quantized_model(SMALL, "int8_channel_narrow")), "m", Split())


def test_the_longer_of_two_endings_decides() -> None:
    names = {ending: container_for(Path(f"a.b{ending}")).name for ending in (".onnx", ".qdq.onnx", ".int8.onnx")}
    assert names == {".onnx": "onnx", ".qdq.onnx": "onnx-qdq", ".int8.onnx": "onnx-int8"}


@pytest.mark.parametrize("number_format", held_by(OnnxTensorRt()), ids=by_name)
def test_whole_models_for_tensorrt_keep_its_rules(number_format: NumberFormat, tmp_path: Path) -> None:
    model = with_float_embedding(quantized_model(SMALL, number_format.name))
    ranges = dict.fromkeys(model.tensors, 3.0)
    constants = Constants(written(model, tmp_path / "m.tensorrt.onnx", OnnxTensorRt(), ranges))
    assert lint(constants) == ()


Change = Callable[[Graph], None]


def changed(graph: Graph, operation: str, **changes: object) -> None:
    """Replace fields of the first node of an operation that reads a constant of codes, or of the first."""
    places = [place for place, node in enumerate(graph.nodes) if node.operation == operation]
    weights = [place for place in places if graph.nodes[place].inputs[0] in graph.initializers]
    place = (weights or places)[0]
    graph.nodes[place] = replace(graph.nodes[place], **changes)  # type: ignore[arg-type]


def constant(graph: Graph, values: np.ndarray | list[float], dtype: str) -> str:
    return graph.constant(np.asarray(values, dtype=dtype), dtype)


def unsigned(graph: Graph) -> None:
    item = graph.initializers["output.weight.codes"]
    graph.initializers[item.name] = replace(item, element=ElementType.UINT8)


def with_zero_point(graph: Graph) -> None:
    node = next(item for item in graph.nodes if item.inputs[0] == "output.weight.codes")
    changed(graph, "DequantizeLinear", inputs=(*node.inputs, constant(graph, [1] * 96, "int8")))


def computed_scale(graph: Graph) -> None:
    name = graph.add("Abs", "output.weight.scale")
    changed(graph, "DequantizeLinear", inputs=("output.weight.codes", name))


def negative_scale(graph: Graph) -> None:
    changed(graph, "DequantizeLinear", inputs=("output.weight.codes", constant(graph, [-1.0] * 96, "float32")))


def other_scales(graph: Graph) -> None:
    changed(graph, "DequantizeLinear", inputs=("output.weight.codes", constant(graph, [1.0] * 7, "float32")))


def ragged_blocks(graph: Graph) -> None:
    changed(
        graph, "DequantizeLinear", attributes={"axis": 1, "block_size": 16},
        inputs=("output.weight.codes", constant(graph, np.ones((96, 3)), "float32")),
    )  # fmt: skip


def summed_weight(graph: Graph) -> None:
    node = next(item for item in graph.nodes if item.inputs[0] == "output.weight.codes")
    graph.add("ReduceSum", node.outputs[0])


def float_inputs(graph: Graph) -> None:
    gemm = next(item for item in graph.nodes if item.operation == "Gemm")
    changed(graph, "Gemm", inputs=("float_rows", *gemm.inputs[1:]))


def two_scales(graph: Graph) -> None:
    quantize = next(item for item in graph.nodes if item.operation == "QuantizeLinear")
    changed(graph, "QuantizeLinear", inputs=(quantize.inputs[0], constant(graph, 7.0, "float32"), quantize.inputs[2]))


def scales_of_channels(graph: Graph) -> None:
    scale = constant(graph, [1.0] * 64, "float32")
    for place, node in enumerate(graph.nodes):
        if node.operation == "QuantizeLinear" or (
            node.operation == "DequantizeLinear" and "quantizelinear" in node.inputs[0]
        ):
            graph.nodes[place] = replace(node, inputs=(node.inputs[0], scale, *node.inputs[2:]))


def unsigned_inputs(graph: Graph) -> None:
    quantize = next(item for item in graph.nodes if item.operation == "QuantizeLinear")
    changed(graph, "QuantizeLinear", inputs=quantize.inputs[:2])


def foreign(graph: Graph) -> None:
    graph.nodes.append(Node("MatMulNBits", ("x",), ("y",), {}, "com.microsoft"))


def doubles(graph: Graph) -> None:
    graph.initializers["wide"] = Initializer("wide", ElementType.DOUBLE, (), bytes(8))


def integer_product(graph: Graph) -> None:
    graph.nodes.append(Node("DynamicQuantizeLinear", ("x",), ("a", "b", "c")))


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (unsigned, "types"), (unsigned_inputs, "types"), (with_zero_point, "zero-point"), (computed_scale, "scale"),
        (negative_scale, "scale"), (other_scales, "scale"), (ragged_blocks, "scale"), (summed_weight, "weights"),
        (float_inputs, "both"), (two_scales, "activations"), (scales_of_channels, "activations"),
        (foreign, "operators"), (doubles, "operators"), (integer_product, "operators"),
    ],
)  # fmt: skip
def test_each_published_rule_of_tensorrt_is_named_where_it_is_broken(change: Change, rule: str, tmp_path: Path) -> None:
    model = one_product("int8_channel_narrow")
    path = written(model, tmp_path / "m.tensorrt.onnx", OnnxTensorRt(), {"output.weight": 3.0})
    constants = Constants(path)
    assert lint(constants) == ()
    change(constants.graph)
    assert rule in {violation.rule for violation in lint(constants)}


def test_ranges_come_from_statistics_that_have_them() -> None:
    def inputs(values: list[float]) -> InputStatistics:
        return InputStatistics(4, np.ones(2), np.array(values, np.float32))

    known = {"a": inputs([1.0, 3.5]), "b": inputs([np.nan, np.nan]), "c": inputs([0.0, 0.0])}
    assert input_ranges(Statistics(known, 1, 4, (), "")) == {"a": 3.5}
    assert input_ranges(None) == {}


@pytest.mark.parametrize("container", [OnnxStandard(), OnnxInteger()], ids=by_name)
def test_random_damage_never_ends_in_anything_but_one_clear_line(container: Onnx, tmp_path: Path) -> None:
    path = written(one_product("int8_channel"), tmp_path / f"m{container.suffix}", container, {})
    content = path.read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(400):
        damaged = bytearray(content)
        for place in generator.integers(0, len(content), 3):
            damaged[place] = generator.integers(0, 256)
        path.write_bytes(bytes(damaged))
        try:
            file = OnnxFile(path)
            for name in file.weights:
                file.value_digest(name)
            lint(file.constants)
            file.close()
        except LilliputError:
            pass
