# SPDX-License-Identifier: Apache-2.0
"""Quantized transformers models: saved, opened by the Auto classes, generating and in pipelines as before."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tiny_tokenizers import wordpiece
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    pipeline,
)

import lilliput.torch as lt
from lilliput.errors import ContainerError

SIZES = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64, "intermediate_size": 128}
BART = {
    f"{side}_{key}": value
    for side in ("encoder", "decoder")
    for key, value in {"layers": 1, "ffn_dim": 128, "attention_heads": 4}.items()
}
VOCABULARY = 600


def models() -> dict[str, tuple[type, PreTrainedModel]]:
    """Auto class and a random model of each kind."""
    torch.manual_seed(0)
    common = {"vocab_size": VOCABULARY}
    t5 = T5Config(d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, decoder_start_token_id=0, **common)
    return {
        "gpt2": (
            AutoModelForCausalLM,
            GPT2LMHeadModel(GPT2Config(n_embd=64, n_layer=2, n_head=4, n_positions=64, **common)),
        ),
        "llama": (AutoModelForCausalLM, LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True, **common))),
        "t5": (AutoModelForSeq2SeqLM, T5ForConditionalGeneration(t5)),
        "bart": (
            AutoModelForSeq2SeqLM,
            BartForConditionalGeneration(
                BartConfig(d_model=64, **BART, scale_embedding=True, max_position_embeddings=64, **common)
            ),
        ),
        "bert": (AutoModelForSequenceClassification, BertForSequenceClassification(BertConfig(**SIZES, **common))),
    }


MODELS = models()


def fresh(name: str) -> tuple[type, PreTrainedModel]:
    auto, model = MODELS[name]
    twin = type(model)(copy.deepcopy(model.config))
    twin.load_state_dict(model.state_dict())
    return auto, twin.eval()


def ids() -> dict[str, torch.Tensor]:
    numbers = torch.randint(3, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(1))
    return {"input_ids": numbers, "attention_mask": torch.ones_like(numbers)}


def inputs_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    given = ids()
    return given | {"decoder_input_ids": given["input_ids"]} if model.config.is_encoder_decoder else given


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    return model(**inputs_of(model)).logits


def generated(model: PreTrainedModel, beams: int) -> torch.Tensor:
    return model.generate(**ids(), max_new_tokens=5, do_sample=False, num_beams=beams, pad_token_id=0)


OTHER_SCHEMES = ("W8A8-static", "W4A8-dynamic", "Q4_0", "LLM.int8")


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        *((name, "W8A8-dynamic") for name in MODELS),
        *(("gpt2", scheme) for scheme in OTHER_SCHEMES),
        ("t5", "W4A8-dynamic"),
    ],
)
def test_a_quantized_model_is_saved_and_opened_by_its_auto_class(name: str, scheme: str, tmp_path: Path) -> None:
    auto, model = fresh(name)
    whole = logits(model)
    report = lt.quantize_(model, scheme, calibration=[inputs_of(model)])
    wanted = logits(model)
    # Eight bits of weights and inputs have steps of 1/127 of the largest; four bits are 16 times as coarse.
    assert (wanted - whole).norm() / whole.norm() < (0.04 if scheme.startswith(("W8", "LLM")) else 0.64)
    model.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} <= {".json", ".safetensors"}
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert sum(file.get_tensor(key).nbytes for key in file.keys()) == report.stored_bytes  # noqa: SIM118
    opened = auto.from_pretrained(tmp_path)
    assert torch.equal(logits(opened), wanted)
    assert lt.size_report(opened).stored_bytes == report.stored_bytes
    if model.can_generate():
        for beams in (1, 2):
            assert torch.equal(generated(opened, beams), generated(model, beams))


def test_a_model_saved_again_has_the_same_bytes(tmp_path: Path) -> None:
    auto, model = fresh("llama")
    lt.quantize_(model)
    model.save_pretrained(tmp_path / "first")
    auto.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    first, second = (tmp_path / part / "model.safetensors" for part in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()


def test_the_base_of_a_saved_classifier_opens_without_its_head(tmp_path: Path) -> None:
    _, model = fresh("bert")
    lt.quantize_(model)
    model.save_pretrained(tmp_path)
    base = AutoModel.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(base(**ids()).last_hidden_state, model.bert(**ids()).last_hidden_state)


def test_static_ranges_come_back_from_the_file(tmp_path: Path) -> None:
    auto, model = fresh("bert")
    lt.quantize_(model, {"rules": [{"scheme": "W8A8-static", "ranges": "mse", "smoothing": 0.5}]}, calibration=[ids()])
    model.save_pretrained(tmp_path)
    opened = auto.from_pretrained(tmp_path)
    layer, twin = (part.bert.encoder.layer[1].output.dense for part in (model, opened))
    for buffer in ("input_scale", "input_zero_point", "input_factors"):
        assert torch.equal(getattr(layer, buffer), getattr(twin, buffer))
    assert layer.input_factors.std() > 0


def test_a_float_model_is_quantized_as_it_loads(tmp_path: Path) -> None:
    auto, model = fresh("bert")
    model.save_pretrained(tmp_path)
    opened = auto.from_pretrained(tmp_path, quantization_config=lt.LilliputConfig("W8A8-dynamic"))
    lt.quantize_(model)
    assert torch.equal(logits(opened), logits(model))


def test_a_quantized_model_can_be_made_float_again(tmp_path: Path) -> None:
    _, model = fresh("bert")
    lt.quantize_(model, "W8A16")
    wanted = logits(model)
    model.dequantize()
    assert isinstance(model.classifier, torch.nn.Linear)
    assert torch.allclose(logits(model), wanted, atol=1e-5)


def test_a_folder_from_another_version_or_model_is_refused(tmp_path: Path) -> None:
    auto, model = fresh("bert")
    lt.quantize_(model)
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for key, value, words in (
        ("version", 99, "update lilliput"),
        ("modules", {"classifier": {"kind": "linear"}}, "classifier"),
        ("modules", {"nowhere": {"kind": "linear", "scheme": "int8_channel/f32"}}, "has none of its modules"),
    ):
        changed = config | {"quantization_config": config["quantization_config"] | {key: value}}
        path.write_text(json.dumps(changed))
        with pytest.raises(ContainerError, match=words):
            auto.from_pretrained(tmp_path)


def test_pipelines_run_quantized_models_unchanged() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=wordpiece(VOCABULARY), unk_token="[UNK]", pad_token="[PAD]")
    _, classifier = fresh("bert")
    classify = pipeline("text-classification", model=classifier, tokenizer=tokenizer)
    before = classify("a small text")[0]
    lt.quantize_(classifier)
    after = pipeline("text-classification", model=classifier, tokenizer=tokenizer)("a small text")[0]
    assert after["score"] == pytest.approx(before["score"], abs=0.01)
    _, writer = fresh("gpt2")
    lt.quantize_(writer)
    write = pipeline("text-generation", model=writer, tokenizer=tokenizer)
    assert write("a small text", max_new_tokens=3, do_sample=False)[0]["generated_text"].startswith("a small text")
