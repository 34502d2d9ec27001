# SPDX-License-Identifier: Apache-2.0
"""Our GGUF files of encoders in the consumers' own code: llama.cpp's tools, transformers' reader of T5."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from tiny_tokenizers import unigram, wordpiece, write_folder

from lilliput import workflows
from lilliput.runtime.answers import AnswerOptions, answer
from lilliput.runtime.encoder_decoder import EncoderDecoderSession
from lilliput.runtime.encoder_session import EncoderSession
from lilliput.runtime.session import EngineOptions
from lilliput.text.tokenizer import Tokenizer

TEXT = "The quick brown fox jumps over the lazy dog"


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    settings = transformers.BertConfig(
        vocab_size=600, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    transformers.BertModel(settings).save_pretrained(tmp_path / "bert")
    named = {f"{name.lower()}_token": f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")}
    return write_folder(tmp_path / "bert", wordpiece(600), **named)


def embedded(tool: Path, file: Path) -> np.ndarray:
    """What llama-embedding prints. It logs from a thread of its own and may end before all is out: then once more."""
    words = [tool, "-m", file, "-p", TEXT, "--embd-output-format", "json", "-t", "1"]
    for _ in range(5):
        done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-2000:]
        try:
            return np.array(json.loads(done.stdout)["data"][0]["embedding"])
        except json.JSONDecodeError:
            continue
    raise AssertionError(done.stdout)


@pytest.mark.external
@pytest.mark.parametrize(("kind", "bound"), [("F32", 0.9999), ("Q8_0", 0.999)])
def test_llama_embedding_gives_our_vector(llama_cpp: Path, bert: Path, tmp_path: Path, kind: str, bound: float) -> None:
    tool = llama_cpp / "llama-embedding"
    if not tool.is_file():
        pytest.skip("llama-embedding is not built")
    file = tmp_path / "bert.gguf"
    workflows.quantize(bert, kind, file)
    theirs = embedded(tool, file)
    with workflows.opened(file) as source:
        tokens = Tokenizer(source.vocabulary()).encode(TEXT)
        ours = EncoderSession(source, EngineOptions(threads=1, activations="f32")).embed(tokens)
    # llama.cpp looks GELU up in a table of 16 bits and rounds inputs of Q8_0 to 8.
    assert ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs) > bound


# llama.cpp looks GELU up in a table of 16 bits and keeps keys and values in 16: tokens this near are a matter of luck.
NARROW = 0.02


@pytest.mark.external
@pytest.mark.parametrize("model_type", ["t5", "umt5"])
@pytest.mark.parametrize("feed_forward", ["relu", "gated-gelu"])
def test_llama_completion_answers_as_our_engine_does(
    llama_cpp: Path, tmp_path: Path, model_type: str, feed_forward: str
) -> None:
    tool = llama_cpp / "llama-completion"
    if not tool.is_file():
        pytest.skip("llama-completion is not built")
    folder, file = write_t5(tmp_path / "t5", model_type, feed_forward), tmp_path / "t5.gguf"
    workflows.quantize(folder, "F32", file)
    compared = 0
    with workflows.opened(file) as source:
        tokenizer = Tokenizer(source.vocabulary())
        session = EncoderDecoderSession(source, EngineOptions(threads=1, activations="f32", kv_format="f32"))
        for prompt in (TEXT, "a little model", "Once upon a time", "42 heads; it said: hello!", "layers"):
            text = tokenizer.encode(prompt, add_special=True)
            found = list(answer(session, text, AnswerOptions(max_length=16)).token_ids)
            session.encode(text)
            logits = np.sort(session.forward(found[:-1], "all"), axis=1)
            is_narrow = logits[:, -1] - logits[:, -2] < NARROW * (logits[:, -1] - logits[:, 0])
            sure = found[1 : 1 + int(np.argmax([*is_narrow, True]))]
            compared += len(sure)
            words = [tool, "-m", file, "-p", prompt, "-n", "15", "--temp", "0", "-t", "1", "-no-cnv", "--no-warmup"]
            done = subprocess.run([str(word) for word in words], capture_output=True, timeout=120)
            assert done.returncode == 0, done.stderr[-2000:]
            assert done.stdout.decode(errors="replace").strip().startswith(tokenizer.decode(sure).strip())
    assert compared >= 10


def write_t5(folder: Path, model_type: str, feed_forward: str) -> Path:
    """A tiny model whose answers vary, with a tokenizer of its kind."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizer = unigram()
    torch.manual_seed(3)
    settings = transformers.AutoConfig.for_model(
        model_type, vocab_size=tokenizer.get_vocab_size(), d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4,
        feed_forward_proj=feed_forward, pad_token_id=tokenizer.token_to_id("<pad>"),
        eos_token_id=tokenizer.token_to_id("</s>"), decoder_start_token_id=tokenizer.token_to_id("<pad>"),
    )  # fmt: skip
    model = transformers.AutoModelForSeq2SeqLM.from_config(settings, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "relative" in name:
                parameter.copy_(torch.randn(parameter.shape))
            elif parameter.ndim > 1:
                parameter.mul_(3.0)
    model.save_pretrained(folder)
    return write_folder(folder, tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


@pytest.mark.filterwarnings("ignore")
def test_transformers_reads_back_the_checkpoint_from_our_t5(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    settings = transformers.T5Config(
        vocab_size=600, d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu",
        pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
    )  # fmt: skip
    original = transformers.T5ForConditionalGeneration(settings)
    original.save_pretrained(tmp_path / "t5")
    write_folder(tmp_path / "t5", unigram(), eos_token="</s>", pad_token="<pad>", unk_token="<unk>")
    workflows.quantize(tmp_path / "t5", "F32", tmp_path / "t5.gguf")
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path, gguf_file="t5.gguf", dtype=torch.float32)
    weights = dict(original.named_parameters())
    for name, found in theirs.named_parameters():
        assert np.array_equal(found.detach().numpy(), weights[name].detach().numpy()), name
