# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest

from lilliput.architectures import ARCHITECTURES, architecture_for_gguf, architecture_for_huggingface
from lilliput.architectures.architecture import Json, ModelConfig
from lilliput.architectures.config_fields import ConfigFields
from lilliput.architectures.rope_scaling import llama3_factors
from lilliput.architectures.sources import PermutedHeads
from lilliput.errors import UnsupportedModelError

LLAMA: dict[str, Json] = {
    "model_type": "llama",
    "vocab_size": 130,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 128,
}
GGUF: dict[str, Json] = {
    "general.architecture": "llama",
    "llama.context_length": 128,
    "llama.embedding_length": 64,
    "llama.block_count": 2,
    "llama.feed_forward_length": 96,
    "llama.attention.head_count": 4,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}
SHAPES = {"token_embd.weight": (130, 64)}


def read(**changes: Json) -> ModelConfig:
    config = {**LLAMA, **changes}
    return architecture_for_huggingface(config).config_from_huggingface(config)


def read_gguf(changes: dict[str, Json], **shapes: tuple[int, ...]) -> ModelConfig:
    metadata = {**GGUF, **changes}
    return architecture_for_gguf(metadata).config_from_gguf(metadata, {**SHAPES, **shapes})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({"num_local_experts": 8}, "num_local_experts"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_scaling": {"type": "longrope", "factor": 4.0}}, "rope_type is 'longrope'"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling: factor is missing"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "truncate": False}}, "truncate"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "full_attention"),
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear'"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"hidden_size": "64"}, "hidden_size is '64'"),
        ({"hidden_size": 66}, "head_dim is missing"),
        ({"num_key_value_heads": 3}, "num_key_value_heads is 3"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1"),
        ({"model_type": "mistral", "layer_types": ["sliding_attention", "full_attention"]}, "layer_types"),
        (
            {"model_type": "qwen2", "num_key_value_heads": 2, "rope_scaling": {
                "type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}},
            "llama3",
        ),
        ({"model_type": "smollm3", "no_rope_layers": [1, 0]}, "no_rope_layers is [1, 0]"),
        ({"model_type": "smollm3", "no_rope_layer_interval": 2}, "every 4th layer without rope"),
        ({"model_type": "smollm3", "use_sliding_window": True, "sliding_window": 8}, "use_sliding_window is true"),
        ({"model_type": "qwen3", "num_key_value_heads": 2, "layer_types": ["chunked_attention"] * 2}, "chunked"),
        ({"model_type": "qwen3", "num_key_value_heads": 2, "layer_types": ["full_attention"]}, "a list of 2"),
    ],
)  # fmt: skip
def test_what_has_no_equivalent_here_is_refused_by_name(changes: dict[str, Json], named: str) -> None:
    with pytest.raises(UnsupportedModelError) as error:
        read(**changes)
    assert named in str(error.value)
    assert str(error.value).startswith("config.json")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"llama.expert_count": 8, "llama.expert_used_count": 9}, "llama.expert_used_count is 9"),
        ({"llama.context_length": None}, "llama.context_length is missing"),
        ({"llama.attention.value_length": 8}, "llama.attention.value_length is 8"),
        ({"llama.rope.dimension_count": 8}, "llama.rope.dimension_count is 8"),
        ({"llama.rope.scaling.type": "longrope"}, "longrope"),
        ({"llama.attention.head_count": [4, 2]}, "differs between layers"),
        ({"llama.attention.sliding_window": 8, "llama.attention.sliding_window_pattern": [True]}, "one a layer"),
    ],
)
def test_gguf_metadata_that_has_no_equivalent_here_is_refused_by_name(changes: dict[str, Json], named: str) -> None:
    with pytest.raises(UnsupportedModelError) as error:
        read_gguf(changes)
    assert named in str(error.value)


def test_an_unknown_family_is_named_with_the_known_ones_and_what_still_works() -> None:
    for error_of in (
        lambda: architecture_for_huggingface({"model_type": "rwkv"}),
        lambda: architecture_for_gguf({"general.architecture": "rwkv"}),
    ):
        with pytest.raises(UnsupportedModelError, match=r"rwkv.*llama.*qwen3.*inspect"):
            error_of()
    with pytest.raises(UnsupportedModelError, match="no model_type"):
        architecture_for_huggingface({})


def test_every_model_type_leads_to_its_family() -> None:
    for architecture in ARCHITECTURES:
        for model_type in architecture.huggingface_types:
            assert architecture_for_huggingface({"model_type": model_type}) is architecture
            assert architecture_for_gguf({"general.architecture": architecture.family}).family == architecture.family


def test_presence_of_tensors_says_what_gguf_has_no_key_for() -> None:
    plain = read_gguf({})
    assert (plain.tied, plain.attention_bias, plain.rope.factors, plain.vocab_size) == (True, False, None, 130)
    full = read_gguf(
        {},
        **{
            "output.weight": (130, 64),
            "blk.0.attn_q.bias": (64,),
            "blk.0.attn_output.bias": (64,),
            "blk.0.ffn_down.bias": (64,),
            "rope_freqs.weight": (8,),
        },
    )
    assert (full.tied, full.attention_bias, full.output_bias, full.ffn_bias) == (False, True, True, True)
    assert full.rope.factors == "rope_freqs.weight"


def test_old_gguf_files_scale_rope_by_another_key() -> None:
    assert read_gguf({"llama.rope.scale_linear": 2.0}).rope.linear_factor == 2.0


def test_yarn_without_an_attention_factor_survives_float32_metadata() -> None:
    config = read(rope_scaling={"rope_type": "yarn", "factor": 3.3, "attention_factor": 0.1 * math.log(3.3) + 1})
    assert config.rope.yarn is not None
    assert config.rope.yarn.attention_factor is None
    assert config.rope.yarn.original_context == 128


def test_mistral_has_its_class_default_window_only_where_config_json_is_silent() -> None:
    assert read(model_type="mistral", num_key_value_heads=2).sliding_window == 4096
    assert read(model_type="mistral", num_key_value_heads=2, sliding_window=None).sliding_window is None
    assert read(model_type="mistral", num_key_value_heads=None).kv_heads == 4


def test_llama3_factors_are_one_for_short_and_the_factor_for_long_waves() -> None:
    llama3 = {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_context": 8192.0}
    factors = llama3_factors(500_000.0, 64, llama3)
    for index, found in enumerate(factors):
        wavelength = 2 * math.pi * 500_000.0 ** (2 * index / 64)
        if wavelength < 8192 / 4:
            expected = 1.0
        elif wavelength > 8192:
            expected = 32.0
        else:
            smooth = (8192 / wavelength - 1) / 3
            expected = 1 / ((1 - smooth) / 32 + smooth)
        # The wavelength errs by up to 8 float32 roundings, which the ramp between magnifies by up to the factor.
        assert found == pytest.approx(expected, rel=32 * 8 * 2.0**-24)
    assert (factors[0], factors[-1]) == (1.0, 32.0)


def test_llama_rows_of_q_and_k_are_paired_and_qwen_rows_are_not() -> None:
    for model_type, is_paired in (("llama", True), ("mistral", True), ("qwen2", False), ("qwen3", False)):
        config = {**LLAMA, "model_type": model_type, "num_key_value_heads": 2}
        architecture = architecture_for_huggingface(config)
        table = {e.name: e for e in architecture.tensor_table(architecture.config_from_huggingface(config))}
        assert isinstance(table["blk.1.attn_k.weight"].source, PermutedHeads) == is_paired
        assert not isinstance(table["blk.1.attn_v.weight"].source, PermutedHeads)


def test_a_tied_output_has_an_entry_that_points_to_the_embedding() -> None:
    config = read(tie_word_embeddings=True)
    table = {e.name: e for e in architecture_for_huggingface(LLAMA).tensor_table(config)}
    assert table["output.weight"].tied_to == "token_embd.weight"


def test_fields_read_whole_floats_as_integers_and_equal_lists_as_one_value() -> None:
    fields = ConfigFields({"a": 4.0, "b": [3, 3], "c": True}, "here")
    assert fields.integer("a") == 4
    assert fields.integer("b") == 3
    with pytest.raises(UnsupportedModelError, match="here: c is True"):
        fields.integer("c")
    assert np.isclose(fields.number("missing", 0.5), 0.5)
