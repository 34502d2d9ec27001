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
from reference_program import ProgramSource, run_program

from lilliput.architectures.encoder_half import place
from lilliput.architectures.program import Operation
from lilliput.arrays import FloatArray
from lilliput.calibration.output_ranges import output_ranges
from lilliput.containers.container import Contents
from lilliput.containers.onnx.qonnx import Qonnx, power_step, result_bits
from lilliput.containers.publish import publish

pytestmark = [pytest.mark.external, pytest.mark.filterwarnings("ignore")]
SCRIPT = Path(__file__).with_name("qonnx_run.py")
TOKENS = [int(token) for token in np.random.default_rng(0).integers(0, 70, 32)]


@pytest.fixture(scope="session")
def qonnx_python(request: pytest.FixtureRequest) -> Path:
    from conftest import environment_python

    return environment_python(request, "qonnx")


def executed(python: Path, model: RandomModel, ranges: dict[str, float], folder: Path) -> FloatArray:
    return run(python, replace(contents_of(model), input_ranges=ranges), model, folder)


def run(python: Path, contents: Contents, model: RandomModel, folder: Path) -> FloatArray:
    publish(Qonnx(), contents, model.tensors.values(), folder / "m.qonnx")
    np.save(folder / "ids.npy", np.array([TOKENS]))
    arguments = [folder / "m.qonnx" / "model.onnx", folder / "ids.npy", folder / "logits.npy"]
    done = subprocess.run(
        [str(python), "-I", str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
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


@pytest.mark.parametrize(("family", "kind"), [("llama", "int8_channel_pow2"), ("gpt2", "int8_tensor_pow2")])
def test_results_of_operations_are_the_codes_of_our_integer_reference(
    family: str, kind: str, qonnx_python: Path, tmp_path: Path
) -> None:
    model = quantized_model(CONFIGS[family], kind)
    ranges = output_ranges(model, [np.array(TOKENS)])
    contents = replace(contents_of(model), output_ranges=ranges)
    found = run(qonnx_python, contents, model, tmp_path)
    program = model.architecture.program(model.config)
    last = len(program.operations) - 1
    steps = {}

    def rounded(number: int, operation: Operation, x: np.ndarray) -> np.ndarray:
        low, high = ranges[place(number, operation)]
        bits = result_bits(operation, is_last=number == last)
        steps[number] = power_step(max(-low, high), bits)
        codes = np.clip(np.rint(x / steps[number]), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        return codes * steps[number]

    ours = run_program(ProgramSource(program, model.tensors, rounded=rounded), TOKENS, range(len(TOKENS)))
    floats = run_program(ProgramSource(program, model.tensors), TOKENS, range(len(TOKENS)))
    assert np.array_equal(found / steps[last], np.rint(found / steps[last]))
    away = np.abs(found - ours) / floats.std()
    print(
        f"{family}: {np.sqrt((away**2).mean()):.4f} of the spread from our integer reference, "
        f"{np.sqrt(((found - floats) ** 2).mean()) / floats.std():.3f} from floats"
    )
    # Sums of float32 fall on the other side of a tie here and there, and what follows differs by that code.
    assert np.median(away) < 0.01
    assert 0.0 < np.sqrt(((found - floats) ** 2).mean()) < 0.25 * floats.std()
