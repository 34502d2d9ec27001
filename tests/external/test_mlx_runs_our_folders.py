# SPDX-License-Identifier: Apache-2.0
"""mlx-lm, on its CPU backend, runs the folders that we write, and what it quantizes itself is read here."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import environment_python
from tiny_llama import write_tiny_llama

from lilliput import workflows
from lilliput.containers import open_model
from lilliput.converting import convert
from lilliput.recipes.recipe import parse_recipe
from lilliput.runtime.session import EngineOptions, Session

pytestmark = [pytest.mark.external, pytest.mark.filterwarnings("ignore")]
SCRIPT = Path(__file__).with_name("mlx_run.py")
TOKENS = [int(token) for token in np.random.default_rng(0).integers(2, 380, 48)]
FORMATS = ("int2_g32_affine", "int3_g64_affine", "int4_g64_affine", "int5_g32_affine", "int6_g128_affine")
MIXED = """
name: mixed
rules:
  - {role: token_embedding, format: F32}
  - {role: output, format: F32}
  - {match: "*.self_attn.*", format: int8_g64_affine}
  - {match: "*.down_proj.weight", format: mxfp4}
  - {match: "*", format: int4_g32_affine}
"""


@pytest.fixture(scope="session")
def mlx(request: pytest.FixtureRequest) -> Path:
    return environment_python(request, "mlx")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny") / "m")


def run(python: Path, *words: object) -> None:
    done = subprocess.run([python, "-I", SCRIPT, *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def theirs(python: Path, folder: Path, work: Path) -> np.ndarray:
    np.save(work / "ids.npy", np.array([TOKENS]))
    run(python, "logits", folder, work / "ids.npy", work / "out.npy")
    return np.load(work / "out.npy")[0]


def ours(folder: Path) -> np.ndarray:
    session = Session(open_model(folder), EngineOptions(activations="f32", kv_format="f32", context=64))
    return np.asarray(session.forward(TOKENS, output="all"))


@pytest.mark.parametrize("name", [*FORMATS, "mxfp4", "nvfp4", "mixed"])
def test_logits_are_those_of_our_decoded_weights(name: str, tiny: Path, tmp_path: Path, mlx: Path) -> None:
    target = tmp_path / "made.mlx"
    recipe = parse_recipe(MIXED, "mixed.yaml") if name == "mixed" else name
    workflows.quantize(tiny, recipe, target)
    expected, floats = ours(target), ours(tiny)
    found = theirs(mlx, target, tmp_path)
    difference, away = (float(np.abs(other - expected).max()) for other in (found, floats))
    print(f"{name}: {difference:.2e} from our decoded weights; the float model is {away:.3f} away")
    # Sums in float32 in another order.
    assert difference < 1e-4 * np.abs(expected).max()
    assert difference < 0.01 * away


def test_a_gguf_moves_there_exactly(tiny: Path, tmp_path: Path, mlx: Path) -> None:
    rules = "name: x\nrules:\n  - {role: token_embedding, format: F32}\n  - {role: output, format: F32}\n"
    recipe = parse_recipe(f'{rules}  - {{match: "*", format: Q4_0}}\n', "x.yaml")
    workflows.quantize(tiny, recipe, tmp_path / "m.gguf")
    result = convert(tmp_path / "m.gguf", tmp_path / "moved.mlx")
    assert result.is_exact
    expected = ours(tmp_path / "m.gguf")
    assert np.abs(theirs(mlx, tmp_path / "moved.mlx", tmp_path) - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(("bits", "group"), [(4, 64), (3, 32), (8, 128)])
def test_what_it_quantizes_itself_is_read_exactly(bits: int, group: int, tiny: Path, tmp_path: Path, mlx: Path) -> None:
    made = tmp_path / "theirs"
    run(mlx, "convert", tiny, made, bits, group)
    source, stored = open_model(made), np.load(made / "dequantized.npz")
    names = {source.source_name(name): name for name in source.headers}
    assert set(stored) <= set(names)
    assert len(stored) > 14
    for name, values in stored.items():
        header = source.headers[names[name]]
        assert header.format.name == f"int{bits}_g{group}_affine"
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            # Rows lie in another order here.
            found, right = np.sort(source.tensor(names[name]).dequantize(), axis=0), np.sort(values, axis=0)
        else:
            found, right = source.tensor(names[name]).dequantize(), values
        # They multiply and add in one step.
        assert np.abs(found - right).max() <= 2.0**-23 * np.abs(right).max()
