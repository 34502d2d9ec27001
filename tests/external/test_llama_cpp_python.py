# SPDX-License-Identifier: Apache-2.0
"""llama.cpp loads what we write and predicts the same tokens."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from llama_cpp_logits import difference, log_softmax, their_log_probabilities

from lilliput import workflows
from lilliput.containers import open_model
from lilliput.containers.gguf import Gguf
from lilliput.formats import FORMATS
from lilliput.models import gulliver
from lilliput.runtime.session import EngineOptions, Session

pytestmark = pytest.mark.external
# Log probabilities closer than this are a tie that the peer's rounding of its inputs may decide either way.
SMALLEST_MARGIN = 0.05
TOKENS = 96
NOT_QUANTIZED = ("f32", "f16", "f64", "i8", "i16", "i32", "i64")
ENCODED = [
    item.name.upper()
    for item in FORMATS.values()
    if Gguf().holds(item) and item.can_encode and item.name not in NOT_QUANTIZED
]
OPTIONS = EngineOptions(activations="f32", kv_format="f32", context=TOKENS)


def sample() -> str:
    return (gulliver() / "sample.txt").read_text()[:4000]


@pytest.mark.parametrize("preset", ["F16", "Q8_0", "Q4_0", "Q6_K", "Q4_K_M", "IQ4_XS", "Q2_K"])
def test_next_tokens_agree_wherever_the_float_reference_is_sure(
    preset: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    output = tmp_path / f"gulliver-{preset}.gguf"
    workflows.quantize("gulliver", preset, output)
    ids, found = their_log_probabilities(request, output, sample(), TOKENS)
    expected = log_softmax(np.asarray(Session(open_model(output), OPTIONS).forward(ids, output="all")))
    expected = expected[TOKENS // 2 : -1]
    top = np.sort(expected, axis=1)[:, -2:]
    sure = top[:, 1] - top[:, 0] > SMALLEST_MARGIN
    assert sure.sum() > TOKENS // 4
    assert (found.argmax(axis=1) == expected.argmax(axis=1))[sure].all()


@pytest.mark.parametrize("kind", ENCODED)
def test_every_format_decodes_there_to_what_it_decodes_to_here(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f'rules:\n  - {{match: "*", format: {kind}, fallback: Q8_0}}\n')
    output = tmp_path / "gulliver.gguf"
    workflows.quantize("gulliver", str(recipe), output)
    source = open_model(output)
    assert kind.lower() in {header.format.name for header in source.headers.values()}
    if kind in gguf.GGMLQuantizationType.__members__:
        for tensor in gguf.GGUFReader(output).tensors:
            # gguf-py multiplies in another order.
            theirs = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(-1)
            np.testing.assert_allclose(source.tensor(tensor.name).dequantize().reshape(-1), theirs, rtol=1e-6)
    ids, log_probabilities = their_log_probabilities(request, output, sample(), TOKENS)
    found, expected = difference(
        log_probabilities, np.asarray(Session(source, OPTIONS).forward(ids, output="all")), ids
    )
    # Theirs rounds inputs to 8 bits; log probabilities of the same weights differ by a small part of their spread.
    missed = float(np.sqrt(((found - expected) ** 2).mean()) / expected.std())
    print(f"{kind}: {missed:.4f} of the spread of the log probabilities")
    assert missed < 0.05
