# SPDX-License-Identifier: Apache-2.0
"""`quantize`, `eval` and `run` of models that do not predict the next token, on tiny ones with tokenizers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_tokenizers import byte_level, named, wordpiece, write_folder

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

Run = Callable[..., tuple[int, str, str]]
LINES = [
    f"The {word} number {index} is a line of text about {word}s."
    for index, word in enumerate(["cat", "dog", "tree"] * 8)
]


@pytest.fixture(scope="module", params=["embedding", "classification", "answers"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(str(request.param))
    torch.manual_seed(0)
    if request.param == "answers":
        settings = transformers.BartConfig(
            vocab_size=960, d_model=64, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=96, decoder_ffn_dim=96, max_position_embeddings=64,
            init_std=0.3, pad_token_id=1, eos_token_id=2, bos_token_id=0, decoder_start_token_id=2,
        )  # fmt: skip
        transformers.BartForConditionalGeneration(settings).save_pretrained(path)
        described = json.loads((path / "config.json").read_text())
        return write_folder(path, byte_level(named("gpt-2")), **described)
    settings = transformers.BertConfig(
        vocab_size=600, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, initializer_range=0.2, num_labels=3,
    )  # fmt: skip
    name = "BertModel" if request.param == "embedding" else "BertForSequenceClassification"
    getattr(transformers, name)(settings).save_pretrained(path)
    described = json.loads((path / "config.json").read_text())
    return write_folder(path, wordpiece(600), **described)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(LINES))
    return path


def test_a_quantized_model_is_measured_by_what_it_is_for(run: Run, folder: Path, text: Path, tmp_path: Path) -> None:
    files = []
    for kind in ("INT8_CHANNEL", "INT4_G32", "INT8_EMBEDDINGS_ATTENTION", "INT4_WIDE_ENDS"):
        files.append(tmp_path / f"{kind}.safetensors")
        code, _, err = run("quantize", folder, "--to", kind, "-o", files[-1], "--threads", 1)
        assert code == 0, err
    code, out, err = run("eval", folder, *files, "--text", text, "--json", "--threads", 1)
    assert code == 0, err
    found = json.loads(out)
    assert found["texts"] == len(LINES)
    eight, four, mixed, ends = found["files"]
    loss_of_eight, loss_of_four = (
        1.0 - file["mean_cosine"] if found["task"] == "embedding" else file["mean_kld"] for file in (eight, four)
    )
    # Four more bits are steps 16 times as fine, and both losses grow with their square; shares of equal choices have no
    # bound that holds on every machine, because random models have near ties that any step flips.
    assert loss_of_eight < loss_of_four / 10
    assert eight["bytes"] < mixed["bytes"]
    assert four["bytes"] < ends["bytes"]
    code, out, _ = run("eval", folder, files[0], "--text", text, "--threads", 1)
    assert code == 0
    assert f"{len(LINES)} texts" in out


def test_run_embeds_classifies_or_answers(run: Run, folder: Path) -> None:
    code, out, err = run("run", folder, "-p", LINES[0], "--json", "--beams", 2, "-n", 8, "--threads", 1)
    assert code == 0, err
    found = json.loads(out)
    if "vector" in found:
        assert len(found["vector"]) == 64
    elif "classes" in found:
        assert sum(found["classes"].values()) == pytest.approx(1.0)
    else:
        assert found["token_ids"][0] == 2
        assert len(found["token_ids"]) <= 9
    code, out, _ = run("run", folder, "-p", LINES[0], "--threads", 1)
    assert code == 0
    assert out.strip()


def test_labels_of_json_lines_give_accuracy(run: Run, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "labelled.jsonl"
    path.write_text("\n".join(json.dumps({"text": line, "label": index % 3}) for index, line in enumerate(LINES)))
    code, out, err = run("eval", folder, folder, "--text", path, "--json", "--threads", 1)
    assert code == 0, err
    found = json.loads(out)
    if found["task"] == "classification":
        assert 0.0 <= found["files"][0]["accuracy"] <= 1.0
        assert found["files"][0]["agreement"] == 1.0


def test_models_of_other_tasks_are_not_compared(run: Run, folder: Path, text: Path, tmp_path: Path) -> None:
    from lilliput.models import gulliver

    code, _, err = run("eval", folder, gulliver(), "--text", text, "--threads", 1)
    assert code != 0
    assert "only files made from it can be compared" in err


def test_a_model_without_a_place_in_gguf_is_named_after_our_own_layout(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run("quantize", folder, "--to", "Q8_0", "--threads", 1)
    assert code == 0, err
    written = [path.suffix for path in tmp_path.iterdir() if path.suffix in (".gguf", ".safetensors")]
    is_bart = json.loads((folder / "config.json").read_text())["model_type"] == "bart"
    assert written == [".safetensors" if is_bart else ".gguf"]


def test_statistics_make_four_bits_better(run: Run, folder: Path, text: Path, tmp_path: Path) -> None:
    plain, guided = tmp_path / "plain.safetensors", tmp_path / "guided.safetensors"
    long = tmp_path / "long.txt"
    long.write_text("\n".join(np.random.default_rng(0).permutation(LINES * 20)))
    assert run("quantize", folder, "--to", "INT3_G32", "-o", plain, "--threads", 1)[0] == 0
    code, _, err = run("quantize", folder, "--to", "INT3_G32", "--text", long, "-o", guided, "--threads", 1)
    assert code == 0, err
    code, out, err = run("eval", folder, plain, guided, "--text", text, "--json", "--threads", 1)
    assert code == 0, err
    first, second = json.loads(out)["files"]
    name = next(name for name in ("mean_cosine", "agreement", "same_top") if name in first)
    assert second[name] >= first[name]


def test_fit_says_that_it_compares_next_tokens(run: Run, folder: Path, text: Path, tmp_path: Path) -> None:
    code, _, err = run("fit", folder, "--bpw", 6, "--text", text, "-o", tmp_path / "fitted.gguf")
    assert code != 0
    assert "fit compares predictions of the next token" in err


def test_bench_times_a_whole_text(run: Run, folder: Path) -> None:
    words = ("bench", folder, "--prefill", 16, "--decode", 0, "--threads", 1, "--json")
    code, out, err = run(*words)
    if json.loads((folder / "config.json").read_text())["model_type"] == "bart":
        assert code != 0
        assert "only a whole text's pass can be measured" in err
    else:
        assert code == 0, err
        assert json.loads(out)


HEADS = {"masked": "BertForMaskedLM", "tags": "BertForTokenClassification", "spans": "BertForQuestionAnswering"}


@pytest.fixture(scope="module", params=HEADS)
def head(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    path = tmp_path_factory.mktemp(str(request.param))
    torch.manual_seed(0)
    settings = transformers.BertConfig(
        vocab_size=600, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, initializer_range=0.2, num_labels=2 if request.param == "spans" else 3,
    )  # fmt: skip
    getattr(transformers, HEADS[request.param])(settings).save_pretrained(path)
    described = json.loads((path / "config.json").read_text())
    marks = {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]", "tokenizer_class": "BertTokenizer"}
    return request.param, write_folder(path, wordpiece(600), **{**described, **marks})


def test_heads_of_tokens_are_quantized_run_and_measured(
    run: Run, head: tuple[str, Path], text: Path, tmp_path: Path
) -> None:
    kind, folder = head
    files = [tmp_path / f"{name}.safetensors" for name in ("INT8_CHANNEL", "INT4_G32")]
    for file in files:
        code, _, err = run("quantize", folder, "--to", file.stem, "-o", file, "--threads", 1)
        assert code == 0, err
    code, out, err = run("eval", folder, *files, "--text", text, "--json", "--threads", 1)
    assert code == 0, err
    found = json.loads(out)
    assert found["task"] == {"masked": "masked_token", "tags": "tagging", "spans": "spans"}[kind]
    eight, four = found["files"]
    # Four more bits are steps 16 times as fine, and KL grows with their square; random heads have near ties that any
    # step flips, so the agreement itself has no bound that holds on every machine.
    assert eight["mean_kld"] < four["mean_kld"] / 10
    assert all(0.0 <= file["agreement"] <= 1.0 for file in (eight, four))
    assert (eight["accuracy"] is not None) == (kind == "masked")


def test_heads_say_what_transformers_pipelines_say(run: Run, head: tuple[str, Path]) -> None:
    kind, folder = head
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    if kind == "masked":
        prompt = "the [MASK] is a line"
        theirs = transformers.pipeline("fill-mask", str(folder), tokenizer=tokenizer)(prompt)
        wanted = [(item["token_str"].removeprefix("##"), item["score"]) for item in theirs]
    elif kind == "tags":
        prompt = "the cat is a line"
        theirs = transformers.pipeline("token-classification", str(folder), tokenizer=tokenizer, ignore_labels=[])(
            prompt
        )
        wanted = [(item["word"].removeprefix("##"), item["entity"], item["score"]) for item in theirs]
    else:
        prompt = "who is it\nthe cat is a line of text about the dog"
        model = transformers.AutoModelForQuestionAnswering.from_pretrained(folder)
        both = tokenizer(*prompt.split("\n"), return_tensors="pt")
        with torch.no_grad():
            output = model(**both)
        scores = output.start_logits[0][:, None] + output.end_logits[0][None]
        places = torch.arange(len(scores))
        inside = (both["token_type_ids"][0] == 1) & (both["input_ids"][0] != tokenizer.sep_token_id)
        length = places[None] - places[:, None]
        allowed = inside[:, None] & inside[None] & (length >= 0) & (length < 15)
        best = int(scores.masked_fill(~allowed, -torch.inf).argmax())
        ids = both["input_ids"][0, best // len(scores) : best % len(scores) + 1]
        wanted = [tokenizer.decode(ids)]
    code, out, err = run("run", folder, "-p", prompt, "--json", "--threads", 1)
    assert code == 0, err
    found = json.loads(out)
    if kind == "masked":
        assert [item["token"] for item in found["masks"][0]] == [token for token, _ in wanted]
        np.testing.assert_allclose(
            [item["probability"] for item in found["masks"][0]], [p for _, p in wanted], rtol=0.02
        )
    elif kind == "tags":
        assert [(item["token"], item["label"]) for item in found["tags"]] == [item[:2] for item in wanted]
        np.testing.assert_allclose(
            [item["probability"] for item in found["tags"]], [p for _, _, p in wanted], rtol=0.02
        )
    else:
        assert found["text"] == wanted[0].removeprefix("##")


def test_a_prompt_that_a_head_cannot_use_is_told_what_it_needs(run: Run, head: tuple[str, Path]) -> None:
    kind, folder = head
    code, _, err = run("run", folder, "-p", "one line and no mark", "--threads", 1)
    assert (code == 0) == (kind == "tags")
    if kind != "tags":
        assert {"masked": "[MASK]", "spans": "a line break and the passage"}[kind] in err
