# SPDX-License-Identifier: Apache-2.0
"""onnxruntime-genai generates from the folders that we write what our own engine generates from the same weights."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from lilliput import workflows
from lilliput.runtime.session import EngineOptions, Session
from lilliput.text.tokenizer import Tokenizer

pytestmark = [pytest.mark.external, pytest.mark.filterwarnings("ignore")]
SCRIPT = Path(__file__).with_name("genai_generate.py")
# Logits closer than this may be decided either way by the order of float32 sums.
SMALLEST_MARGIN = 1e-3
PROMPT = "The king said to"
TOKENS = 60
OPTIONS = workflows.QuantizeOptions(method="round_to_nearest")


@pytest.mark.parametrize("kind", ["int4_g32", "int4_g128_asym", "int8_channel", "int2_g32"])
def test_greedy_tokens_are_those_of_our_engine(kind: str, onnx_runtimes: Path, tmp_path: Path) -> None:
    for suffix in (".onnx", ".safetensors"):
        workflows.quantize("gulliver", kind, tmp_path / f"g{suffix}", options=OPTIONS)
    command = [str(onnx_runtimes), "-I", str(SCRIPT), str(tmp_path / "g.onnx"), PROMPT, str(TOKENS)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout.splitlines()[-1])
    with workflows.opened(tmp_path / "g.safetensors") as source:
        assert found["prompt"] == Tokenizer(source.vocabulary()).encode(PROMPT, add_special=True)
        session = Session(source, EngineOptions(activations="f32", kv_format="f32", context=128))
        ids = found["prompt"] + found["sequence"][len(found["prompt"]) :]
        assert ids == found["sequence"]
        logits = session.forward(ids[:-1], "all")[len(found["prompt"]) - 1 :]
    top = np.sort(logits, axis=1)[:, -2:]
    sure = top[:, 1] - top[:, 0] > SMALLEST_MARGIN
    assert len(logits) >= 20
    assert sure.mean() > 0.9
    assert (logits.argmax(axis=1) == np.array(ids[len(found["prompt"]) :]))[sure].all()
    assert found["text"].strip()
