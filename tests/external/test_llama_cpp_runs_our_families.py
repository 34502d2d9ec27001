# SPDX-License-Identifier: Apache-2.0
"""llama.cpp on GGUF files of every decoder family that it knows: the same predictions as our engine's.

pytest tests/external --llama-cpp FOLDER
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from test_llama_perplexity import LogitsFile

from lilliput import workflows
from lilliput.containers import open_model
from lilliput.runtime.session import EngineOptions, Session

pytest.importorskip("torch")
pytest.importorskip("transformers")
from family_folders import FAMILIES, write_family

pytestmark = pytest.mark.external
CONTEXT = 64
TEXT = "Once upon a time there was a little model. It had 3 layers, and 42 heads; it said: hello!\n" * 40
# Both keep keys and values in float16. llama.cpp looks GELU up by a float16 input, that of GPT-NeoX by its tanh form,
# and writes probabilities in 16 bits over a range of about 20.
TOLERANCE = 0.03


@pytest.mark.parametrize("model_type", [name for name in FAMILIES if name not in ("opt", "gptj")])
@pytest.mark.parametrize("preset", ["F32", "Q8_0"])
def test_llama_cpp_predicts_what_our_engine_predicts(
    llama_cpp: Path, tmp_path: Path, model_type: str, preset: str
) -> None:
    # llama.cpp looks for more than the tokenizer has where a model's name says phi-3.
    folder = write_family(tmp_path / "tiny", model_type)
    text, file, base = (tmp_path / name for name in ("text.txt", "tiny.gguf", "base.kld"))
    text.write_text(TEXT)
    workflows.quantize(folder, preset, file)
    command = [llama_cpp / "llama-perplexity", "-m", file, "-f", text, "-c", CONTEXT, "-t", 1, "--chunks", 2]
    done = subprocess.run([*map(str, command), "--kl-divergence-base", str(base)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = LogitsFile(base)
    session = Session(open_model(file), EngineOptions(threads=1))
    logits = session.forward(theirs.tokens[0].tolist(), "all").astype(np.float64)
    ours = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    ours = ours[CONTEXT // 2 : CONTEXT - 1]
    # Below e^-12 the file holds nothing.
    kept = theirs.logits[0] > theirs.logits[0].max(axis=1, keepdims=True) - 12
    difference = np.abs(ours - theirs.logits[0])[kept]
    # With Q8_0 both round activations to 8 bits, each in its own way, which these random models magnify.
    found = difference.max() if preset == "F32" else difference.mean()
    assert found <= (TOLERANCE if preset == "F32" else 2 * TOLERANCE)
