# SPDX-License-Identifier: Apache-2.0
"""Encoders against the model's own transformers code, branch by branch: by the reference interpreter, by the engine,
and through files.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from reference_program import ProgramSource, run_program

from lilliput import workflows
from lilliput.architectures import architecture_for_gguf
from lilliput.architectures.architecture import Json
from lilliput.containers import open_model
from lilliput.errors import LilliputError
from lilliput.runtime.encoder_session import EncoderSession
from lilliput.runtime.session import EngineOptions

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOKENS = 40
ROUNDING = 2.0**-24
SIZES: dict[str, Json] = {
    "vocab_size": 130, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 66, "initializer_range": 0.08, "type_vocab_size": 2, "pad_token_id": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """head: class of the head.  ignored: changes to the EncoderTraits, or to the config, that undo the case."""

    name: str
    model_type: str
    fields: dict[str, Json] = field(default_factory=dict)
    head: str = "Model"
    ignored: dict[str, object] = field(default_factory=dict)
    # How many times the bound that undoing must cost; the two GELUs differ by less than 0.001.
    margin: float = 20.0


# Its config class knows the usual names of most sizes, and has no segments.
DISTILBERT: dict[str, Json] = {"hidden_dim": 96, "type_vocab_size": 1}
LABELS: dict[str, Json] = {
    "id2label": {"0": "bad", "1": "fair", "2": "good"},
    "label2id": {"bad": 0, "fair": 1, "good": 2},
}
CASES = [
    Case("bert", "bert"),
    Case("bert-relu", "bert", {"hidden_act": "relu"}, ignored={"activation": "gelu"}),
    Case("bert-gelu-new", "bert", {"hidden_act": "gelu_new"}, ignored={"activation": "gelu"}, margin=1.5),
    Case("bert-silu", "bert", {"hidden_act": "silu"}, ignored={"activation": "gelu"}),
    Case("bert-epsilon", "bert", {"layer_norm_eps": 0.05}, ignored={"norm_epsilon": 1e-12}),
    Case("bert-four-segments", "bert", {"type_vocab_size": 4}, ignored={"segments": 0}),
    Case("bert-classes", "bert", LABELS, "ForSequenceClassification", {"has_pooler": False}),
    Case("bert-two-classes", "bert", {}, "ForSequenceClassification"),
    Case("bert-regression", "bert", {"num_labels": 1}, "ForSequenceClassification"),
    Case("roberta", "roberta", {"type_vocab_size": 1}),
    Case("roberta-classes", "roberta", {"type_vocab_size": 1, **LABELS}, "ForSequenceClassification"),
    Case("bert-tags", "bert", LABELS, "ForTokenClassification"),
    Case("bert-spans", "bert", {}, "ForQuestionAnswering"),
    Case("bert-masked", "bert", {}, "ForMaskedLM"),
    Case("bert-masked-relu", "bert", {"hidden_act": "relu"}, "ForMaskedLM", ignored={"activation": "gelu"}),
    Case("bert-masked-untied", "bert", {"tie_word_embeddings": False}, "ForMaskedLM"),
    Case("roberta-tags", "roberta", {"type_vocab_size": 1, **LABELS}, "ForTokenClassification"),
    Case("roberta-spans", "roberta", {"type_vocab_size": 1}, "ForQuestionAnswering"),
    Case("roberta-masked", "roberta", {"type_vocab_size": 1}, "ForMaskedLM"),
    Case("distilbert", "distilbert", DISTILBERT),
    Case("distilbert-relu", "distilbert", {**DISTILBERT, "activation": "relu"}, ignored={"activation": "gelu"}),
    Case(
        "distilbert-classes",
        "distilbert",
        {**DISTILBERT, **LABELS},
        "ForSequenceClassification",
        {"pooler_activation": "tanh"},
    ),
    Case("distilbert-tags", "distilbert", {**DISTILBERT, **LABELS}, "ForTokenClassification"),
    Case("distilbert-spans", "distilbert", DISTILBERT, "ForQuestionAnswering"),
    Case(
        "distilbert-masked", "distilbert", {**DISTILBERT, "activation": "relu"}, "ForMaskedLM", {"activation": "gelu"}
    ),
    Case("xlm-roberta", "xlm-roberta", {"type_vocab_size": 1}),
    Case("camembert", "camembert", {"type_vocab_size": 1}),
]
OF_TOKENS = ("ForTokenClassification", "ForQuestionAnswering", "ForMaskedLM")
IN_GGUF = [
    case
    for case in CASES
    if case.fields.get("hidden_act", case.fields.get("activation", "gelu")) == "gelu"
    and case.head not in OF_TOKENS
    and case.name != "distilbert-classes"
]
CLASSES = {
    "Model": "AutoModel", "ForSequenceClassification": "AutoModelForSequenceClassification",
    **{head: f"AutoModel{head}" for head in OF_TOKENS},
}  # fmt: skip


def saved_model(case: Case, folder: Path):
    """A random float32 model, norms and biases included, as a Hugging Face folder."""
    settings = transformers.AutoConfig.for_model(case.model_type, **json.loads(json.dumps({**SIZES, **case.fields})))
    torch.manual_seed(11)
    model = getattr(transformers, CLASSES[case.head]).from_config(settings, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.copy_(0.5 + torch.rand(parameter.shape))
    model.save_pretrained(folder)
    return model


def their_output(model, case: Case, tokens: list[int], segments: list[int]):
    with torch.no_grad():
        # DistilBERT has none.
        given = {} if case.model_type == "distilbert" else {"token_type_ids": torch.tensor([segments])}
        found = model(torch.tensor([tokens]), **given)
    if case.head == "ForQuestionAnswering":
        return torch.stack((found.start_logits[0], found.end_logits[0]), -1).double().numpy()
    if case.head in OF_TOKENS:
        return found.logits[0].double().numpy()
    return (found.logits if case.head != "Model" else found.last_hidden_state[0]).double().numpy()


def tokens_and_segments(case: Case) -> tuple[list[int], list[int]]:
    # Token 1 is RoBERTa's padding, which its code skips.
    rng = np.random.default_rng(5)
    segments = np.sort(rng.integers(0, int(str(case.fields.get("type_vocab_size", 2))), TOKENS))
    return rng.integers(2, 130, TOKENS).tolist(), segments.tolist()


def bound(config, values) -> float:
    """As in test_families: roundings of every dot product along the longest chain, times the largest value."""
    widths = 2 * config.hidden_size + config.head_dim + TOKENS + config.hidden_size + config.ffn_size
    return (config.layers * widths + 2 * config.hidden_size) * ROUNDING * float(np.abs(values).max())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_our_program_and_engine_give_what_transformers_gives(case: Case, tmp_path: Path) -> None:
    model = saved_model(case, tmp_path)
    tokens, segments = tokens_and_segments(case)
    theirs = their_output(model, case, tokens, segments)
    source = open_model(tmp_path)
    limit = bound(source.config, theirs)
    rows = range(len(theirs))
    tensors = {name: source.tensor(name) for name in source.headers}

    def reference(config) -> np.ndarray:
        program = source.architecture.program(config)
        return run_program(ProgramSource(program, tensors), tokens, rows, segments=segments)

    assert np.abs(reference(source.config) - theirs).max() <= limit
    if case.ignored:
        in_traits = {name: value for name, value in case.ignored.items() if name != "norm_epsilon"}
        others = {name: value for name, value in case.ignored.items() if name == "norm_epsilon"}
        without = replace(source.config, encoder=replace(source.config.encoder, **in_traits), **others)
        assert np.abs(reference(without) - theirs).max() > case.margin * limit
    session = EncoderSession(source, EngineOptions(threads=1, activations="f32"))
    engine = session.run(tokens, "first" if case.head == "ForSequenceClassification" else "all", segments)
    assert np.abs(engine - theirs).max() <= 2 * limit


@pytest.mark.parametrize("suffix", [".gguf", ".safetensors"])
@pytest.mark.parametrize("case", IN_GGUF, ids=lambda case: case.name)
def test_files_hold_the_same_model(case: Case, suffix: str, tmp_path: Path) -> None:
    saved_model(case, tmp_path / "folder")
    file = tmp_path / f"model{suffix}"
    workflows.quantize(tmp_path / "folder", "F32", file, options=workflows.QuantizeOptions(threads=1))
    tokens, segments = tokens_and_segments(case)
    with workflows.opened(tmp_path / "folder") as original, workflows.opened(file) as written:
        assert original.config.encoder == written.config.encoder
        assert original.config.task == written.config.task
        outputs = [
            EncoderSession(source, EngineOptions(threads=1)).run(tokens, "first", segments)
            for source in (original, written)
        ]
        assert np.array_equal(*outputs)
        assert {name: header.shape for name, header in written.headers.items()} == {
            name: header.shape for name, header in original.headers.items()
        }


def test_an_activation_that_gguf_has_no_key_for_goes_into_our_own_layout_only(tmp_path: Path) -> None:
    saved_model(CASES[1], tmp_path / "folder")
    with pytest.raises(LilliputError, match="no key for a BERT's activation, which is relu here"):
        workflows.quantize(tmp_path / "folder", "Q8_0", tmp_path / "model.gguf")
    workflows.quantize(tmp_path / "folder", "Q8_0", tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_mean_tokens": True}, "mean"),
    ],
)
@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("suffix", ["", ".gguf", ".safetensors"])
def test_vectors_are_pooled_as_sentence_transformers_says(
    pooling: dict[str, bool], expected: str, normalized: bool, suffix: str, tmp_path: Path
) -> None:
    model = saved_model(CASES[0], tmp_path / "folder")
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), *([("2_Normalize", "Normalize")] if normalized else [])]
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"x.models.{kind}"} for i, (path, kind) in enumerate(modules)
    ]
    (tmp_path / "folder" / "modules.json").write_text(json.dumps(listed))
    (tmp_path / "folder" / "1_Pooling").mkdir()
    (tmp_path / "folder" / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    file = tmp_path / "folder"
    if suffix:
        file = tmp_path / f"model{suffix}"
        workflows.quantize(tmp_path / "folder", "F32", file)
    tokens, _ = tokens_and_segments(CASES[0])
    hidden = their_output(model, CASES[0], tokens, [0] * TOKENS)
    vector = hidden[0] if expected == "cls" else hidden.mean(axis=0)
    vector = vector / np.linalg.norm(vector) if normalized else vector
    with workflows.opened(file) as source:
        found = EncoderSession(source, EngineOptions(threads=1, activations="f32")).embed(tokens)
        assert np.abs(found - vector).max() <= 2 * bound(source.config, hidden)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_several_texts_a_pass_give_what_each_gives_alone(pooling: str, tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "bert-classes")
    saved_model(CASES[0], tmp_path / "vectors")
    saved_model(case, tmp_path / "classes")
    rng = np.random.default_rng(8)
    texts = [rng.integers(2, 130, length).tolist() for length in rng.integers(1, 66, 30)]
    segments = [[0, *[1] * (len(text) - 1)] for text in texts]
    for folder in ("vectors", "classes"):
        workflows.quantize(tmp_path / folder, "INT8_CHANNEL", tmp_path / f"{folder}.safetensors")
    vectors = EncoderSession(open_model(tmp_path / "vectors.safetensors"), EngineOptions(threads=2))
    vectors.traits = replace(vectors.traits, pooling=pooling)
    expected = np.stack([vectors.embed(text) for text in texts])
    assert np.array_equal(vectors.embed_each(texts), expected)
    assert np.array_equal(vectors.embed_each(texts[:1]), expected[:1])
    assert vectors.embed_each([]).shape == (0, 64)
    classes = EncoderSession(open_model(tmp_path / "classes.safetensors"), EngineOptions(threads=1))
    alone = np.stack([classes.classify(text, part) for text, part in zip(texts, segments, strict=True)])
    assert np.array_equal(classes.classify_each(texts, segments), alone)
    with pytest.raises(LilliputError, match="0 tokens: an encoder takes 1 to 66 at a time"):
        vectors.embed_each([texts[0], []])


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"is_decoder": True}, "is_decoder"),
        ({"hidden_act": "mish"}, "hidden_act"),
        ({"architectures": ["BertForMultipleChoice"]}, "BertForMultipleChoice"),
        ({"sentence_transformers": {"Dense": {}}}, "modules.json has a module Dense"),
        ({"sentence_transformers": {"Pooling": {"pooling_mode_max_tokens": True}}}, "pooling_mode_max_tokens"),
    ],
)
def test_what_would_change_the_arithmetic_is_refused_by_name(fields: dict[str, Json], named: str) -> None:
    from lilliput.architectures import architecture_for_huggingface

    config = {**SIZES, "model_type": "bert", **fields}
    with pytest.raises(LilliputError, match=named):
        architecture_for_huggingface(config).config_from_huggingface(config)


def test_gguf_has_no_key_for_the_relu_before_distilberts_classes(tmp_path: Path) -> None:
    saved_model(next(case for case in CASES if case.name == "distilbert-classes"), tmp_path / "folder")
    with pytest.raises(LilliputError, match="before a BERT's classes, which is relu here"):
        workflows.quantize(tmp_path / "folder", "Q8_0", tmp_path / "model.gguf")
    file = tmp_path / "model.safetensors"
    workflows.quantize(tmp_path / "folder", "int8_channel", file)
    with workflows.opened(file) as source:
        assert source.config.encoder.pooler_activation == "relu"


def test_roberta_with_another_padding_token_is_refused() -> None:
    from lilliput.architectures import roberta

    with pytest.raises(LilliputError, match="pad_token_id is 0"):
        roberta.config_from_huggingface({**SIZES, "model_type": "roberta", "pad_token_id": 0})


def test_a_bert_of_old_names_is_read(tmp_path: Path) -> None:
    """TensorFlow's checkpoints called the norms' tensors gamma and beta."""
    from safetensors.numpy import load_file, save_file

    model = saved_model(CASES[0], tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    renamed = {
        "bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in stored.items()
    }
    save_file(renamed, tmp_path / "model.safetensors")
    tokens, segments = tokens_and_segments(CASES[0])
    theirs = their_output(model, CASES[0], tokens, segments)
    source = open_model(tmp_path)
    found = EncoderSession(source, EngineOptions(threads=1, activations="f32")).run(tokens, "all", segments)
    assert np.abs(found - theirs).max() <= 2 * bound(source.config, theirs)


def test_gguf_metadata_gives_the_same_program_back() -> None:
    from lilliput.architectures import bert

    config = bert.config_from_huggingface(
        {**SIZES, "model_type": "bert", **LABELS, "architectures": ["BertForSequenceClassification"]}
    )
    shapes = {entry.name: entry.shape for entry in bert.tensor_table(config)}
    metadata = {**bert.gguf_metadata(config), "general.architecture": "bert"}
    again = architecture_for_gguf(metadata).config_from_gguf(metadata, shapes)
    assert again == config


def test_a_bert_that_was_also_trained_on_pairs_of_sentences_opens(tmp_path: Path) -> None:
    """bert-base-uncased keeps a pooler and that head beside the masked one."""
    from safetensors.numpy import load_file, save_file

    case = next(case for case in CASES if case.name == "bert-masked")
    saved_model(case, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    bias = stored.get("cls.predictions.decoder.bias", stored.get("cls.predictions.bias"))
    extra = {
        "cls.predictions.bias": bias, "cls.predictions.decoder.bias": bias,
        "cls.predictions.decoder.weight": stored["bert.embeddings.word_embeddings.weight"],
        "cls.seq_relationship.weight": np.ones((2, 64), np.float32),
        "cls.seq_relationship.bias": np.ones(2, np.float32),
        "bert.pooler.dense.weight": np.ones((64, 64), np.float32), "bert.pooler.dense.bias": np.ones(64, np.float32),
    }  # fmt: skip
    save_file({**stored, **extra}, tmp_path / "model.safetensors")
    source = open_model(tmp_path)
    assert {"cls.weight", "next_sentence.weight"} <= set(source.headers)
    assert source.config.task == "masked_token"
    assert source.config.tied
    file = tmp_path / "made.safetensors"
    workflows.quantize(tmp_path, "int8_channel", file, options=workflows.QuantizeOptions(threads=1))
    assert set(open_model(file).headers) == set(source.headers)
    with pytest.raises(LilliputError, match=r"masked token.*safetensors"):
        workflows.quantize(tmp_path, "Q8_0", tmp_path / "made.gguf")
