# SPDX-License-Identifier: Apache-2.0
"""What llama.cpp computes of a GGUF: its llama-perplexity where that is, else llama-cpp-python here or in its own
environment."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import environment_python
from test_llama_perplexity import LogitsFile

from lilliput.arrays import FloatArray
from lilliput.containers import open_model
from lilliput.text.tokenizer import Tokenizer

SCRIPT = Path(__file__).with_name("llama_cpp_run.py")
# llama-perplexity keeps log probabilities down to 16 below the largest, in 16 bits.
DEPTH = 14.0
ROUNDING = 16 / 65535 / 2


def log_softmax(logits: FloatArray) -> FloatArray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    result: FloatArray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def their_log_probabilities(
    request: pytest.FixtureRequest, model: Path, text: str, tokens: int
) -> tuple[list[int], FloatArray]:
    """The first token ids of a text, and log probabilities after each of their second half but the last one.

    text: of twice as many tokens at least, as llama-perplexity wants.  Skips where no llama.cpp is found.
    """
    tool = _tool(request)
    ids = list(Tokenizer(open_model(model).vocabulary()).encode(text))[:tokens]
    if tool is not None:
        (model.parent / "text.txt").write_text(text)
        logits = model.with_suffix(".logits")
        command = [tool, "-m", model, "-f", model.parent / "text.txt", "-c", tokens, "-t", 1, "--chunks", 1]
        command += ["--kl-divergence-base", logits]
        subprocess.run([str(word) for word in command], capture_output=True, check=True)
        file = LogitsFile(logits)
        assert file.tokens[0].tolist()[1:] == ids[1:]
        file.start()
        return ids, file.advance(file.tokens, outputs=tokens - 1 - tokens // 2)
    python = Path(sys.executable)
    if importlib.util.find_spec("llama_cpp") is None:
        python = environment_python(request, "llama-cpp")
    np.save(model.with_suffix(".ids.npy"), np.array(ids))
    files = [model, model.with_suffix(".ids.npy"), model.with_suffix(".npy")]
    subprocess.run([str(python), str(SCRIPT), *map(str, files)], capture_output=True, check=True)
    return ids, log_softmax(np.load(model.with_suffix(".npy")))[tokens // 2 : -1]


def _tool(request: pytest.FixtureRequest) -> str | None:
    folder = request.config.getoption("--llama-cpp")
    return shutil.which("llama-perplexity", path=None if folder is None else str(folder))


def difference(found: FloatArray, logits: FloatArray, ids: list[int]) -> tuple[FloatArray, FloatArray]:
    """Theirs and ours, log probabilities of the positions that they have, where both kept them."""
    ours = log_softmax(logits)[len(ids) // 2 : -1]
    kept = ours > ours.max(axis=1, keepdims=True) - DEPTH
    return found[kept], ours[kept]
