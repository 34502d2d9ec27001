# SPDX-License-Identifier: Apache-2.0
"""Encoder-decoders against the model's own transformers code, branch by branch: logits by the reference interpreter and
by the engine, and whole answers, greedy and by beam search.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from reference_program import ProgramSource, run_program

from lilliput import workflows
from lilliput.architectures import architecture_for_gguf, architecture_for_huggingface
from lilliput.architectures.architecture import Json
from lilliput.containers import open_model
from lilliput.errors import LilliputError
from lilliput.runtime.answers import AnswerOptions, answer
from lilliput.runtime.encoder_decoder import EncoderDecoderSession
from lilliput.runtime.session import EngineOptions

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TEXT, ANSWER = 37, 23
ROUNDING = 2.0**-24
BART: dict[str, Json] = {
    "vocab_size": 130, "d_model": 64, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 96, "decoder_ffn_dim": 80, "max_position_embeddings": 64,
    "init_std": 0.08, "pad_token_id": 1, "eos_token_id": 2, "bos_token_id": 0, "decoder_start_token_id": 2,
}  # fmt: skip
PEGASUS: dict[str, Json] = {"pad_token_id": 0, "eos_token_id": 1, "forced_eos_token_id": 1, "decoder_start_token_id": 0}
T5: dict[str, Json] = {
    "vocab_size": 130, "d_model": 64, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4, "d_kv": 24, "d_ff": 96,
    "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0, "n_positions": 64, "initializer_factor": 1.0,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """ignored: changes to the DecoderTraits that undo what the case is about."""

    name: str
    model_type: str
    fields: dict[str, Json] = field(default_factory=dict)
    ignored: dict[str, object] = field(default_factory=dict)

    @property
    def config(self) -> dict[str, Json]:
        sizes = T5 if self.model_type in ("t5", "mt5", "umt5") else BART
        return {**sizes, **self.fields, "model_type": self.model_type}


CASES = [
    Case("bart", "bart"),
    Case("bart-scaled", "bart", {"scale_embedding": True}, {"embedding_scale": 1.0}),
    Case("bart-relu", "bart", {"activation_function": "relu"}, {"activation": "gelu"}),
    Case("bart-untied", "bart", {"tie_word_embeddings": False}),
    Case("mbart", "mbart", {"scale_embedding": True}),
    Case("marian", "marian", {"scale_embedding": True, "activation_function": "swish", "decoder_vocab_size": 130}),
    Case("pegasus", "pegasus", PEGASUS),
    Case("pegasus-scaled", "pegasus", {**PEGASUS, "scale_embedding": True}, {"embedding_scale": 1.0}),
    Case("m2m100", "m2m_100", {}, {"embedding_scale": 1.0}),
    Case("m2m100-gelu", "m2m_100", {"activation_function": "gelu", "scale_embedding": False}, {"activation": "relu"}),
    Case("blenderbot", "blenderbot", {"activation_function": "relu"}, {"activation": "gelu"}),
    Case("umt5", "umt5", {}, {"relative_in_every_block": False}),
    Case("t5", "t5", {}, {"output_scale": 1.0}),
    Case("t5-gated", "t5", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    Case("t5-gated-relu", "t5", {"feed_forward_proj": "gated-relu"}, {"activation": "gelu_tanh"}),
    Case(
        "t5-buckets",
        "t5",
        {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 20},
        {"relative_max_distance": 16},
    ),
]


def saved_model(case: Case, folder: Path):
    """A random float32 model, norms and biases included, as a Hugging Face folder."""
    fields = {name: value for name, value in case.config.items() if name != "model_type"}
    torch.manual_seed(3)
    settings = transformers.AutoConfig.for_model(case.model_type, **json.loads(json.dumps(fields)))
    model = transformers.AutoModelForSeq2SeqLM.from_config(settings, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.copy_(0.5 + torch.rand(parameter.shape))
            elif "relative_attention_bias" in name:
                parameter.copy_(torch.randn(parameter.shape))
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias.copy_(torch.randn(model.final_logits_bias.shape))
        if case.fields.get("tie_word_embeddings") is False:
            model.lm_head.weight = torch.nn.Parameter(0.1 * torch.randn(model.lm_head.weight.shape))
            if case.model_type == "bart":
                model.model.encoder.embed_tokens.weight = model.model.shared.weight
                model.model.decoder.embed_tokens.weight = model.model.shared.weight
    model.save_pretrained(folder)
    return model


def tokens(count: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(3, 130, count).tolist()


def their_logits(model):
    with torch.no_grad():
        found = model(torch.tensor([tokens(TEXT, 1)]), decoder_input_ids=torch.tensor([tokens(ANSWER, 2)]))
    return found.logits[0].double().numpy()


def bound(config, logits) -> float:
    """As in test_families: roundings of every dot product along the longest chain, times the largest value."""
    wide = 4 * config.hidden_size + 4 * config.heads * config.head_dim + 3 * TEXT + config.ffn_size
    terms = (config.layers + config.decoder.layers) * wide + config.hidden_size
    return terms * ROUNDING * float(np.abs(logits).max())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_our_programs_and_engine_give_what_transformers_gives(case: Case, tmp_path: Path) -> None:
    theirs = their_logits(saved_model(case, tmp_path))
    source = open_model(tmp_path)
    limit = bound(source.config, theirs)
    tensors = {name: source.tensor(name) for name in source.headers}

    def reference(config) -> np.ndarray:
        shared: dict = {}
        encoder = source.architecture.encoder_program(config)
        run_program(ProgramSource(encoder, tensors), tokens(TEXT, 1), [], shared=shared)
        decoder = ProgramSource(source.architecture.program(config), tensors)
        return run_program(decoder, tokens(ANSWER, 2), range(ANSWER), shared=shared)

    assert np.abs(reference(source.config) - theirs).max() <= limit
    if case.ignored:
        without = replace(source.config, decoder=replace(source.config.decoder, **case.ignored))
        assert np.abs(reference(without) - theirs).max() > 20 * limit
    session = EncoderDecoderSession(source, EngineOptions(threads=1, activations="f32", kv_format="f32"))
    session.encode(tokens(60, 9))
    session.encode(tokens(TEXT, 1))
    answer_tokens = tokens(ANSWER, 2)
    engine = np.concatenate([session.forward(answer_tokens[:9], "all"), session.forward(answer_tokens[9:], "all")])
    assert np.abs(engine - theirs).max() <= 2 * limit


SEARCHES = {
    "greedy": ({}, AnswerOptions()),
    "greedy-no-repeat": ({"no_repeat_ngram_size": 2}, AnswerOptions(no_repeat_ngram=2)),
    "beams": ({"num_beams": 4}, AnswerOptions(beams=4)),
    "beams-early": (
        {"num_beams": 3, "early_stopping": True, "length_penalty": 2.0},
        AnswerOptions(beams=3, early_stopping=True, length_penalty=2.0),
    ),
    "beams-never": (
        {"num_beams": 3, "early_stopping": "never", "length_penalty": 0.5, "no_repeat_ngram_size": 3},
        AnswerOptions(beams=3, early_stopping="never", length_penalty=0.5, no_repeat_ngram=3),
    ),
    "beams-long": ({"num_beams": 2, "length_penalty": -1.0}, AnswerOptions(beams=2, length_penalty=-1.0)),
}


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("model_type", ["bart", "mbart", "marian", "pegasus", "m2m_100", "t5"])
def test_answers_are_the_tokens_that_transformers_generates(model_type: str, search: str, tmp_path: Path) -> None:
    # The cache of transformers' T5 is made for as many blocks in the decoder as in the encoder.
    fields = {"marian": {"decoder_vocab_size": 130}, "t5": {"num_decoder_layers": 2}, "pegasus": PEGASUS}.get(
        model_type, {}
    )
    model = saved_model(Case(model_type, model_type, fields), tmp_path)
    theirs, ours = SEARCHES[search]
    source = open_model(tmp_path)
    session = EncoderDecoderSession(source, EngineOptions(threads=1, activations="f32", kv_format="f32"), beams=4)
    for seed in range(2):
        text = tokens(12 + seed, seed)
        with torch.no_grad():
            wanted = model.generate(torch.tensor([text]), max_length=20, do_sample=False, **theirs)[0].tolist()
        found = list(answer(session, text, replace(ours, max_length=20)).token_ids)
        assert found == wanted


def test_forced_and_banned_tokens_of_generation_config_are_kept(tmp_path: Path) -> None:
    model = saved_model(CASES[0], tmp_path)
    model.generation_config.forced_bos_token_id = 7
    model.generation_config.bad_words_ids = [[11], [12], [13]]
    model.generation_config.save_pretrained(tmp_path)
    source = open_model(tmp_path)
    assert source.config.decoder.forced_first_token_id == 7
    assert source.config.decoder.banned_token_ids == (11, 12, 13)
    session = EncoderDecoderSession(source, EngineOptions(threads=1, activations="f32", kv_format="f32"), beams=3)
    for beams in (1, 3):
        with torch.no_grad():
            wanted = model.generate(torch.tensor([tokens(9, 1)]), max_length=12, num_beams=beams)[0].tolist()
        assert wanted[1] == 7
        assert list(answer(session, tokens(9, 1), AnswerOptions(beams=beams, max_length=12)).token_ids) == wanted


@pytest.mark.parametrize("suffix", [".gguf", ".safetensors"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_files_hold_the_same_model(case: Case, suffix: str, tmp_path: Path) -> None:
    saved_model(case, tmp_path / "folder")
    file = tmp_path / f"model{suffix}"
    if suffix == ".gguf" and case.name not in ("t5", "t5-gated", "umt5"):
        with pytest.raises(LilliputError, match="GGUF has no"):
            workflows.quantize(tmp_path / "folder", "F32", file)
        return
    workflows.quantize(tmp_path / "folder", "F32", file, options=workflows.QuantizeOptions(threads=1))
    outputs = []
    with workflows.opened(tmp_path / "folder") as original, workflows.opened(file) as written:
        assert original.config.task == written.config.task == "sequence_to_sequence"
        for source in (original, written):
            session = EncoderDecoderSession(source, EngineOptions(threads=1))
            session.encode(tokens(TEXT, 1))
            outputs.append(session.forward(tokens(ANSWER, 2), "all"))
    assert np.array_equal(*outputs)


def test_t5_metadata_gives_the_same_program_back() -> None:
    config = next(case for case in CASES if case.name == "t5").config
    architecture = architecture_for_huggingface(config)
    found = architecture.config_from_huggingface(config)
    shapes = {entry.name: entry.shape for entry in architecture.tensor_table(found) if entry.tied_to is None}
    metadata = {**architecture.gguf_metadata(found), "general.architecture": "t5"}
    assert architecture_for_gguf(metadata).config_from_gguf(metadata, shapes) == found


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"model_type": "bart", "architectures": ["BartForSequenceClassification"]}, "BartForSequenceClassification"),
        ({"model_type": "bart", "decoder_attention_heads": 2}, "decoder_attention_heads"),
        ({"model_type": "bart", "activation_function": "mish"}, "activation_function"),
        ({"model_type": "bart", "bad_words_ids": [[1, 2]]}, "bad_words_ids"),
        ({"model_type": "marian", "share_encoder_decoder_embeddings": False}, "share_encoder_decoder_embeddings"),
        ({"model_type": "marian", "decoder_vocab_size": 99}, "decoder_vocab_size"),
        ({"model_type": "mbart", "decoder_start_token_id": None, "bos_token_id": None}, "decoder_start_token_id"),
    ],
)
def test_what_would_change_the_arithmetic_is_refused_by_name(fields: dict[str, Json], named: str) -> None:
    config = {**BART, **fields}
    with pytest.raises(LilliputError, match=named):
        architecture_for_huggingface(config).config_from_huggingface(config)


def test_a_second_copy_of_the_embedding_is_read_as_one(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    saved_model(CASES[0], tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    stored["model.encoder.embed_tokens.weight"] = stored["model.shared.weight"].copy()
    stored["lm_head.weight"] = stored["model.shared.weight"].copy()
    save_file(stored, tmp_path / "model.safetensors")
    source = open_model(tmp_path)
    assert [name for name in source.headers if "embd.weight" in name and "position" not in name] == [
        "token_embd.weight"
    ]
    stored["model.encoder.embed_tokens.weight"] = stored["model.shared.weight"] + 1
    save_file(stored, tmp_path / "model.safetensors")
    with pytest.raises(LilliputError, match="differ; bart shares one embedding"):
        open_model(tmp_path)


def test_computed_positions_that_a_checkpoint_holds_too_are_read(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    case = next(case for case in CASES if case.name == "marian")
    saved_model(case, tmp_path)
    computed = open_model(tmp_path).tensor("enc.position_embd.weight").dequantize()
    stored = load_file(tmp_path / "model.safetensors")
    stored |= {f"model.{half}.embed_positions.weight": 2 * computed for half in ("encoder", "decoder")}
    save_file(stored, tmp_path / "model.safetensors")
    assert np.array_equal(open_model(tmp_path).tensor("enc.position_embd.weight").dequantize(), 2 * computed)


def test_a_session_says_what_it_cannot_do(tmp_path: Path) -> None:
    saved_model(CASES[0], tmp_path)
    session = EncoderDecoderSession(open_model(tmp_path), EngineOptions(threads=1))
    with pytest.raises(LilliputError, match="encoder has not run"):
        session.forward([2])
    with pytest.raises(LilliputError, match="takes 1 to 64"):
        session.encode(tokens(65, 1))
    with pytest.raises(LilliputError, match="4 beams, but the session follows at most 1"):
        answer(session, tokens(5, 1), AnswerOptions(beams=4))


def test_transforms_are_refused_where_two_programs_share_an_embedding(tmp_path: Path) -> None:
    saved_model(CASES[0], tmp_path / "folder")
    options = workflows.QuantizeOptions(transforms=("residual_rotation",))
    with pytest.raises(LilliputError, match="two programs that share an embedding"):
        workflows.quantize(tmp_path / "folder", "Q8_0", tmp_path / "model.safetensors", options=options)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_programs_in_torch_give_what_transformers_gives(case: Case, tmp_path: Path) -> None:
    from lilliput.calibration.pair_inputs import Pair, run_pair

    theirs = their_logits(saved_model(case, tmp_path))
    source = open_model(tmp_path)
    values = {name: torch.from_numpy(source.tensor(name).dequantize().copy()) for name in source.headers}
    programs = source.architecture.encoder_program(source.config), source.architecture.program(source.config)
    found = run_pair(programs, values, Pair(tokens(TEXT, 1), tokens(ANSWER, 2)))
    assert np.abs(found.numpy() - theirs).max() <= 2 * bound(source.config, theirs)


@pytest.mark.parametrize("model_type", ["bart", "t5"])
def test_codes_fitted_to_answers_are_nearer_to_the_original(model_type: str, tmp_path: Path) -> None:
    from lilliput.calibration.collect import CalibrationOptions, collect_pairs
    from lilliput.calibration.pair_inputs import answered
    from lilliput.evaluation.sequences import AnswerScores, Sample, measure
    from lilliput.pipeline.quantize_pairs import quantize_pairs
    from lilliput.recipes.plan import resolve

    saved_model(Case(model_type, model_type), tmp_path)
    source = open_model(tmp_path)
    chunks = np.random.default_rng(0).integers(3, 130, (24, 30), dtype=np.int32)
    pairs = list(answered(source, chunks, threads=1))
    assert all(pair.answer[0] == source.config.decoder.start_token_id for pair in pairs)
    statistics = collect_pairs(source, chunks, CalibrationOptions(threads=1))
    linears = [entry.name for entry in source.architecture.tensor_table(source.config) if entry.input_group]
    assert set(linears) - {"output.weight"} <= set(statistics)
    samples = [Sample(tokens(20, seed)) for seed in range(100, 106)]
    options = EngineOptions(threads=1, activations="f32", kv_format="f32")
    base = measure(source, samples, options)

    @dataclass
    class Changed:
        """The model with some tensors replaced."""

        done: dict
        path = source.path
        config = source.config
        architecture = source.architecture

        def tensor(self, name: str):
            return self.done[name][0] if name in self.done else source.tensor(name)

    def loss(method: str) -> float:
        plan = resolve(source, "INT3_G32", statistics_present=True, method=method)
        done = quantize_pairs(source, plan, pairs, threads=1)
        scores = base.compared(measure(Changed(dict(done)), samples, options, base))
        assert isinstance(scores, AnswerScores)
        return scores.kld.value

    assert loss("feedback") < 0.8 * loss("round_to_nearest")


@pytest.mark.parametrize("model_type", ["bart", "t5"])
def test_static_inputs_of_both_halves_are_multiplied_in_integers(model_type: str, tmp_path: Path) -> None:
    from lilliput.activations import parse_static_inputs
    from lilliput.calibration.collect import CalibrationOptions
    from lilliput.calibration.static_ranges import static_ranges
    from lilliput.pipeline.quantize_tensors import quantized_tensors
    from lilliput.recipes.plan import resolve

    model = saved_model(Case(model_type, model_type), tmp_path)
    source = open_model(tmp_path)
    chunks = np.random.default_rng(0).integers(3, 130, (6, TEXT), dtype=np.int32)
    plan = resolve(source, "INT8_CHANNEL", statistics_present=True, inputs=parse_static_inputs("int8_static_asym:mse"))
    ranges = static_ranges(source, plan.rows, chunks, CalibrationOptions(threads=1))
    assert {name.partition(".")[0] for name in ranges} >= {"enc", "dec"}
    made = {tensor.name: tensor for tensor, _ in quantized_tensors(source, plan, None, {}, threads=1)}

    @dataclass
    class Static:
        """The quantized model, with ranges or without."""

        has_ranges: bool
        path = source.path
        config = source.config
        architecture = source.architecture
        weight_files = ()

        def tensor(self, name: str):
            return replace(made[name], sidecars=ranges.get(name, {}) if self.has_ranges else {})

    def logits(static: Static) -> np.ndarray:
        session = EncoderDecoderSession(static, EngineOptions(threads=1, kv_format="f32"))  # type: ignore[arg-type]
        session.encode(tokens(TEXT, 1))
        return session.forward(tokens(ANSWER, 2), "all")

    theirs, static, dynamic = their_logits(model), logits(Static(True)), logits(Static(False))
    assert not np.array_equal(static, dynamic)
    for found in (static, dynamic):
        # Eight bits of weights and inputs, along every layer, of a random model.
        assert np.abs(found - theirs).mean() < 0.1 * np.abs(theirs).mean()


def test_mt5_is_a_t5_that_does_not_scale_before_its_tied_head(tmp_path: Path) -> None:
    theirs = their_logits(saved_model(Case("mt5", "mt5", {"feed_forward_proj": "gated-gelu"}), tmp_path))
    source = open_model(tmp_path)
    session = EncoderDecoderSession(source, EngineOptions(threads=1, activations="f32", kv_format="f32"))
    session.encode(tokens(TEXT, 1))
    found = session.forward(tokens(ANSWER, 2), "all")
    assert np.abs(found - theirs).max() <= 2 * bound(source.config, theirs)
    workflows.quantize(tmp_path, "F32", tmp_path / "m.gguf")
    with workflows.opened(tmp_path / "m.gguf") as written:
        assert written.config.decoder.output_scale == 1.0
