# SPDX-License-Identifier: Apache-2.0
"""One command writes GGUF, compressed-tensors, ONNX and LiteRT of one quantized model; the owners of each run it.

The model is what `quantize` makes of one format, and the point that `fit` chooses of several within a size.

Which runtimes are there depends on the environment that runs these tests; each test skips where its own is missing.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import environment_python
from llama_cpp_logits import difference, their_log_probabilities
from onnx_models import Runner

from lilliput.arrays import FloatArray
from lilliput.cli import main
from lilliput.containers import open_model
from lilliput.models import gulliver
from lilliput.runtime.session import EngineOptions, Session
from lilliput.text.tokenizer import Tokenizer

pytestmark = [pytest.mark.external, pytest.mark.filterwarnings("ignore")]
TOKENS, SEQUENCE = 96, 128
# A search writes the first and moves it into the others.
FILES = ("m.compressed-tensors", "m.gguf", "m.onnx", "m.tflite")
COMMANDS = {
    "quantize": ("quantize", "gulliver", "--to", "int8_channel_narrow"),
    "fit": (
        *("fit", "gulliver", "--for", "vllm", "--size", "8.6MB", "--tokens", "2048"),
        *("--formats", "INT4_CHANNEL,INT5_CHANNEL,INT6_CHANNEL,INT7_CHANNEL"),
        *("--text", str(gulliver() / "sample.txt")),
    ),
}


@pytest.fixture(scope="module", params=list(COMMANDS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    outputs = [word for file in FILES for word in ("-o", str(folder / file))]
    assert main([*COMMANDS[request.param], *outputs]) == 0
    if request.param == "fit":
        # A mix, and the same one everywhere.
        formats = {header.format.name for header in open_model(folder / FILES[0]).headers.values()}
        assert len(formats & {"int4_channel", "int5_channel", "int6_channel", "int7_channel"}) > 1
    return folder


@pytest.fixture(scope="module")
def tokens(folder: Path) -> list[int]:
    text = (gulliver() / "sample.txt").read_text()[:2000]
    return list(Tokenizer(open_model(folder / "m.gguf").vocabulary()).encode(text))[:TOKENS]


@pytest.fixture(scope="module")
def expected(folder: Path, tokens: list[int]) -> FloatArray:
    """Logits of the reference: the folder's weights are the quantized model's exactly."""
    session = Session(
        open_model(folder / "m.compressed-tensors"),
        EngineOptions(activations="f32", kv_format="f32", context=SEQUENCE),
    )
    return np.asarray(session.forward(tokens, output="all"))


def farthest(found: FloatArray, expected: FloatArray) -> float:
    """Largest difference over the spread of the logits."""
    difference = float(np.abs(found - expected).max() / expected.std())
    print(f"largest difference {difference:.2e} of the logits' spread")
    return difference


def test_onnx_runtime_computes_the_reference(folder: Path, tokens: list[int], expected: FloatArray) -> None:
    pytest.importorskip("onnxruntime")
    # Sums in another order.
    assert farthest(Runner(folder / "m.onnx" / "model.onnx").forward(tokens), expected) < 1e-4


def test_transformers_computes_the_reference(folder: Path, tokens: list[int], expected: FloatArray) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("compressed_tensors")
    import torch

    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "m.compressed-tensors", dtype=torch.float32)
    with torch.no_grad():
        found = model(torch.tensor([tokens])).logits[0].numpy()
    assert farthest(found, expected) < 1e-4


def test_llama_cpp_computes_the_reference(folder: Path, request: pytest.FixtureRequest) -> None:
    text = (gulliver() / "sample.txt").read_text()[:4000]
    ids, log_probabilities = their_log_probabilities(request, folder / "m.gguf", text, TOKENS)
    options = EngineOptions(activations="f32", kv_format="f32", context=SEQUENCE)
    session = Session(open_model(folder / "m.compressed-tensors"), options)
    found, right = difference(log_probabilities, np.asarray(session.forward(ids, output="all")), ids)
    # Inputs rounded to 8 bits in blocks of 32, scales of weights to fp16, keys and values to fp16.
    assert farthest(found, right) < 0.1


def test_the_gguf_is_the_reference_with_scales_in_fp16(folder: Path, tokens: list[int], expected: FloatArray) -> None:
    options = EngineOptions(activations="f32", kv_format="f32", context=SEQUENCE)
    found = np.asarray(Session(open_model(folder / "m.gguf"), options).forward(tokens, output="all"))
    assert 0 < farthest(found, expected) < 0.02


@pytest.mark.parametrize("kind", ["plain", "xnnpack"])
def test_litert_computes_the_reference_with_rounded_inputs(
    kind: str, folder: Path, tokens: list[int], expected: FloatArray, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    python = environment_python(request, "litert")
    padded = np.array([tokens + [0] * (SEQUENCE - len(tokens))])
    np.save(tmp_path / "ids.npy", padded)
    script = Path(__file__).with_name("litert_run.py")
    arguments = [script, folder / "m.tflite", tmp_path / "ids.npy", tmp_path / "out.npy", kind]
    run = subprocess.run([str(python), "-I", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    found = np.load(tmp_path / "out.npy")[0, : len(tokens)]
    assert farthest(found, expected) < 0.2
    # Where the reference is sure of a token, so is LiteRT.
    top = np.sort(expected, axis=1)[:, -2:]
    sure = top[:, 1] - top[:, 0] > 1.0
    assert sure.sum() > TOKENS // 8
    assert (found.argmax(axis=1) == expected.argmax(axis=1))[sure].all()
