# SPDX-License-Identifier: Apache-2.0
"""llama-cpp-python loads what we write and predicts the same tokens."""

from __future__ import annotations

from pathlib import Path

import gguf
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
ENCODED = ("IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S", "TQ2_0", "TQ1_0", "MXFP4", "NVFP4")


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


@pytest.mark.parametrize("kind", ENCODED)
def test_every_format_decodes_there_to_what_it_decodes_to_here(kind: str, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f'rules:\n  - {{match: "*", format: {kind}, fallback: Q8_0}}\n')
    output = tmp_path / "gulliver.gguf"
    workflows.quantize("gulliver", str(recipe), output)
    source = open_model(output)
    types = set()
    for tensor in gguf.GGUFReader(output).tensors:
        types.add(tensor.tensor_type.name)
        # gguf-py multiplies in another order.
        theirs = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(-1)
        np.testing.assert_allclose(source.tensor(tensor.name).dequantize().reshape(-1), theirs, rtol=1e-6)
    assert kind in types
    reference = Session(source, EngineOptions(activations="f32", kv_format="f32", context=TOKENS))
    model = llama_cpp.Llama(str(output), n_ctx=TOKENS, n_batch=TOKENS, logits_all=True, verbose=False)
    text = (gulliver() / "sample.txt").read_bytes()[:4000]
    ids = model.tokenize(text, add_bos=False, special=False)[:TOKENS]
    expected = reference.forward(ids, output="all")
    model.eval(ids)
    found = np.array(model.scores[: len(ids)])
    # Theirs rounds inputs to 8 bits; logits of the same weights differ by a small part of their spread.
    spread = (expected - expected.mean(axis=1, keepdims=True)).std()
    assert np.sqrt(((found - expected) ** 2).mean()) < 0.05 * spread
