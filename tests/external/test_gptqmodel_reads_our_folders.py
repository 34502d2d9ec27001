# SPDX-License-Identifier: Apache-2.0
"""transformers and GPTQModel run the GPTQ and AWQ folders that we write, near our decoded weights.

Their CPU kernels compute in 16 bits, so that logits differ by as much; weights that they unpack are ours exactly.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

# Their first forward pass compiles for a minute or more otherwise. Set before torch is imported.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
# It wants two workers to load a model, and gives a machine of two cores one.
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")

import numpy as np
import pytest
from decoded_folders import write_decoded
from emulated_rounding import FLOAT16, error_bound
from family_folders import write_family
from tiny_llama import TEXT, write_tiny_llama

from lilliput import workflows
from lilliput.arrays import FloatArray
from lilliput.containers import open_model
from lilliput.recipes.recipe import parse_recipe

pytestmark = [pytest.mark.external, pytest.mark.filterwarnings("ignore")]
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("gptqmodel", reason="gptqmodel is not installed")
pytest.importorskip("optimum", reason="optimum is not installed")

TOKENS = (np.arange(3, 35).reshape(2, 16) * 7) % 256


def logits(folder: Path, **changes: object) -> FloatArray:
    import torch

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **changes)
    with torch.no_grad():
        return np.asarray(model(torch.from_numpy(TOKENS)).logits.float().numpy())


def text_file(folder: Path) -> Path:
    """Text to calibrate on, some thousand tokens of it."""
    (folder / "text.txt").write_text(TEXT * 40)
    return folder / "text.txt"


def on_torch(made: Path, backend: str) -> None:
    """Ask for the kernels that need no compiler."""
    config = json.loads((made / "config.json").read_text())
    config["quantization_config"]["backend"] = backend
    (made / "config.json").write_text(json.dumps(config))


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves a folder of logs where it runs."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny") / "m")


@pytest.mark.parametrize(
    ("suffix", "kind", "backend"),
    [
        (".gptq", "int4_g128", "torch"),
        (".gptq", "int4_g32_asym", "torch"),
        (".gptq", "int8_g64", "torch"),
        (".gptq", "int2_g32", "torch"),
        (".gptq", "int3_g64", "torch"),
        (".gptq", "int4_channel", "torch"),
        (".gptq", "int4_g32_ordered", "torch"),
        (".gptq", "int4_g64_asym_ordered", "torch"),
        (".gptq", "int2_g64_asym", "torch"),
        (".gptq", "int3_g128_asym", "torch"),
        (".gptq", "int8_channel_asym", "torch"),
        (".awq", "int4_g128_asym", "torch_awq"),
        (".awq", "int4_g32_asym", "torch_awq"),
    ],
)
def test_logits_are_those_of_our_decoded_weights(
    suffix: str, kind: str, backend: str, tiny: Path, tmp_path: Path
) -> None:
    made = tmp_path / f"made{suffix}"
    is_ordered = kind.endswith("_ordered")
    method = "feedback" if is_ordered else "round_to_nearest"
    guidance = workflows.Guidance(text=(text_file(tmp_path),)) if is_ordered else None
    workflows.quantize(tiny, kind, made, guidance=guidance, options=workflows.QuantizeOptions(method=method))
    described = json.loads((made / "config.json").read_text())["quantization_config"]
    assert described.get("desc_act", False) is is_ordered
    assert open_model(made).headers["blk.1.ffn_down.weight"].format.name == kind
    reference = logits(write_decoded(made, tmp_path / "decoded"))
    on_torch(made, backend)
    difference = float(np.abs(logits(made) - reference).max())
    to_float = float(np.abs(logits(tiny) - reference).max())
    bound = error_bound(made, TOKENS.tolist(), FLOAT16)
    print(
        f"{suffix[1:]} {kind}: {difference:.5f} from our decoded weights, bound {bound:.5f}; the floats are "
        f"{to_float:.5f} away"
    )
    assert difference < bound < 0.2 * to_float


def test_layers_left_in_floats_stay_floats(tiny: Path, tmp_path: Path) -> None:
    made = tmp_path / "made.gptq"
    recipe = parse_recipe(
        "name: partly\nrules:\n  - {role: token_embedding, format: F32}\n  - {role: output, format: F32}\n"
        '  - {match: "*.down_proj.weight", format: F32}\n  - {match: "*", format: int4_g128}\n', "partly.yaml",
    )  # fmt: skip
    workflows.quantize(tiny, recipe, made, options=workflows.QuantizeOptions(method="round_to_nearest"))
    reference = logits(write_decoded(made, tmp_path / "decoded"))
    on_torch(made, "torch")
    assert np.abs(logits(made) - reference).max() < error_bound(made, TOKENS.tolist(), FLOAT16)


@pytest.mark.parametrize("kind", ["gemma2", "gemma3_text", "opt", "phi"])
def test_other_families_compute_what_our_weights_say(kind: str, tmp_path: Path) -> None:
    source = write_family(tmp_path / "m", kind)
    made = tmp_path / "made.gptq"
    workflows.quantize(source, "int4_g32", made, options=workflows.QuantizeOptions(method="round_to_nearest"))
    reference = logits(write_decoded(made, tmp_path / "decoded"))
    on_torch(made, "torch")
    difference = float(np.abs(logits(made) - reference).max())
    to_float = float(np.abs(logits(source) - reference).max())
    bound = error_bound(made, TOKENS.tolist(), FLOAT16)
    print(
        f"gptq {kind}: {difference:.5f} from our decoded weights, bound {bound:.5f}; the floats are {to_float:.5f} away"
    )
    assert difference < bound < 0.2 * to_float


def test_experts_run_in_its_own_loader(tmp_path: Path) -> None:
    import torch
    from gptqmodel import BACKEND, GPTQModel

    source = write_family(tmp_path / "m", "qwen3_moe")
    made = tmp_path / "made.gptq"
    workflows.quantize(source, "int4_g32", made, options=workflows.QuantizeOptions(method="round_to_nearest"))
    reference = logits(write_decoded(made, tmp_path / "decoded"))
    # It makes the model with padding, which the config leaves open.
    config = json.loads((made / "config.json").read_text())
    (made / "config.json").write_text(json.dumps(config | {"pad_token_id": 0}))
    loaded = GPTQModel.load(str(made), device="cpu", backend=BACKEND.TORCH, dtype=torch.float16)
    with torch.no_grad():
        found = loaded.model(torch.from_numpy(TOKENS)).logits.float().numpy()
    difference = float(np.abs(found - reference).max())
    to_float = float(np.abs(logits(source) - reference).max())
    print(f"gptq qwen3_moe: {difference:.5f} from our decoded weights, which are {to_float:.5f} from the floats")
    # All of it computes in float16 here, not only the products.
    assert difference < 0.02 * to_float


@pytest.mark.parametrize(
    ("options", "expected"),
    [({"desc_act": True, "sym": True}, "int4_g32_ordered"), ({"desc_act": False, "sym": False}, "int4_g32_asym")],
)
def test_what_it_quantizes_itself_is_read_exactly(
    options: dict[str, bool], expected: str, tiny: Path, tmp_path: Path
) -> None:
    import torch
    from gptqmodel import GPTQModel, QuantizeConfig

    model = GPTQModel.load(str(tiny), QuantizeConfig(bits=4, group_size=32, **options), device="cpu")
    model.quantize([TEXT * 8] * 16, batch_size=1)
    model.save(str(tmp_path / "saved"))
    found = open_model(tmp_path / "saved").tensor("blk.1.ffn_down.weight")
    on_torch(tmp_path / "saved", "torch")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float16)
    weight = theirs.get_submodule("model.layers.1.mlp.down_proj").dequantize_weight().T.float().numpy()
    assert found.format.name == expected
    assert np.array_equal(found.dequantize().astype(np.float16).astype(np.float32), weight)
