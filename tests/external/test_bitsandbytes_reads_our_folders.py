# SPDX-License-Identifier: Apache-2.0
"""transformers and bitsandbytes run the folders that we write, and we read what they wrote: the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from decoded_folders import write_decoded
from emulated_rounding import BFLOAT16, error_bound, int8_rows
from tiny_llama import write_tiny_llama

from lilliput import workflows
from lilliput.arrays import FloatArray
from lilliput.containers import open_model

if TYPE_CHECKING:
    import torch

pytestmark = [pytest.mark.external, pytest.mark.filterwarnings("ignore")]
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")

TOKENS = (np.arange(3, 35).reshape(2, 16) * 7) % 384
DOWN = "model.layers.1.mlp.down_proj"


def theirs(folder: Path, **options: object) -> torch.nn.Module:
    import torch

    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)


def logits(model: torch.nn.Module) -> FloatArray:
    import torch

    with torch.no_grad():
        return np.asarray(model(torch.from_numpy(TOKENS)).logits.float().numpy())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny") / "m")


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [
        ("nf4", ".bitsandbytes"),
        ("nf4_g128", ".bitsandbytes"),
        ("nf4", ".bitsandbytes-double"),
        ("fp4bnb", ".bitsandbytes"),
        ("fp4bnb_g128", ".bitsandbytes"),
        ("fp4bnb", ".bitsandbytes-double"),
    ],
)
def test_four_bit_weights_are_ours_exactly(kind: str, suffix: str, tiny: Path, tmp_path: Path) -> None:
    from bitsandbytes.functional import dequantize_4bit

    made = tmp_path / f"made{suffix}"
    workflows.quantize(tiny, kind, made, options=workflows.QuantizeOptions(method="round_to_nearest"))
    model = theirs(made)
    weight = model.get_submodule(DOWN).weight
    found = dequantize_4bit(weight.data, weight.quant_state).float().numpy()
    assert np.array_equal(found, open_model(made).tensor("blk.1.ffn_down.weight").dequantize())
    reference = logits(theirs(write_decoded(made, tmp_path / "decoded")))
    difference = float(np.abs(logits(model) - reference).max())
    to_float = float(np.abs(logits(theirs(tiny)) - reference).max())
    # Their kernels for this processor multiply in bfloat16.
    bound = error_bound(made, TOKENS.tolist(), BFLOAT16)
    print(
        f"{kind}{suffix}: {difference:.5f} from our decoded weights, bound {bound:.5f}; the floats are "
        f"{to_float:.5f} away"
    )
    assert difference < bound < 0.1 * to_float


def test_eight_bit_weights_are_ours_exactly(tiny: Path, tmp_path: Path) -> None:
    made = tmp_path / "made.bitsandbytes"
    workflows.quantize(tiny, "int8_channel", made, options=workflows.QuantizeOptions(method="round_to_nearest"))
    model = theirs(made)
    weight = model.get_submodule(DOWN).weight
    ours = open_model(made).tensor("blk.1.ffn_down.weight")
    assert np.array_equal(weight.CB.numpy().view(np.uint8) ^ 0x80, ours.planes["codes"])
    assert np.array_equal(weight.SCB.numpy().reshape(-1, 1) / np.float32(127), ours.planes["scale"])
    reference = logits(theirs(write_decoded(made, tmp_path / "decoded")))
    difference = float(np.abs(logits(model) - reference).max())
    # They round inputs to int8 as well, so that only the weights can be compared closely.
    bound = error_bound(made, TOKENS.tolist(), BFLOAT16, lambda weight: int8_rows)
    print(f"int8_channel: {difference:.5f} from our decoded weights, bound {bound:.5f}")
    assert difference < bound


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("is_double", [False, True])
def test_what_they_write_is_read_exactly(is_double: bool, kind: str, tiny: Path, tmp_path: Path) -> None:
    from bitsandbytes.functional import dequantize_4bit

    chosen = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_use_double_quant=is_double
    )
    model = theirs(tiny, quantization_config=chosen)
    model.save_pretrained(tmp_path / "saved")
    source = open_model(tmp_path / "saved")
    weight = model.get_submodule(DOWN).weight
    expected = dequantize_4bit(weight.data, weight.quant_state).float().numpy()
    found = source.tensor("blk.1.ffn_down.weight")
    assert found.format.name == {"nf4": "nf4", "fp4": "fp4bnb"}[kind]
    assert np.array_equal(found.dequantize(), expected)


def test_their_int8_is_read_exactly(tiny: Path, tmp_path: Path) -> None:
    model = theirs(tiny, quantization_config=transformers.BitsAndBytesConfig(load_in_8bit=True))
    model.save_pretrained(tmp_path / "saved")
    found = open_model(tmp_path / "saved").tensor("blk.1.ffn_down.weight")
    weight = model.get_submodule(DOWN).weight
    assert found.format.name == "int8_channel"
    assert np.array_equal(found.planes["codes"], weight.CB.numpy().view(np.uint8) ^ 0x80)
