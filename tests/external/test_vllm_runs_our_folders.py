# SPDX-License-Identifier: Apache-2.0
"""vLLM, built for CPUs, runs the folders that we write and predicts what their weights say."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from conftest import environment_python
from emulated_rounding import BFLOAT16, e4m3_rows, exact_and_rounded, int8_rows, int8_under, largest_error
from llama_cpp_logits import log_softmax
from tiny_llama import TEXT, write_tiny_llama

from lilliput import workflows
from lilliput.calibration.input_ranges import input_ranges
from lilliput.calibration.statistics_file import read_statistics
from lilliput.containers import open_model
from lilliput.text.tokenizer import Tokenizer

pytestmark = [pytest.mark.external, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(1800)]
SCRIPT = Path(__file__).with_name("vllm_run.py")
# What is written, and how its kernels round inputs. They compute in bfloat16.
FOLDERS = {
    "int4.compressed-tensors": ("int4_g128", None),
    "g32.compressed-tensors": ("int4_g32", None),
    "g64.compressed-tensors": ("int4_g64", None),
    "row.compressed-tensors": ("int4_channel", None),
    "asym.compressed-tensors": ("int4_g128_asym", None),
    "int8.w8a8": ("int8_channel", int8_rows),
    "int8.w8a8-static": ("int8_channel", "measured"),
    "fp8.w8a8": ("fp8_e4m3_channel", e4m3_rows),
    "int4.gptq": ("int4_g128", None),
    "row.gptq": ("int4_channel", None),
    "int4.awq": ("int4_g128_asym", None),
    "g32.awq": ("int4_g32_asym", None),
}
LISTED = 20
# What it says of the others: that nobody reads them, or that this build of it has no kernel.
REFUSED = {
    "asym.gptq": ("int4_g128_asym", "bits=4, sym=False"),
    "int2.gptq": ("int2_g32", "bits=2, sym=True"),
    "int3.gptq": ("int3_g64", "bits=3, sym=True"),
    "int8.gptq": ("int8_g128", "Only types = .*uint4b8"),
    "int8.compressed-tensors": ("int8_channel", "Failed to find a kernel .*WNA16"),
    "int3.compressed-tensors": ("int3_g64", "Failed to find a kernel .*WNA16"),
    "int8asym.compressed-tensors": ("int8_channel_asym", "Failed to find a kernel .*WNA16"),
    "fp8.compressed-tensors": ("fp8_e4m3_channel", "Failed to find a kernel .*ScaledMM"),
    "blocks.compressed-tensors": ("fp8_e4m3_block128", "Failed to find a kernel .*ScaledMM"),
    "mxfp4.compressed-tensors": ("mxfp4", "Failed to find a kernel .*MXFP4"),
    "nvfp4.compressed-tensors": ("nvfp4", "Marlin FP4 not available"),
    "fp8tensor.w8a8": ("fp8_e4m3_tensor", "static_scaled_fp8_quant"),
    "fp8.w8a8-static": ("fp8_e4m3_tensor", "static_scaled_fp8_quant"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folders")
    tiny = write_tiny_llama(folder / "tiny")
    (folder / "text.txt").write_text(TEXT * 20)
    statistics = folder / "statistics.safetensors"
    workflows.calibrate(tiny, [folder / "text.txt"], statistics)
    for name, (kind, _) in {**FOLDERS, **REFUSED}.items():
        guidance = workflows.Guidance(statistics=statistics)
        workflows.quantize(tiny, kind, folder / name, guidance=guidance)
    return folder


@pytest.fixture(scope="module")
def tokens(folder: Path) -> list[int]:
    """Of the text that ranges were measured on."""
    return list(Tokenizer(open_model(folder / "tiny").vocabulary()).encode(TEXT))[:24]


@pytest.fixture(scope="module")
def theirs(folder: Path, tokens: list[int], request: pytest.FixtureRequest) -> dict[str, dict[str, float | str]]:
    """All folders in one process: vLLM takes longer to start than to run."""
    python = environment_python(request, "vllm")
    names = [*FOLDERS, *REFUSED]
    jobs = [[str(folder / name), tokens, "bfloat16"] for name in names]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    command = [python, "-I", SCRIPT, folder / "jobs.json", folder / "out.json"]
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert (folder / "out.json").is_file(), run.stderr[-2000:]
    return dict(zip(names, json.loads((folder / "out.json").read_text()), strict=False))


@pytest.mark.parametrize("name", FOLDERS)
def test_next_tokens_have_the_probabilities_of_our_weights(
    name: str, folder: Path, tokens: list[int], theirs: dict[str, dict[str, float | str]]
) -> None:
    found = theirs[name]
    assert "error" not in found, found
    rounding = FOLDERS[name][1]
    inputs = None if rounding is None else (lambda weight: rounding)
    if rounding == "measured":
        inputs = int8_under(input_ranges(read_statistics(folder / "statistics.safetensors")))
    exact, rounded = (log_softmax(item) for item in exact_and_rounded(folder / name, tokens, BFLOAT16, inputs))
    bound = largest_error(rounded - exact, LISTED)
    difference = max(abs(float(value) - exact[-1][int(token)]) for token, value in found.items())
    print(f"{name}: largest difference {difference:.4f} of {len(found)} log probabilities; bound {bound:.4f}")
    assert difference < bound


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_table_says_it_cannot_run_is_refused(name: str, theirs: dict[str, dict[str, float | str]]) -> None:
    assert "error" in theirs[name], theirs[name]
    assert re.search(REFUSED[name][1], str(theirs[name]["error"]), re.DOTALL), theirs[name]
