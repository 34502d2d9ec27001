# SPDX-License-Identifier: Apache-2.0
"""qonnx's own executor computes what our fixed-point weights say."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx_models import contents_of, expected_and_bound, quantized_model
from random_models import CONFIGS, RandomModel

from lilliput.arrays import FloatArray
from lilliput.containers.onnx.qonnx import Qonnx
from lilliput.containers.publish import publish

pytestmark = [pytest.mark.external, pytest.mark.filterwarnings("ignore")]
SCRIPT = Path(__file__).with_name("qonnx_run.py")
TOKENS = [int(token) for token in np.random.default_rng(0).integers(0, 70, 32)]


@pytest.fixture(scope="session")
def qonnx_python(request: pytest.FixtureRequest) -> Path:
    from conftest import environment_python

    return environment_python(request, "qonnx")


def executed(python: Path, model: RandomModel, ranges: dict[str, float], folder: Path) -> FloatArray:
    publish(Qonnx(), replace(contents_of(model), input_ranges=ranges), model.tensors.values(), folder / "m.qonnx")
    np.save(folder / "ids.npy", np.array([TOKENS]))
    arguments = [folder / "m.qonnx" / "model.onnx", folder / "ids.npy", folder / "logits.npy"]
    run = subprocess.run(
        [str(python), "-I", str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return np.load(folder / "logits.npy")[0]


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("llama", "int8_channel_pow2"),
        ("qwen3", "int4_tensor_pow2"),
        ("gpt2", "fixed2.5"),
        ("mistral", "int6_channel_pow2"),
    ],
)
def test_logits_are_those_of_the_program(family: str, kind: str, qonnx_python: Path, tmp_path: Path) -> None:
    model = quantized_model(CONFIGS[family], kind)
    found = executed(qonnx_python, model, {}, tmp_path)
    expected, bound = expected_and_bound(model, TOKENS)
    assert np.abs(found - expected).max() <= bound


def test_inputs_are_rounded_to_a_power_of_two(qonnx_python: Path, tmp_path: Path) -> None:
    model = quantized_model({**CONFIGS["llama"], "tie_word_embeddings": False}, "int8_channel_pow2")
    plain = executed(qonnx_python, model, {}, tmp_path)
    # The last product alone has rounded inputs, so that everything before it is known exactly enough.
    (tmp_path / "r").mkdir()
    found = executed(qonnx_python, model, {"output.weight": 6.0}, tmp_path / "r")
    step = 2.0 ** np.ceil(np.log2(6.0 / 127))
    weight = np.abs(model.tensors["output.weight"].dequantize()).sum(axis=1)
    # Half a step at most for each input; none here lies beyond the range.
    difference = np.abs(found - plain)
    assert difference.max() > 0.0
    assert (difference <= step / 2 * weight * 1.001).all()
