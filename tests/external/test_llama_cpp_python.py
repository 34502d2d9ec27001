# SPDX-License-Identifier: Apache-2.0
"""llama-cpp-python loads what we write and predicts the same tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lilliput import workflows
from lilliput.containers import open_model
from lilliput.models import gulliver
from lilliput.runtime.session import EngineOptions, Session

pytestmark = pytest.mark.external
# Logits closer than this are a tie that the peer's rounding of its inputs may decide either way.
SMALLEST_MARGIN = 0.05
TOKENS = 96


@pytest.mark.parametrize("preset", ["F16", "Q8_0", "Q4_0", "Q6_K", "Q4_K_M", "IQ4_XS", "Q2_K"])
def test_next_tokens_agree_wherever_the_float_reference_is_sure(preset: str, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    output = tmp_path / f"gulliver-{preset}.gguf"
    workflows.quantize("gulliver", preset, output)
    source = open_model(output)
    reference = Session(source, EngineOptions(activations="f32", kv_format="f32", context=TOKENS))
    model = llama_cpp.Llama(str(output), n_ctx=TOKENS, n_batch=TOKENS, logits_all=True, verbose=False)
    text = (gulliver() / "sample.txt").read_bytes()[:4000]
    ids = model.tokenize(text, add_bos=False, special=False)[:TOKENS]
    expected = reference.forward(ids, output="all")
    model.eval(ids)
    found = np.array(model.scores[: len(ids)])
    top = np.sort(expected, axis=1)[:, -2:]
    sure = top[:, 1] - top[:, 0] > SMALLEST_MARGIN
    assert sure.sum() > TOKENS // 2
    assert (found.argmax(axis=1) == expected.argmax(axis=1))[sure].all()
