# SPDX-License-Identifier: Apache-2.0
"""A Keras model quantized by our formats is what TensorFlow's own post-training quantization makes of it.

Its layers' kernels are rounded by us and put back; TensorFlow then finds them on its grid and changes nothing.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from conftest import environment_python

from lilliput.arrays import FloatArray
from lilliput.formats import get_format
from lilliput.methods import METHODS
from lilliput.records import NO_INPUTS

pytestmark = [pytest.mark.external, pytest.mark.filterwarnings("ignore")]
SCRIPT = Path(__file__).with_name("keras_quantize.py")


@dataclass(frozen=True)
class Both:
    """Arrays by name, of the model as it was and of the one with our weights. kernels: ours, decoded, [out, in]."""

    theirs: dict[str, FloatArray]
    ours: dict[str, FloatArray]
    kernels: list[FloatArray]


def rounded(kernel: FloatArray, name: str) -> FloatArray:
    """A Keras kernel [in, out] in a number format, decoded."""
    number_format = get_format(name)
    planes = METHODS["round_to_nearest"].quantize(number_format, np.ascontiguousarray(kernel.T), NO_INPUTS, threads=1)
    return number_format.dequantize(planes, kernel.shape[0]).T


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Both:
    python, folder = environment_python(request, "keras"), tmp_path_factory.mktemp("keras")

    def run(kind: str) -> None:
        done = subprocess.run([python, "-I", SCRIPT, kind, folder], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]

    run("make")
    stored = np.load(folder / "weights.npz")
    weights = [stored[name] for name in stored.files]
    kept = [rounded(item, "int8_channel_narrow") if item.ndim == 2 else item for item in weights]
    np.savez(folder / "ours.npz", *kept)
    run("ours")
    found = [dict(np.load(folder / name)) for name in ("theirs.npz", "ours_computed.npz")]
    return Both(found[0], found[1], [item.T for item in kept if item.ndim == 2])


@pytest.mark.parametrize("kind", ["dynamic", "integer"])
def test_weights_are_the_same_codes_under_the_same_scales(kind: str, both: Both) -> None:
    for kernel in both.kernels:
        name = "x".join(map(str, kernel.shape))
        scale = both.theirs[f"{kind} scale {name}"][:, None]
        values = both.theirs[f"{kind} {name}"] * scale
        # One step of float32: they divide by 127 and we do, in another order.
        assert np.abs(values - kernel).max() <= 127 * 2.0**-23 * scale.max()
        assert np.array_equal(both.theirs[f"{kind} {name}"], both.ours[f"{kind} {name}"])


@pytest.mark.parametrize("kind", ["dynamic", "integer"])
def test_outputs_are_those_of_their_own_quantization(kind: str, both: Both) -> None:
    """Differences are over the spread of the outputs.

    dynamic: nothing differs but the last bit of scales.  integer: ranges of activations are measured on weights that
    differ by their rounding, so each output may lie two of its own steps away.
    """
    spread = float(both.theirs["float"].std())
    step = float(both.theirs["integer scale 4x40"][0])
    bound = 1e-5 * spread if kind == "dynamic" else 2.01 * step
    difference = float(np.abs(both.ours[kind] - both.theirs[kind]).max())
    away = float(np.abs(both.theirs[kind] - both.theirs["float"]).max())
    print(f"{kind}: {difference / spread:.1e} of the spread from their own, which is {away / spread:.1e} from floats")
    assert difference <= bound
    assert difference < away
