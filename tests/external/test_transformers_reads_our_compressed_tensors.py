# SPDX-License-Identifier: Apache-2.0
"""transformers and compressed-tensors run the folders that we write, and compute what our own decoding says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tiny_llama import write_tiny_llama

from lilliput import workflows
from lilliput.arrays import FloatArray
from lilliput.calibration.input_ranges import input_ranges
from lilliput.calibration.statistics_file import read_statistics
from lilliput.containers import open_model
from lilliput.containers.container import Split
from lilliput.formats import Encoded, get_format
from lilliput.models import gulliver
from lilliput.recipes.recipe import parse_recipe

if TYPE_CHECKING:
    import torch
    from _pytest.mark import ParameterSet

pytestmark = pytest.mark.filterwarnings("ignore")
external = pytest.mark.external
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")

FORMATS = (
    "int4_g128", "int4_g64", "int4_g32", "int4_channel", "int8_channel", "int8_tensor", "int8_g64", "int7_channel",
    "int6_g32", "int5_g128", "int3_g64", "int2_g32",
)  # fmt: skip
MIXED = """
name: mixed
rules:
  - {role: token_embedding, format: F32}
  - {role: output, format: F32}
  - {match: "*.self_attn.o_proj.weight", format: F32}
  - {match: "*.self_attn.*", format: int8_channel}
  - {match: "*.down_proj.weight", format: fp8_e4m3_channel}
  - {match: "*", format: int4_g128}
"""
OF_MIXED = {
    "self_attn.o_proj": None, "self_attn": "int8_channel", "down_proj": "fp8_e4m3_channel", "mlp": "int4_g128"
}  # fmt: skip


def few_quick(*names: str) -> list[ParameterSet]:
    """The first of these formats in every run of the tests, the others beside other projects' code alone."""
    return [pytest.param(names[0]), *(pytest.param(name, marks=external) for name in names[1:])]


def rounded(weight: FloatArray, name: str) -> FloatArray:
    """The float checkpoint's own matrix rounded to nearest, its rows never moved: independent of what files do."""
    number_format = get_format(name)
    parameters = number_format.widest_parameters(weight)
    planes = number_format.pack(Encoded(number_format.nearest_codes(weight, parameters), parameters))
    return number_format.dequantize(planes, weight.shape[1])


def reference(folder: Path, format_of: dict[str, str | None]) -> torch.nn.Module:
    """The float model with every linear layer rounded by us. format_of: part of a module's name -> format."""
    import torch

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            chosen = next(wanted for part, wanted in format_of.items() if part in name)
            if chosen is not None:
                module.weight.data = torch.from_numpy(rounded(module.weight.detach().numpy(), chosen))
    return model


def logits(model: torch.nn.Module, vocabulary: int) -> FloatArray:
    import torch

    tokens = torch.arange(3, 35).reshape(2, 16) * 7 % vocabulary
    with torch.no_grad():
        return np.asarray(model(tokens).logits.float().numpy())


def theirs(folder: Path, **options: object) -> torch.nn.Module:
    import torch

    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)


def dequantizing() -> dict[str, object]:
    return {"quantization_config": transformers.CompressedTensorsConfig(dequantize=True)}


def written(model: str | Path, to: object, folder: Path) -> Path:
    target = folder / "made.compressed-tensors"
    options = workflows.QuantizeOptions(method="round_to_nearest")
    workflows.quantize(model, to, target, options=options)  # type: ignore[arg-type]
    return target


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny") / "m")


@pytest.mark.parametrize("name", few_quick(*FORMATS, "fp8_e4m3_channel", "fp8_e4m3_tensor"))
def test_logits_are_exactly_those_of_our_decoded_weights(name: str, tiny: Path, tmp_path: Path) -> None:
    made = written(tiny, name, tmp_path)
    expected = logits(reference(tiny, {"": name}), 384)
    assert np.abs(expected - logits(reference(tiny, {"": None}), 384)).max() > 0.01
    for options in ({}, dequantizing()):
        assert np.abs(logits(theirs(made, **options), 384) - expected).max() == 0.0


@pytest.mark.parametrize("name", few_quick("int4_g128_asym", "int3_g64_asym", "int8_channel_asym"))
def test_zero_points_are_exact_where_transformers_dequantizes(name: str, tiny: Path, tmp_path: Path) -> None:
    # Without dequantize=True, transformers 5.23 expects zero points unpacked and refuses every such checkpoint.
    found = logits(theirs(written(tiny, name, tmp_path), **dequantizing()), 384)
    assert np.abs(found - logits(reference(tiny, {"": name}), 384)).max() == 0.0


@pytest.mark.parametrize("name", few_quick("mxfp4", "nvfp4", "fp8_e4m3_block128"))
def test_small_floats_are_those_of_our_decoded_weights(name: str, tiny: Path, tmp_path: Path) -> None:
    made = written(tiny, name, tmp_path)
    expected = logits(reference(tiny, {"": name}), 384)
    difference = float(np.abs(logits(theirs(made, **dequantizing()), 384) - expected).max())
    print(f"{name}: {difference:.5f} from our decoded weights")
    assert difference == 0.0


@external
@pytest.mark.parametrize("name", ["int4_g128_asym", "mxfp4", "nvfp4"])
def test_what_the_table_says_is_refused_is_refused(name: str, tiny: Path, tmp_path: Path) -> None:
    made = written(tiny, name, tmp_path)
    # Zero points: at loading.  FP4: its weights become BF16, which meets inputs in float32.
    with pytest.raises(RuntimeError, match=r"mismatched_sizes|BFloat16"):
        logits(theirs(made), 384)


def rounding_inputs(model: torch.nn.Module, *, is_float: bool) -> torch.nn.Module:
    """The model with the inputs of its linear layers rounded a token at a time, as compressed-tensors describes it."""
    import torch

    def rounded_input(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        values = inputs[0]
        scale = values.abs().amax(dim=-1, keepdim=True) / (448.0 if is_float else 127.5)
        if is_float:
            return ((values / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale,)
        return (torch.clamp(torch.round(values / scale), -128, 127) * scale,)

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            module.register_forward_pre_hook(rounded_input)
    return model


@pytest.mark.parametrize("name", few_quick("int8_channel", "fp8_e4m3_channel", "fp8_e4m3_tensor"))
def test_inputs_in_eight_bits_are_rounded_as_described(name: str, tiny: Path, tmp_path: Path) -> None:
    target = tmp_path / "made.w8a8"
    workflows.quantize(tiny, name, target, options=workflows.QuantizeOptions(method="round_to_nearest"))
    expected = logits(rounding_inputs(reference(tiny, {"": name}), is_float=name.startswith("fp8")), 384)
    difference = float(np.abs(logits(theirs(target), 384) - expected).max())
    away = float(np.abs(logits(reference(tiny, {"": name}), 384) - expected).max())
    print(f"w8a8 {name}: {difference:.6f} from our emulation; inputs in floats are {away:.4f} away")
    assert difference < 0.02 * away


@external
@pytest.mark.parametrize("name", ["int8_channel", "fp8_e4m3_channel", "fp8_e4m3_tensor"])
def test_static_inputs_are_rounded_to_the_range_that_was_measured(name: str, tiny: Path, tmp_path: Path) -> None:
    import torch

    statistics = tmp_path / "statistics.safetensors"
    # A part of what the test sees, so that some inputs lie beyond the range and are clipped.
    (tmp_path / "text.txt").write_text("a small text of a few words " * 40)
    workflows.calibrate(tiny, [tmp_path / "text.txt"], statistics)
    ranges = input_ranges(read_statistics(statistics))
    target = tmp_path / "made.w8a8-static"
    options = workflows.QuantizeOptions(method="round_to_nearest")
    workflows.quantize(tiny, name, target, guidance=workflows.Guidance(statistics=statistics), options=options)
    is_float = name.startswith("fp8")
    names = {module: ours for ours, module in module_names(tiny).items()}

    def rounding(scale: float) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], tuple[torch.Tensor, ...]]:
        def rounded_input(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            codes = inputs[0] / scale
            if is_float:
                return (codes.clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale,)
            return (torch.clamp(torch.round(codes), -128, 127) * scale,)

        return rounded_input

    model = reference(tiny, {"": name})
    plain = logits(model, 384)
    for module_name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module_name != "lm_head":
            scale = np.float32(ranges[names[module_name]] / (448.0 if is_float else 127.0))
            module.register_forward_pre_hook(rounding(float(scale)))
    expected = logits(model, 384)
    found = theirs(target)
    assert found.model.layers[0].mlp.down_proj.quantization_scheme.input_activations.dynamic is False
    difference, away = (float(np.abs(other - expected).max()) for other in (logits(found, 384), plain))
    print(f"w8a8-static {name}: {difference:.6f} from our emulation; inputs in floats are {away:.4f} away")
    assert difference < 0.02 * away


def module_names(folder: Path) -> dict[str, str]:
    """Our name of a layer's weight -> transformers' name of the module."""
    source = open_model(folder)
    return {name: source.source_name(name).removesuffix(".weight") for name in source.headers}


def test_several_formats_in_one_folder_are_told_apart(tiny: Path, tmp_path: Path) -> None:
    made = written(tiny, parse_recipe(MIXED, "mixed.yaml"), tmp_path)
    # With dequantize=True, transformers 5.23 decodes every layer by the first group and refuses such folders.
    assert np.abs(logits(theirs(made), 384) - logits(reference(tiny, OF_MIXED), 384)).max() == 0.0


def test_a_tied_model_in_shards_keeps_its_head(tmp_path: Path) -> None:
    source = write_tiny_llama(tmp_path / "m", is_tied=True)
    target = tmp_path / "made.compressed-tensors"
    split = Split(max_bytes=400_000)
    options = workflows.QuantizeOptions(method="round_to_nearest", split=split)
    workflows.quantize(source, "int4_g128", target, options=options)
    assert (target / "model.safetensors.index.json").is_file()
    found = logits(theirs(target), 384)
    assert np.abs(found - logits(reference(source, {"": "int4_g128"}), 384)).max() == 0.0


@external
@pytest.mark.parametrize("name", ["int4_g128", "int8_channel"])
def test_gulliver_speaks_as_our_decoded_weights_do(name: str, tmp_path: Path) -> None:
    made = written("gulliver", name, tmp_path)
    found = logits(theirs(made), 4096)
    assert np.abs(found - logits(reference(gulliver(), {"": name}), 4096)).max() == 0.0
    tokenizer = transformers.AutoTokenizer.from_pretrained(made)
    text = "The captain told me"
    assert tokenizer(text).input_ids == transformers.AutoTokenizer.from_pretrained(gulliver())(text).input_ids
