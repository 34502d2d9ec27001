# SPDX-License-Identifier: Apache-2.0
"""T5, BART and Marian as two ONNX graphs over one file of weights: texts of two lengths, answers token by token."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx_models import contents_of, quantized_model, write
from random_models import RandomModel
from reference_program import ProgramSource, run_program

from lilliput.architectures.architecture import Json
from lilliput.containers.container import Split
from lilliput.containers.inspection import inspect
from lilliput.containers.onnx.container import DATA, Onnx
from lilliput.containers.onnx.profiles import OnnxStandard
from lilliput.containers.onnx.reader import DECODER, ENCODER

pytestmark = pytest.mark.filterwarnings("ignore")
onnx = pytest.importorskip("onnx", reason="the extra [onnx] is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")
TEXTS = [[3, 17, 9, 42, 42, 9, 60, 8, 1, 33], [5, 6, 7, 8, 9]]
ANSWER = [2, 11, 64, 7, 30, 12]
BART: dict[str, Json] = {
    "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 96, "decoder_ffn_dim": 80, "decoder_start_token_id": 2,
    "eos_token_id": 2, "pad_token_id": 1,
}  # fmt: skip
T5: dict[str, Json] = {
    "d_model": 64, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4, "d_kv": 32, "d_ff": 96,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 6, "pad_token_id": 0, "eos_token_id": 1,
    "decoder_start_token_id": 0, "n_positions": 64,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Json]] = {
    "bart": {**BART, "model_type": "bart"},
    "mbart": {**BART, "model_type": "mbart", "scale_embedding": True},
    "marian": {**BART, "model_type": "marian", "activation_function": "swish", "decoder_vocab_size": 70},
    "t5": {**T5, "model_type": "t5"},
    "t5-gated": {**T5, "model_type": "t5", "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
}


def opened(path: Path) -> object:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(session, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    names = [item.name for item in session.get_outputs()]
    inputs = {item.name for item in session.get_inputs()}
    return dict(zip(names, session.run(names, {key: feed[key] for key in inputs}), strict=True))


def expected(model: RandomModel, text: list[int], dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """Hidden states of the text and logits of the answer, by the reference interpreter."""
    shared: dict = {}
    encoder = ProgramSource(model.architecture.encoder_program(model.config), model.tensors)
    decoder = ProgramSource(model.architecture.program(model.config), model.tensors)
    hidden = run_program(encoder, text, range(len(text)), dtype, shared=shared)
    return hidden, run_program(decoder, ANSWER, range(len(ANSWER)), dtype, shared=shared)


def answers(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Of both texts side by side, the short one padded: hidden states, and logits of the answer in steps."""
    longest = max(map(len, TEXTS))
    ids = np.array([text + [0] * (longest - len(text)) for text in TEXTS], np.int64)
    mask = np.array([[1] * len(text) + [0] * (longest - len(text)) for text in TEXTS], np.int64)
    encoded = run(opened(folder / ENCODER), {"input_ids": ids, "attention_mask": mask})
    decoder = opened(folder / DECODER)
    states = {
        item.name: encoded[item.name.replace("past_key_values", "present")]
        if ".encoder." in item.name
        else np.zeros((2, item.shape[1], 0, item.shape[3]), np.float32)
        for item in decoder.get_inputs()
        if item.name.startswith("past_key_values")
    }
    logits = []
    # GroupQueryAttention takes one token at a time of several sequences that have a past.
    for start, end in ((0, 3), (3, 4), (4, 5), (5, 6)):
        feed = {
            "input_ids": np.array([ANSWER[start:end]] * 2, np.int64),
            "attention_mask": np.ones((2, end), np.int64),
            "position_ids": np.array([range(start, end)] * 2, np.int64),
            "encoder_attention_mask": mask,
        }
        found = run(decoder, {**feed, **states})
        logits.append(found["logits"])
        states.update(
            {key: found.get(key.replace("past_key_values", "present"), value) for key, value in states.items()}
        )
    return encoded["last_hidden_state"], np.concatenate(logits, axis=1)


@pytest.mark.parametrize("container", [Onnx(), OnnxStandard()], ids=["onnx", "qdq"])
@pytest.mark.parametrize("family", FAMILIES)
def test_two_graphs_compute_what_the_two_programs_say(family: str, container: Onnx, tmp_path: Path) -> None:
    model = quantized_model(FAMILIES[family], "int8_channel")
    write(model, tmp_path / "m", container)
    hidden, logits = answers(tmp_path / "m")
    # Another order of sums. T5's scores are unscaled, and so large that their softmax tells orders apart more.
    times = 10 if family.startswith("t5") else 4
    for index, text in enumerate(TEXTS):
        exact, rounded = expected(model, text, np.float64), expected(model, text, np.float32)
        for found, right, plain in zip((hidden[index, : len(text)], logits[index]), exact, rounded, strict=True):
            missed = np.abs(plain - right).max()
            assert 0 < missed < 1e-3
            assert np.abs(found - right).max() <= times * missed
    for name in (ENCODER, DECODER):
        onnx.checker.check_model(str(tmp_path / "m" / name))


def test_both_graphs_read_one_file_and_a_shared_embedding_lies_there_once(tmp_path: Path) -> None:
    model = quantized_model({**FAMILIES["bart"], "vocab_size": 4096}, "int8_channel")
    parts = Onnx().layout(contents_of(model), "m", Split())
    write(model, tmp_path / "m")
    assert {path.name for path in (tmp_path / "m").iterdir()} == {ENCODER, DECODER, DATA}
    assert {part.file_name: part.size for part in parts} == {
        f"m/{path.name}": path.stat().st_size for path in (tmp_path / "m").iterdir()
    }
    stored = sum(tensor.nbytes for tensor in model.tensors.values())
    assert (tmp_path / "m" / DATA).stat().st_size < stored + 8192 * len(model.tensors)
    assert {item.name for item in inspect(tmp_path / "m").tensors} == set(model.tensors)
