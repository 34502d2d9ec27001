# SPDX-License-Identifier: Apache-2.0
"""Our statistics beside llama-imatrix's on the same text, and ours given to llama-quantize.

llama-imatrix runs our GGUF of each model, so agreement also says that llama.cpp computes what transformers does.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from lilliput.architectures.architecture import Json
from lilliput.calibration.collect import CalibrationOptions, calibrate
from lilliput.calibration.statistics_file import read_statistics, write_statistics
from lilliput.checkpoints.model_source import ModelSource
from lilliput.containers import open_model
from lilliput.containers.container import Contents
from lilliput.containers.gguf import Gguf
from lilliput.containers.publish import publish
from lilliput.formats import get_format
from lilliput.records import QuantizedTensor, Statistics, TensorHeader

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.external

CHUNK = 128
SIZES: dict[str, Json] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.08,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
YARN: dict[str, Json] = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3: dict[str, Json] = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
MODELS: dict[str, dict[str, Json]] = {
    "llama": {"model_type": "llama", "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "llama-wide-heads": {"model_type": "llama", "head_dim": 32},
    "llama-llama3": {"model_type": "llama", "rope_parameters": LLAMA3},
    "llama-linear": {"model_type": "llama", "rope_parameters": {"rope_type": "linear", "factor": 4.0}},
    "llama-yarn": {"model_type": "llama", "rope_parameters": YARN},
    "llama-yarn-attention-factor": {"model_type": "llama", "rope_parameters": {**YARN, "attention_factor": 0.7}},
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "smollm3": {"model_type": "smollm3", "num_hidden_layers": 5, "pad_token_id": None},
    "qwen2": {"model_type": "qwen2", "rope_parameters": YARN},
    "qwen3": {"model_type": "qwen3", "head_dim": 32, "tie_word_embeddings": True},
}


@pytest.fixture(scope="module")
def text_file(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text((shared_data / "tinystories" / "tinystories_sample.txt").read_text()[:4000])
    return path


def random_folder(folder: Path, name: str, tokenizer_from: Path) -> Path:
    torch.manual_seed(3)
    config = transformers.AutoConfig.for_model(**{**SIZES, **MODELS[name]})
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.copy_(0.5 + torch.rand(parameter.shape))
    model.save_pretrained(folder)
    for path in tokenizer_from.glob("tokenizer*"):
        shutil.copy(path, folder)
    return folder


def write_f32(source: ModelSource, path: Path) -> Path:
    f32 = get_format("f32")
    headers = tuple(TensorHeader(name, header.shape, f32) for name, header in source.headers.items())

    def tensors() -> list[QuantizedTensor]:
        made = []
        for header in headers:
            values = source.tensor(header.name).dequantize().reshape(header.rows, header.columns)
            made.append(QuantizedTensor(header.name, header.shape, f32, f32.pack(f32.encode(values))))
        return made

    contents = Contents(
        source.architecture, source.config, source.vocabulary(), source.provenance, headers, preset="F32"
    )
    publish(Gguf(), contents, tensors(), path)
    return path


def llama_imatrix(llama_cpp: Path, model: Path, text: Path, output: Path) -> Statistics:
    command = [str(llama_cpp / "llama-imatrix"), "-m", str(model), "-f", str(text), "-o", str(output)]
    command += ["-c", str(CHUNK), "-b", str(CHUNK), "-ub", str(CHUNK), "-t", "2", "-fa", "off"]
    run = subprocess.run([*command, "--process-output"], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    return read_statistics(output)


def assert_agree(ours: Statistics, theirs: Statistics, relative: float) -> None:
    assert (ours.chunks, ours.chunk_size) == (theirs.chunks, theirs.chunk_size)
    assert {name for name in theirs.inputs} <= set(ours.inputs)
    assert {name for name in ours.inputs if name.startswith("blk.")} <= set(theirs.inputs)
    for name, their_entry in theirs.inputs.items():
        our_entry = ours.inputs[name]
        assert our_entry.tokens == their_entry.tokens
        ratio = our_entry.sum_of_squares / np.maximum(their_entry.sum_of_squares, 1e-30)
        assert np.abs(ratio - 1).max() < relative, name


@pytest.mark.parametrize("name", ["stories260K", *MODELS])
def test_our_statistics_are_those_of_llama_imatrix(
    name: str, llama_cpp: Path, stories_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    folder = stories_folder if name == "stories260K" else random_folder(tmp_path / "hf", name, stories_folder)
    source = open_model(folder)
    ours = calibrate(source, [text_file], CalibrationOptions(chunk_size=CHUNK))
    model = write_f32(source, tmp_path / "model.gguf")
    theirs = llama_imatrix(llama_cpp, model, text_file, tmp_path / "theirs.gguf")
    # Their keys and values pass through an F16 cache: each errs by 2^-11, a square by twice that.
    assert_agree(ours, theirs, relative=4 * 2.0**-11)


def test_llama_quantize_takes_our_imatrix(
    llama_cpp: Path, stories_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    source = open_model(stories_folder)
    model = write_f32(source, tmp_path / "model.gguf")
    statistics = calibrate(source, [text_file], CalibrationOptions(chunk_size=CHUNK))
    write_statistics(tmp_path / "ours.gguf", statistics)
    command = [str(llama_cpp / "llama-quantize"), "--imatrix", str(tmp_path / "ours.gguf"), str(model)]
    run = subprocess.run(
        [*command, str(tmp_path / "out.gguf"), "Q4_0", "2"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    said = run.stdout + run.stderr
    assert f"loaded {len(statistics.inputs)} importance matrix entries" in said
    assert f"computed on {statistics.chunks} chunks" in said
    assert json.dumps("did not find weights")[1:-1] not in said.replace("token_embd.weight", "")
