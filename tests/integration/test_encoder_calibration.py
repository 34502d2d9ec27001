# SPDX-License-Identifier: Apache-2.0
"""What calibration does for encoders in few bits: chunks as texts are, and corrected biases."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_tokenizers import wordpiece, write_folder

from lilliput import workflows
from lilliput.calibration.data import calibration_chunks
from lilliput.checkpoints.model_source import ModelSource
from lilliput.containers import open_model
from lilliput.evaluation.sequences import Sample, VectorScores, measure
from lilliput.pipeline.correct_biases import bias_rows, correct_biases
from lilliput.pipeline.quantize_tensors import Done, quantize_tensor
from lilliput.planning import ENCODER_CHUNK, text_chunks
from lilliput.recipes.plan import Plan, resolve
from lilliput.records import NO_INPUTS
from lilliput.runtime.session import EngineOptions
from lilliput.text.tokenizer import Tokenizer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

EXACT = EngineOptions(threads=1, activations="f32")
RNG = np.random.default_rng(3)
# Few distinct tokens, so that layers have means worth correcting; the first and last are the marks of a text.
TOKENS = np.concatenate(
    [np.full((48, 1), 2), RNG.zipf(1.5, (48, 14)) % 500 + 10, np.full((48, 1), 3)], axis=1
).astype(np.int32)  # fmt: skip
CHUNKS, HELD_OUT = TOKENS[:32], TOKENS[32:]


def encoder(folder: Path, head: str = "BertModel") -> Path:
    torch.manual_seed(0)
    settings = transformers.BertConfig(
        vocab_size=600, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, initializer_range=0.1, num_labels=3,
    )  # fmt: skip
    model = getattr(transformers, head)(settings)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Outputs of a trained model have means; ReLU-like activations make them.
            if name.endswith("intermediate.dense.bias"):
                parameter.normal_(0.0, 0.5)
    model.save_pretrained(folder)
    return write_folder(folder, wordpiece(600), **json.loads((folder / "config.json").read_text()))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    return open_model(encoder(tmp_path_factory.mktemp("encoders") / "bert"))


def quantized(source: ModelSource, kind: str) -> tuple[Plan, Done]:
    plan = resolve(source, kind, statistics_present=False)
    rows = [row for row in plan.rows if row.method != "copy"]
    return plan, {row.name: quantize_tensor(source.tensor(row.name), row, NO_INPUTS, threads=1) for row in rows}


class With:
    """A model with other tensors."""

    def __init__(self, source: ModelSource, done: Done) -> None:
        self._source, self._done = source, done
        self.path, self.config, self.architecture = source.path, source.config, source.architecture

    def tensor(self, name: str) -> object:
        return self._done[name][0] if name in self._done else self._source.tensor(name)


def cosine(source: ModelSource, done: Done) -> float:
    """Mean cosine of sentence vectors of texts that nothing was fitted to."""
    samples = [Sample(tokens.tolist()) for tokens in HELD_OUT]
    scores = measure(source, samples, EXACT).compared(measure(With(source, done), samples, EXACT))  # type: ignore[arg-type]
    assert isinstance(scores, VectorScores)
    return scores.cosine.value


def test_corrected_biases_bring_vectors_nearer_to_the_float_model(source: ModelSource) -> None:
    plan, done = quantized(source, "int3_g32")
    corrected = correct_biases(source, plan, done, CHUNKS, threads=1)
    assert set(corrected) == {row.name for row in bias_rows(source, plan)}
    assert len(corrected) == 2 * (6 + 1)
    before, after = cosine(source, done), cosine(source, {**done, **corrected})
    assert 1.0 - after < 0.9 * (1.0 - before)
    assert all("bias corrected, held-out error" in entry.reason for _, entry in corrected.values())


def test_a_model_that_lost_nothing_keeps_its_biases(source: ModelSource) -> None:
    plan, _ = quantized(source, "int3_g32")
    exact = correct_biases(source, plan, {}, CHUNKS, threads=1)
    for name, (tensor, entry) in exact.items():
        np.testing.assert_array_equal(tensor.dequantize(), source.tensor(name).dequantize())
        assert "gained nothing" in entry.reason


@pytest.mark.parametrize("effort", ["balanced", "best"])
def test_quantize_with_a_text_corrects_biases(source: ModelSource, effort: str, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"The cat number {index} sat on mat {index * 7 % 13}." for index in range(200)))
    options = workflows.QuantizeOptions(threads=1, effort=effort)
    guidance = workflows.Guidance(text=(text,))
    result = workflows.quantize(source.path, "int4_g32", tmp_path / "m.safetensors", guidance=guidance, options=options)
    entries = {entry["name"]: entry["reason"] for entry in json.loads(result.ledger.read_text())["entries"]}
    assert "bias corrected" in entries["blk.0.attn_q.bias"] or "gained nothing" in entries["blk.0.attn_q.bias"]
    assert "tuned" not in entries["blk.0.attn_q.weight"]
    written = open_model(result.output[0]).tensor("blk.1.layer_output_norm.bias").dequantize()
    assert not np.array_equal(written, source.tensor("blk.1.layer_output_norm.bias").dequantize())


def test_chunks_of_encoders_begin_and_end_as_texts_do(source: ModelSource, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat and looked at the dog " * 50)
    assert text_chunks(source, [text], None).shape[1] == ENCODER_CHUNK
    marks = {"cls_token_id": 2, "separator_token_id": 3, "eos_token_id": 3}
    vocabulary = replace(source.vocabulary(), add_eos_token=True, **marks)  # type: ignore[arg-type]
    begin, *_, end = Tokenizer(vocabulary).encode("the cat", add_special=True)
    chunks = calibration_chunks(vocabulary, [text], chunk_size=32, has_ends=True)
    assert set(chunks[:, 0].tolist()) == {begin}
    assert set(chunks[:, -1].tolist()) == {end}
    assert end not in set(chunks[:, 1:-1].reshape(-1).tolist())
