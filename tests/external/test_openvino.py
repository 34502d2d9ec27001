# SPDX-License-Identifier: Apache-2.0
"""OpenVINO runs our ONNX folders of standard operators, and its IR made from them, weights still compressed."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from onnx_models import Runner
from reference_program import ProgramSource, run_program

from lilliput import workflows
from lilliput.arrays import FloatArray
from lilliput.containers import open_model
from lilliput.models import gulliver
from lilliput.recipes.recipe import Recipe, parse_recipe
from lilliput.text.tokenizer import Tokenizer

pytestmark = [pytest.mark.external, pytest.mark.filterwarnings("ignore")]
SCRIPT = Path(__file__).with_name("openvino_run.py")
OPTIONS = workflows.QuantizeOptions(method="round_to_nearest")
TOKENS = 60


@pytest.fixture(scope="module")
def tokens() -> list[int]:
    with workflows.opened("gulliver") as source:
        text = (gulliver() / "sample.txt").read_text()[:2000]
        return Tokenizer(source.vocabulary()).encode(text, add_special=False)[:TOKENS]


@pytest.fixture(scope="module")
def statistics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("s") / "s.safetensors"
    options = workflows.CalibrateOptions(tokens=4096)
    workflows.calibrate("gulliver", [gulliver() / "sample.txt"], path, options=options)
    return path


def theirs(python: Path, model: Path, tokens: list[int], folder: Path, *saved: Path) -> tuple[FloatArray, dict]:
    np.save(folder / "ids.npy", np.array(tokens))
    arguments = [model, folder / "ids.npy", folder / "logits.npy", *saved]
    command = [str(python), "-I", str(SCRIPT), *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    return np.load(folder / "logits.npy"), json.loads(run.stdout.splitlines()[-1])


def exact_and_bound(kind: str, tokens: list[int], folder: Path) -> tuple[np.ndarray, float]:
    """Float64 logits of the same weights, and four times what a plain float32 forward misses them by."""
    workflows.quantize("gulliver", _mixed(kind), folder / "g.safetensors", options=OPTIONS)
    source = open_model(folder / "g.safetensors")
    tensors = {name: source.tensor(name) for name in source.headers}
    program = ProgramSource(source.architecture.program(source.config), tensors)
    expected = run_program(program, tokens, range(len(tokens)))
    return expected, 4 * float(np.abs(run_program(program, tokens, range(len(tokens)), np.float32) - expected).max())


def _mixed(kind: str) -> Recipe:
    """As `-o NAME.qdq.onnx` plans a format alone: the embedding, which is also the head, stays BF16."""
    rules = f"  - {{role: token_embedding, format: BF16}}\n  - {{match: '*', format: {kind}}}\n"
    return parse_recipe(f"name: {kind}\nrules:\n{rules}", f"{kind}.yaml")


@pytest.mark.parametrize(
    ("kind", "suffix", "type_name"),
    [
        ("int4_g32", ".qdq.onnx", "i4"), ("int8_channel", ".qdq.onnx", "i8"), ("int4_g128_asym", ".qdq.onnx", "u4"),
        ("int8_channel_asym", ".qdq.onnx", "u8"), ("int4_g128_narrow", ".tensorrt.onnx", "i4"),
    ],
)  # fmt: skip
def test_logits_are_those_of_our_weights_which_stay_compressed(
    kind: str, suffix: str, type_name: str, onnx_runtimes: Path, tokens: list[int], tmp_path: Path
) -> None:
    workflows.quantize("gulliver", kind, tmp_path / f"g{suffix}", options=OPTIONS)
    expected, bound = exact_and_bound(kind, tokens, tmp_path)
    saved = tmp_path / "ir" / "g.xml"
    saved.parent.mkdir()
    for target in ((), (saved,)):
        model = tmp_path / f"g{suffix}" / "model.onnx"
        found, kinds = theirs(onnx_runtimes, model, tokens, tmp_path, *target)
        print(f"{kind}: difference {np.abs(found - expected).max():.2e}, bound {bound:.2e}, {kinds}")
        assert np.abs(found - expected).max() <= bound
        assert kinds["file"][f"constant {type_name}"] == kinds["compiled"][f"constant {type_name}"] == 21
    # Four bits a weight are four bits in the IR.
    data = (tmp_path / f"g{suffix}" / "model.onnx.data").stat().st_size
    assert saved.with_suffix(".bin").stat().st_size < 1.02 * data


@pytest.mark.parametrize("suffix", [".int8.onnx", ".tensorrt.onnx"])
def test_static_int8_is_computed_in_bytes_and_close_to_onnx_runtime(
    suffix: str, onnx_runtimes: Path, tokens: list[int], statistics: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")
    guidance = workflows.Guidance(statistics=statistics)
    target = tmp_path / f"g{suffix}"
    workflows.quantize("gulliver", "int8_channel_narrow", target, guidance=guidance, options=OPTIONS)
    exact, _ = exact_and_bound("int8_channel_narrow", tokens, tmp_path)
    found, kinds = theirs(onnx_runtimes, target / "model.onnx", tokens, tmp_path)
    assert kinds["compiled"]["product i8"] == 21
    other = Runner(target / "model.onnx").forward(tokens)
    # A last bit decides here and there which byte an input becomes; that is far less than the rounding itself.
    assert np.abs(found - other).mean() < 0.25 * np.abs(other - exact).mean()
