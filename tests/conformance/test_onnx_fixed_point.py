# SPDX-License-Identifier: Apache-2.0
"""QONNX folders: fixed point on its grid, powers of two, every shape known. Run by tests/external/test_qonnx.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx_models import contents_of, quantized_model, write
from random_models import CONFIGS

from lilliput.containers.container import Split
from lilliput.containers.onnx.qonnx import Qonnx
from lilliput.containers.onnx.reader import OnnxFile
from lilliput.errors import ContainerError
from lilliput.formats import FORMATS, NumberFormat

HELD = [item for item in FORMATS.values() if Qonnx().holds(item) and item.name not in ("f32", "f16", "bf16")]


@pytest.mark.parametrize("number_format", [*HELD], ids=lambda item: item.name)
def test_weights_lie_on_grids_of_powers_of_two(number_format: NumberFormat, tmp_path: Path) -> None:
    model = quantized_model(CONFIGS["llama"], number_format.name)
    file = OnnxFile(write(model, tmp_path / "m.qonnx", Qonnx()))
    for name, tensor in model.tensors.items():
        assert np.array_equal(
            np.concatenate([part.reshape(-1) for part in file.values(name)]).reshape(tensor.shape), tensor.dequantize()
        )
    scales = [node.inputs[1] for node in file.graph.nodes if node.operation == "Quant"]
    assert len(scales) > 10
    assert all((np.frexp(file.constants.floats(scale))[0] == 0.5).all() for scale in scales)


@pytest.mark.parametrize("family", CONFIGS)
def test_every_family_has_only_known_shapes_and_standard_operators(family: str, tmp_path: Path) -> None:
    model = quantized_model(CONFIGS[family], "int8_channel_pow2")
    graph = OnnxFile(write(model, tmp_path / "m.qonnx", Qonnx())).graph
    assert [(port.name, port.shape) for port in graph.inputs] == [("input_ids", (1, 32))]
    assert [(port.name, port.shape) for port in graph.outputs] == [("logits", (1, 32, 70))]
    assert {node.domain for node in graph.nodes} == {"", "qonnx.custom_op.general"}
    assert not {node.operation for node in graph.nodes} & {"Shape", "Range", "Expand", "Where"}


def test_measured_ranges_become_powers_of_two_that_hold_them(tmp_path: Path) -> None:
    model = quantized_model(CONFIGS["llama"], "int8_channel_pow2")
    contents = replace(contents_of(model), input_ranges={"output.weight": 6.0})
    graph = Qonnx()._graphs(contents, Qonnx().placed(contents))["model.onnx"]
    last = [node for node in graph.nodes if node.operation == "Quant" and node.inputs[0] not in graph.initializers]
    assert len(last) == 1
    step = np.frombuffer(graph.initializers[last[0].inputs[1]].data, "<f4")[0]
    assert step == 2.0**-4
    assert 6.0 / step <= 127 < 6.0 / (step / 2)


def test_scales_that_are_no_powers_of_two_are_refused() -> None:
    model = quantized_model(CONFIGS["llama"], "int8_channel")
    with pytest.raises(ContainerError, match="cannot hold INT8_CHANNEL; QONNX folders hold powers of two as scales"):
        Qonnx().layout(contents_of(model), "m.qonnx", Split())
