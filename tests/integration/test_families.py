# SPDX-License-Identifier: Apache-2.0
"""Each family's tensor table and program against the model's own transformers code, branch by branch.

Twice: by the reference interpreter in float64, which says what a program means, and by the engine.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields, replace

import numpy as np
import pytest
from numpy.typing import NDArray
from reference_program import ProgramSource, float_tensor, run_program

from lilliput.architectures import architecture_for_gguf, architecture_for_huggingface
from lilliput.architectures.architecture import Json, ModelConfig, TensorEntry
from lilliput.architectures.program import Attention, Linear, RopeFrequencies, SelectOutputRows
from lilliput.architectures.program_blocks import named_tensors
from lilliput.architectures.sources import Computed, arranged, chosen_source
from lilliput.records import QuantizedTensor
from lilliput.runtime.session import EngineOptions, Session

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOKENS = 40
# Half the distance between neighbouring float32 numbers near 1.
ROUNDING = 2.0**-24
SIZES: dict[str, Json] = {
    "vocab_size": 130,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.08,
    "rope_theta": 10_000.0,
}
YARN: dict[str, Json] = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3: dict[str, Json] = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@dataclass(frozen=True)
class Case:
    """fields: config.json beyond SIZES.  ignored: changes to the ModelConfig that undo what the case is about."""

    name: str
    model_type: str
    fields: dict[str, Json] = field(default_factory=dict)
    ignored: dict[str, object] = field(default_factory=dict)


PLAIN_ROPE = {"rope": RopeFrequencies(10_000.0, 16), "rope_llama3": None}
NO_BIAS = {"attention_bias": False, "output_bias": False, "ffn_bias": False}
GPT2: dict[str, Json] = {"n_inner": None}
OPT: dict[str, Json] = {"ffn_dim": 96, "init_std": 0.08}
PHI3: dict[str, Json] = {"pad_token_id": None, "original_max_position_embeddings": 256}
GEMMA3: dict[str, Json] = {
    "head_dim": 16, "sliding_window": 8, "sliding_window_pattern": 2, "rope_theta": 1e6, "rope_local_base_freq": 100.0,
}  # fmt: skip
MIXTURE: dict[str, Json] = {
    "head_dim": 16, "num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48,
}  # fmt: skip
GRANITE: dict[str, Json] = {
    "embedding_multiplier": 12.0, "attention_multiplier": 0.5, "residual_multiplier": 0.22, "logits_scaling": 8.0,
}  # fmt: skip
GEMMA_FREE: dict[str, object] = {"attention_softcap": None, "output_softcap": None}
CASES = [
    Case("llama", "llama"),
    Case("llama-all-heads", "llama", {"num_key_value_heads": None}),
    Case("llama-tied", "llama", {"tie_word_embeddings": True}),
    Case("llama-attention-bias", "llama", {"attention_bias": True}, NO_BIAS),
    Case("llama-mlp-bias", "llama", {"mlp_bias": True}, NO_BIAS),
    Case("llama-wide-heads", "llama", {"head_dim": 32, "num_attention_heads": 4}),
    Case("llama-window-ignored", "llama", {"sliding_window": 8}),
    Case("llama-theta", "llama", {"rope_theta": 500_000.0}, PLAIN_ROPE),
    Case("llama-linear", "llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0}}, PLAIN_ROPE),
    Case("llama-linear-old", "llama", {"rope_scaling": {"type": "linear", "factor": 4.0}}, PLAIN_ROPE),
    Case("llama-llama3", "llama", {"rope_scaling": LLAMA3}, PLAIN_ROPE),
    Case("llama-llama3-new", "llama", {"rope_parameters": {**LLAMA3, "rope_theta": 500_000.0}}, PLAIN_ROPE),
    Case("llama-yarn", "llama", {"rope_parameters": YARN}, PLAIN_ROPE),
    Case("llama-yarn-attention-factor", "llama", {"rope_scaling": {**YARN, "attention_factor": 0.7}}, PLAIN_ROPE),
    Case("llama-yarn-mscale", "llama", {"rope_scaling": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.3}}, PLAIN_ROPE),
    Case("llama-yarn-betas", "llama", {"rope_scaling": {**YARN, "beta_fast": 4, "beta_slow": 2}}, PLAIN_ROPE),
    Case("llama-dynamic", "llama", {"rope_scaling": {"type": "dynamic", "factor": 4.0}}),
    Case("llama-epsilon", "llama", {"rms_norm_eps": 0.05}, {"norm_epsilon": 1e-6}),
    Case("mistral", "mistral", {"sliding_window": None}),
    Case("mistral-window", "mistral", {"sliding_window": 8}, {"sliding_window": None}),
    Case("mistral-wide-heads", "mistral", {"head_dim": 32, "sliding_window": None}),
    Case("smollm3", "smollm3", {"num_hidden_layers": 5, "pad_token_id": None}, {"rope_layers": None}),
    Case("smollm3-untied-yarn", "smollm3", {"pad_token_id": None, "tie_word_embeddings": False, "rope_scaling": YARN}),
    Case("qwen2", "qwen2", {}, NO_BIAS),
    Case("qwen2-tied", "qwen2", {"tie_word_embeddings": True}, NO_BIAS),
    Case("qwen2-yarn", "qwen2", {"rope_scaling": YARN}, PLAIN_ROPE),
    Case(
        "qwen2-window",
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
        {"windowed_layers": None},
    ),
    Case("qwen2-window-off", "qwen2", {"use_sliding_window": False, "sliding_window": 8, "max_window_layers": 1}),
    Case("qwen3", "qwen3", {"head_dim": 16}),
    Case("qwen3-wide-heads", "qwen3", {"head_dim": 32}),
    Case("qwen3-attention-bias", "qwen3", {"head_dim": 16, "attention_bias": True}, NO_BIAS),
    Case("qwen3-linear", "qwen3", {"head_dim": 16, "rope_scaling": {"type": "linear", "factor": 2.0}}, PLAIN_ROPE),
    Case(
        "qwen3-layer-types",
        "qwen3",
        {
            "head_dim": 16,
            "use_sliding_window": True,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
        {"sliding_window": None},
    ),
    Case("gpt2", "gpt2", GPT2, {"activation": "relu"}),
    Case("gpt2-ffn", "gpt2", {**GPT2, "n_inner": 96, "activation_function": "gelu"}, {"activation": "relu"}),
    Case("gpt2-unscaled", "gpt2", {**GPT2, "scale_attn_weights": False}, {"attention_scale": None}),
    Case(
        "gpt2-by-layer",
        "gpt2",
        {**GPT2, "scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True, "initializer_range": 0.3},
        {"divides_scores_by_layer": False},
    ),
    Case("gpt2-untied", "gpt2", {**GPT2, "tie_word_embeddings": False}),
    Case("opt", "opt", OPT, {"activation": "gelu"}),
    Case("opt-norm-after", "opt", {**OPT, "do_layer_norm_before": False}, {"residual": "sequential"}),
    Case("opt-projected", "opt", {**OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 32}),
    Case("opt-no-last-norm", "opt", {**OPT, "_remove_final_layer_norm": True}),
    Case("opt-no-bias", "opt", {**OPT, "enable_bias": False, "activation_function": "gelu"}),
    Case("gptneox", "gpt_neox", {}, {"residual": "sequential"}),
    Case("gptneox-sequential", "gpt_neox", {"use_parallel_residual": False}, {"residual": "parallel"}),
    Case("gptneox-rotary", "gpt_neox", {"rotary_pct": 0.5, "rotary_emb_base": 500.0}, PLAIN_ROPE),
    Case("gptneox-whole", "gpt_neox", {"rotary_pct": 1.0, "attention_bias": False}, {"ffn_bias": False}),
    Case("gptneox-tanh", "gpt_neox", {"hidden_act": "gelu_new", "tie_word_embeddings": True}, {"activation": "relu"}),
    Case("phi", "phi", {"num_key_value_heads": None}, {"activation": "relu"}),
    Case("phi-grouped", "phi", {"num_key_value_heads": 2, "partial_rotary_factor": 0.25}, PLAIN_ROPE),
    Case("phi3", "phi3", PHI3),
    Case("phi3-window", "phi3", {**PHI3, "sliding_window": 8, "tie_word_embeddings": True}, {"sliding_window": None}),
    Case("phi3-rotary", "phi3", {**PHI3, "partial_rotary_factor": 0.75}, PLAIN_ROPE),
    Case("gemma2", "gemma2", {"head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 8}, GEMMA_FREE),
    Case("gemma2-window", "gemma2", {"head_dim": 32, "sliding_window": 8}, {"sliding_window": None}),
    Case(
        "gemma2-uncapped",
        "gemma2",
        {"head_dim": 16, "attn_logit_softcapping": None, "final_logit_softcapping": None},
    ),
    Case("gemma2-cap", "gemma2", {"head_dim": 16, "attn_logit_softcapping": 1.0}, {"attention_softcap": 50.0}),
    Case("gemma3", "gemma3_text", GEMMA3, {"window_rope": None}),
    Case("gemma3-cap", "gemma3_text", {**GEMMA3, "final_logit_softcapping": 2.0}, {"output_softcap": None}),
    Case("gemma3-scale", "gemma3_text", {**GEMMA3, "query_pre_attn_scalar": 16}, {"attention_scale": 1.0}),
    Case(
        "gemma3-new",
        "gemma3_text",
        {
            **GEMMA3,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            },
        },
        {"sliding_window": None},
    ),
    Case("gemma1", "gemma", {"head_dim": 32}, {"activation": "relu"}),
    Case("gemma1-old", "gemma", {"head_dim": 16, "hidden_act": "gelu", "attention_bias": True}, NO_BIAS),
    Case("granite", "granite", GRANITE, {"branch_scale": 1.0}),
    Case("granite-embedding", "granite", GRANITE, {"embedding_scale": 1.0}),
    Case("granite-logits", "granite", GRANITE, {"logit_divisor": 1.0}),
    Case("granite-scores", "granite", {**GRANITE, "tie_word_embeddings": True}, {"attention_scale": None}),
    Case("granite-bias", "granite", {"attention_bias": True, "mlp_bias": True}, NO_BIAS),
    Case("olmo2", "olmo2"),
    Case("olmo2-bias", "olmo2", {"attention_bias": True, "num_key_value_heads": None}, NO_BIAS),
    Case("stablelm", "stablelm", {}, {"residual": "parallel"}),
    Case("stablelm-parallel", "stablelm", {"use_parallel_residual": True, "use_qkv_bias": True}, NO_BIAS),
    Case("stablelm-rotary", "stablelm", {"partial_rotary_factor": 0.5}, PLAIN_ROPE),
    Case("starcoder2", "starcoder2", {"tie_word_embeddings": False}, {"activation": "relu"}),
    Case("starcoder2-window", "starcoder2", {"sliding_window": 8}, {"sliding_window": None}),
    Case("starcoder2-no-bias", "starcoder2", {"use_bias": False, "hidden_act": "gelu"}),
    Case("gptj", "gptj", {"rotary_dim": 8, "n_inner": 96}, {"activation": "relu"}),
    Case("gptj-whole", "gptj", {"rotary_dim": 16, "n_inner": None}, {"residual": "sequential"}),
    Case("olmoe", "olmoe", MIXTURE, {"normalizes_experts": True}),
    Case("olmoe-shares", "olmoe", {**MIXTURE, "norm_topk_prob": True}, {"normalizes_experts": False}),
    Case("mixtral", "mixtral", MIXTURE, {"used_experts": 1}),
    Case("mixtral-window", "mixtral", {**MIXTURE, "sliding_window": 8}, {"sliding_window": None}),
    Case("qwen3moe", "qwen3_moe", {**MIXTURE, "norm_topk_prob": True}, {"normalizes_experts": False}),
    Case("qwen3moe-shares", "qwen3_moe", {**MIXTURE, "attention_bias": True}, {"normalizes_experts": True}),
    Case("gemma3-bias", "gemma3_text", {**GEMMA3, "attention_bias": True, "tie_word_embeddings": False}, NO_BIAS),
]


@dataclass(frozen=True)
class Theirs:
    """What transformers made of a case."""

    config: dict[str, Json]
    checkpoint: dict[str, NDArray[np.float32]]
    tokens: list[int]
    logits: NDArray[np.float64]


def transformers_model(case: Case) -> Theirs:
    """A random float32 model, biases and norms included, and its logits."""
    config = {**SIZES, **case.fields, "model_type": case.model_type}
    torch.manual_seed(11)
    settings = transformers.AutoConfig.for_model(**json.loads(json.dumps(config)))
    settings._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(settings, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.copy_(0.5 + torch.rand(parameter.shape))
        tokens = torch.randint(0, int(str(config["vocab_size"])), (1, TOKENS))
        logits = model(tokens).logits[0].numpy().astype(np.float64)
    checkpoint = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    return Theirs(config, checkpoint, tokens[0].tolist(), logits)


def bound(config: ModelConfig, logits: NDArray[np.float64]) -> float:
    """How far their float32 logits may be from ours in float64.

    A float32 dot product of n terms errs by at most n roundings of the sum of its terms' magnitudes. Along the longest
    chain of one logit these add: five dot products a layer, the attention's sum over tokens, the head. The terms'
    magnitudes exceed the sum by about sqrt(n) and the roundings' random signs take about sqrt(n) back.
    """
    widths = 2 * config.hidden_size + config.head_dim + TOKENS + config.heads * config.head_dim + config.ffn_size
    terms = config.layers * widths + config.hidden_size
    return terms * ROUNDING * float(np.abs(logits).max())


def canonical_tensors(
    table: tuple[TensorEntry, ...], checkpoint: dict[str, NDArray[np.float32]]
) -> dict[str, QuantizedTensor]:
    """The tensors of a table, made from a Hugging Face checkpoint by its source expressions."""
    tensors = {}
    for entry in table:
        if entry.tied_to is None:
            source = chosen_source(entry.source, checkpoint)
            computed = isinstance(source, Computed)
            values = np.array(source.values, np.float32) if computed else arranged(source, checkpoint.__getitem__)
            assert values.shape == entry.shape, entry.name
            tensors[entry.name] = float_tensor(entry.name, values)
    return tensors


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_logits_of_our_program_are_those_of_transformers(case: Case) -> None:
    theirs = transformers_model(case)
    architecture = architecture_for_huggingface(theirs.config)
    config = architecture.config_from_huggingface(theirs.config)
    tensors = canonical_tensors(architecture.tensor_table(config), theirs.checkpoint)
    limit = bound(config, theirs.logits)

    def reference(config: ModelConfig) -> NDArray[np.float64]:
        return run_program(ProgramSource(architecture.program(config), tensors), theirs.tokens, range(TOKENS))

    assert np.abs(reference(config) - theirs.logits).max() <= limit
    if case.ignored:
        without = replace(config, **case.ignored)  # type: ignore[arg-type]
        assert np.abs(reference(without) - theirs.logits).max() > 20 * limit
    source = ProgramSource(architecture.program(config), tensors, context_length=64)
    session = Session(source, EngineOptions(threads=1, activations="f32", kv_format="f32"))  # type: ignore[arg-type]
    # Two passes, so that the second reads its window and positions from the cache.
    split = TOKENS // 3
    engine = np.concatenate(
        [session.forward(theirs.tokens[:split], "all"), session.forward(theirs.tokens[split:], "all")]
    )
    assert np.abs(engine - theirs.logits).max() <= 2 * limit
    session.truncate(0)
    assert np.abs(session.forward(theirs.tokens) - theirs.logits[-1:]).max() <= 2 * limit


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_rows_that_nobody_asked_for_end_with_the_last_attention(case: Case) -> None:
    source = {**SIZES, **case.fields, "model_type": case.model_type}
    architecture = architecture_for_huggingface(source)
    program = architecture.program(architecture.config_from_huggingface(source))
    place = max(index for index, each in enumerate(program.operations) if isinstance(each, Attention))
    selected: set[str] = set()
    for operation in program.operations[place + 1 :]:
        words = {part.name: getattr(operation, part.name) for part in fields(operation)}
        read = {word for name, word in words.items() if name != "out" and word in program.buffers}
        assert isinstance(operation, SelectOutputRows) or read <= selected
        selected.add(words.get("out", words.get("x")))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_gguf_metadata_gives_the_same_program_back(case: Case) -> None:
    source = {**SIZES, **case.fields, "model_type": case.model_type}
    architecture = architecture_for_huggingface(source)
    config = architecture.config_from_huggingface(source)
    table = architecture.tensor_table(config)
    shapes = {entry.name: entry.shape for entry in table if entry.tied_to is None}
    metadata = {**architecture.gguf_metadata(config), "general.architecture": config.family}
    reopened = architecture_for_gguf(metadata)
    again = reopened.config_from_gguf(metadata, shapes)
    assert reopened.program(again) == architecture.program(config)
    assert [(e.name, e.shape, e.tied_to) for e in reopened.tensor_table(again)] == [
        (e.name, e.shape, e.tied_to) for e in table
    ]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_tensor_that_the_program_names_is_in_the_table(case: Case) -> None:
    source = {**SIZES, **case.fields, "model_type": case.model_type}
    architecture = architecture_for_huggingface(source)
    config = architecture.config_from_huggingface(source)
    shapes = {entry.name: entry.shape for entry in architecture.tensor_table(config) if entry.tied_to is None}
    program = architecture.program(config)
    named = {*named_tensors(program.operations), None}
    named.add(config.rope.factors if config.rope is not None else None)
    assert named - {None} == set(shapes)
    for operation in program.operations:
        if isinstance(operation, Linear):
            rows, columns = shapes[operation.weight]
            start, end = operation.rows or (0, rows)
            assert (end - start, columns) == (program.buffers[operation.out], program.buffers[operation.x])
