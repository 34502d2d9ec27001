# SPDX-License-Identifier: Apache-2.0
"""LiteRT's interpreter, with and without XNNPACK, computes what our weights say."""

from __future__ import annotations

import math
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from onnx_models import contents_of, quantized_model
from random_models import CONFIGS, RandomModel
from reference_program import ProgramSource, encoded_tensor, float_tensor, run_program

from lilliput.architectures import program as operations
from lilliput.architectures.architecture import Json
from lilliput.arrays import FloatArray
from lilliput.containers.litert.container import LiteRt
from lilliput.containers.publish import publish

pytestmark = [pytest.mark.external, pytest.mark.filterwarnings("ignore")]
SCRIPT = Path(__file__).with_name("litert_run.py")
# As many as the context of these models.
TOKENS = [int(token) for token in np.random.default_rng(0).integers(2, 70, 64)]
UNIT = 2.0**-24
DECODERS = ("llama", "qwen3", "mistral", "gpt2", "opt", "gpt_neox", "gemma2", "phi3")
MODELS: dict[str, dict[str, Json]] = {
    **{name: CONFIGS[name] for name in DECODERS if name in CONFIGS},
    "bert": {"model_type": "bert"},
    "roberta": {"model_type": "roberta", "type_vocab_size": 1, "max_position_embeddings": 66, "pad_token_id": 1},
    "t5": {
        "model_type": "t5", "d_model": 64, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4, "d_kv": 32,
        "d_ff": 96, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20, "pad_token_id": 0,
        "eos_token_id": 1, "decoder_start_token_id": 0, "n_positions": 64,
    },
    "bart": {
        "model_type": "bart", "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 96, "decoder_ffn_dim": 80, "decoder_start_token_id": 2,
        "eos_token_id": 2, "pad_token_id": 1,
    },
}  # fmt: skip
# Each product rounds its inputs to 127 steps of their row's peak, about three times their root mean square in rows of
# a hundred numbers: 0.7 % of them, root mean square. Two layers of seven products leave the root of 14 times that
# where errors are independent and nothing enlarges them; scores do (a step in one is one of an exponent), so thrice.
SPREAD = 3 * math.sqrt(14) * 3 / 127 / math.sqrt(12)
# T5 does not scale its scores: what queries and keys (two of seven products) err by counts sqrt(32) times, its heads
# being 32 wide.
UNSCALED = math.sqrt((5 + 2 * 32) / 7)
KINDS = pytest.mark.parametrize("kind", ["plain", "xnnpack"])


@pytest.fixture(scope="session")
def litert_python(request: pytest.FixtureRequest) -> Path:
    from conftest import environment_python

    return environment_python(request, "litert")


def written(model: RandomModel, folder: Path) -> Path:
    publish(LiteRt(), contents_of(model), model.tensors.values(), folder / "m.tflite")
    return folder / "m.tflite"


def computed(python: Path, file: Path, tokens: list[int], kind: str) -> FloatArray:
    np.save(file.with_name("ids.npy"), np.array([tokens]))
    arguments = [file, file.with_name("ids.npy"), file.with_name("out.npy"), kind]
    command = [str(python), "-I", str(SCRIPT), *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    return np.load(file.with_name("out.npy"))[0]


def expected(model: RandomModel, dtype: type) -> np.ndarray:
    config = model.config
    is_half = config.task == "sequence_to_sequence"
    program = model.architecture.encoder_program(config) if is_half else model.architecture.program(config)
    return run_program(ProgramSource(program, model.tensors), TOKENS, range(len(TOKENS)), dtype)


@KINDS
@pytest.mark.parametrize("name", MODELS)
def test_floats_are_computed_as_the_program_says(name: str, kind: str, litert_python: Path, tmp_path: Path) -> None:
    model = quantized_model(MODELS[name], "f32")
    right = expected(model, np.float64)
    missed = np.abs(expected(model, np.float32) - right).max()
    # Another order of sums. T5's scores are unscaled, and so large that their softmax tells orders apart more.
    times = 10 if name == "t5" else 4
    assert np.abs(computed(litert_python, written(model, tmp_path), TOKENS, kind) - right).max() <= times * missed


@KINDS
@pytest.mark.parametrize("name", MODELS)
def test_int8_is_as_near_to_its_weights_as_rounded_inputs_allow(
    name: str, kind: str, litert_python: Path, tmp_path: Path
) -> None:
    model = quantized_model(MODELS[name], "int8_channel_narrow")
    right = expected(model, np.float64)
    found = computed(litert_python, written(model, tmp_path), TOKENS, kind)
    missed = np.sqrt(np.mean((found - right) ** 2)) / np.std(right)
    bound = SPREAD * (UNSCALED if name == "t5" else 1.0)
    print(f"{name}, {kind}: {missed:.4f} of the spread, bound {bound:.4f}")
    assert 0.0 < missed < bound


@pytest.mark.parametrize("name", ["bert", "t5", "llama"])
def test_a_shorter_text_is_padded_behind_its_end(name: str, litert_python: Path, tmp_path: Path) -> None:
    model = quantized_model(MODELS[name], "f32")
    file = written(model, tmp_path)
    config, short = model.config, TOKENS[:20]
    is_half = config.task == "sequence_to_sequence"
    program = model.architecture.encoder_program(config) if is_half else model.architecture.program(config)
    source = ProgramSource(program, model.tensors)
    right, plain = (run_program(source, short, range(20), dtype) for dtype in (np.float64, np.float32))
    found = computed(litert_python, file, [*short, *[-1] * 44], "plain")[:20]
    assert np.abs(found - right).max() <= 10 * np.abs(plain - right).max()


@dataclass(frozen=True)
class Toy:
    """An architecture of one program."""

    made: operations.Program

    def program(self, config: object) -> operations.Program:
        return self.made


@pytest.mark.parametrize("name", ["int8_channel_narrow", "int8_tensor_narrow", "int4_channel", "ternary_channel"])
def test_a_product_rounds_each_row_of_its_inputs_to_its_peak(name: str, litert_python: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    tensors = {
        "token_embd.weight": float_tensor("token_embd.weight", generator.normal(0, 1, (70, 64)).astype(np.float32)),
        "output.weight": encoded_tensor("output.weight", generator.normal(0, 0.2, (48, 64)).astype(np.float32), name),
    }
    body = (operations.Embed("x", "token_embd.weight"), operations.Linear("logits", "x", "output.weight"))
    program = operations.Program({"x": 64, "logits": 48}, (), body, "logits")
    base = quantized_model({"model_type": "llama"}, "f32")
    model = replace(base, architecture=Toy(program), tensors=tensors)  # type: ignore[arg-type]
    found = computed(litert_python, written(model, tmp_path), TOKENS, "plain")
    x = tensors["token_embd.weight"].dequantize()[TOKENS]
    step = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    rounded = np.round(x / step).astype(np.float64) * step.astype(np.float64)
    weight = tensors["output.weight"].dequantize().astype(np.float64)
    bound = 8 * UNIT * (np.abs(rounded) @ np.abs(weight).T)
    assert (np.abs(found - rounded @ weight.T) <= bound).all()
