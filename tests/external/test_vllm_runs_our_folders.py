# SPDX-License-Identifier: Apache-2.0
"""vLLM, built for CPUs, runs the folders that we write and predicts what our engine predicts from their weights."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import environment_python
from tiny_llama import TEXT, write_tiny_llama

from lilliput import workflows
from lilliput.containers import open_model
from lilliput.runtime.session import EngineOptions, Session
from lilliput.text.tokenizer import Tokenizer

pytestmark = [pytest.mark.external, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(1800)]
SCRIPT = Path(__file__).with_name("vllm_run.py")
# What is written, the type that its kernels compute in, and where inputs of products are rounded to 8 bits the peak of
# their range in root mean squares: of one row, or of a whole text.
FOLDERS = {
    "int4.compressed-tensors": ("int4_g128", "bfloat16", 0.0),
    "int8.w8a8": ("int8_channel", "bfloat16", 5.0),
    "int8.w8a8-static": ("int8_channel", "bfloat16", 7.0),
    "int4.gptq": ("int4_g128", "bfloat16", 0.0),
    "int4.awq": ("int4_g128_asym", "bfloat16", 0.0),
}
# Roundings between token and logits, as parts of what is rounded, root mean square; independent errors add in squares.
# In each of two layers ten results become bfloat16 (norm, q/k/v, rope, attention, output, sum, norm, gate/up, their
# product, down), whose steps are 2^-8; outlier columns and a softmax enlarge what reaches them, counted as twice. Four
# products a layer read inputs in 127 steps of their peak.
BFLOAT16 = 2 * math.sqrt(2 * 10) * 2.0**-8 / math.sqrt(12)
EIGHT_BITS = math.sqrt(2 * 4) / 127 / math.sqrt(12)
# The largest of twenty values stays within three standard deviations; a log probability errs by its logit and by the
# sum over all of them. Found: 0.07 to 0.10 of bounds near 0.11, 0.23 of 0.30, and 0.33 of 0.40.
DEVIATIONS = 6.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folders")
    tiny = write_tiny_llama(folder / "tiny")
    (folder / "text.txt").write_text(TEXT * 20)
    statistics = folder / "statistics.safetensors"
    workflows.calibrate(tiny, [folder / "text.txt"], statistics)
    for name, (kind, _, _) in FOLDERS.items():
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
    jobs = [[str(folder / name), tokens, dtype] for name, (_, dtype, _) in FOLDERS.items()]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    command = [python, "-I", SCRIPT, folder / "jobs.json", folder / "out.json"]
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert (folder / "out.json").is_file(), run.stderr[-2000:]
    return dict(zip(FOLDERS, json.loads((folder / "out.json").read_text()), strict=False))


@pytest.mark.parametrize("name", FOLDERS)
def test_next_tokens_have_the_probabilities_of_our_engine(
    name: str, folder: Path, tokens: list[int], theirs: dict[str, dict[str, float | str]]
) -> None:
    found = theirs[name]
    assert "error" not in found, found
    session = Session(open_model(folder / name), EngineOptions(activations="f32", kv_format="f32", context=64))
    logits = np.asarray(session.forward(tokens, output="all"))[-1].astype(np.float64)
    expected = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
    difference = max(abs(float(value) - expected[int(token)]) for token, value in found.items())
    part = math.hypot(BFLOAT16, EIGHT_BITS * FOLDERS[name][2])
    # Logits become bfloat16 themselves.
    bound = DEVIATIONS * part * logits.std() + 2.0**-8 * np.abs(logits).max()
    print(
        f"{name}: largest difference {difference:.4f} of {len(found)} log probabilities; bound {bound:.4f}, "
        f"spread of the logits {logits.std():.2f}"
    )
    assert difference < bound
