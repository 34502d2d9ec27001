# SPDX-License-Identifier: Apache-2.0
"""config.json of well-known models, as published, and what GGUF files of them are known to say."""

import math

import pytest

from lilliput.architectures import architecture_for_gguf, architecture_for_huggingface
from lilliput.architectures.architecture import Json, ModelConfig

LLAMA_3_2_1B: dict[str, Json] = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 128000,
    "eos_token_id": 128001, "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
    "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": False, "model_type": "llama",
    "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8, "pretraining_tp": 1,
    "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                     "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    "transformers_version": "4.45.0.dev0", "use_cache": True, "vocab_size": 128256,
}  # fmt: skip
SMOLLM2_135M: dict[str, Json] = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 0,
    "eos_token_id": 0, "hidden_act": "silu", "hidden_size": 576, "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536, "is_llama_config": True, "max_position_embeddings": 8192, "mlp_bias": False,
    "model_type": "llama", "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3,
    "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_interleaved": False, "rope_scaling": None, "rope_theta": 100000,
    "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 49152,
}  # fmt: skip
MISTRAL_7B_V0_1: dict[str, Json] = {
    "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
    "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 32768,
    "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "transformers_version": "4.34.0.dev0", "use_cache": True, "vocab_size": 32000,
}  # fmt: skip
MISTRAL_NEMO: dict[str, Json] = {
    "architectures": ["MistralForCausalLM"], "attention_dropout": 0.0, "head_dim": 128, "hidden_act": "silu",
    "hidden_size": 5120, "intermediate_size": 14336, "max_position_embeddings": 1024000, "model_type": "mistral",
    "num_attention_heads": 32, "num_hidden_layers": 40, "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0, "sliding_window": None, "tie_word_embeddings": False, "vocab_size": 131072,
}  # fmt: skip
QWEN2_5_0_5B: dict[str, Json] = {
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151643,
    "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02, "intermediate_size": 4864,
    "max_position_embeddings": 32768, "max_window_layers": 24, "model_type": "qwen2", "num_attention_heads": 14,
    "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "sliding_window": 32768, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_cache": True,
    "use_mrope": False, "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
QWEN3_0_6B: dict[str, Json] = {
    "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 151643,
    "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024, "initializer_range": 0.02,
    "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3",
    "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
    "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16", "use_cache": True, "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
QWEN2_5_7B_LONG: dict[str, Json] = {
    **QWEN2_5_0_5B, "hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28,
    "num_hidden_layers": 28, "num_key_value_heads": 4, "tie_word_embeddings": False, "vocab_size": 152064,
    "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"},
}  # fmt: skip


def read(config: dict[str, Json]) -> ModelConfig:
    return architecture_for_huggingface(config).config_from_huggingface(config)


def metadata(config: dict[str, Json]) -> dict[str, Json]:
    return architecture_for_huggingface(config).gguf_metadata(read(config))


def weights(config: dict[str, Json]) -> int:
    table = architecture_for_huggingface(config).tensor_table(read(config))
    return sum(math.prod(entry.shape) for entry in table if entry.tied_to is None and entry.role != "rope")


@pytest.mark.parametrize(
    ("config", "published"),
    [
        (LLAMA_3_2_1B, 1_235_814_400),
        (SMOLLM2_135M, 134_515_008),
        (MISTRAL_7B_V0_1, 7_241_732_096),
        (MISTRAL_NEMO, 12_247_782_400),
        (QWEN2_5_0_5B, 494_032_768),
        (QWEN2_5_7B_LONG, 7_615_616_512),
        (QWEN3_0_6B, 596_049_920),
    ],
)
def test_the_tensor_table_has_the_published_number_of_weights(config: dict[str, Json], published: int) -> None:
    assert weights(config) == published


def test_gguf_keys_of_llama_3_2() -> None:
    found = metadata(LLAMA_3_2_1B)
    expected = {
        "block_count": 16, "context_length": 131072, "embedding_length": 2048, "feed_forward_length": 8192,
        "attention.head_count": 32, "attention.head_count_kv": 8, "rope.freq_base": 500000.0,
        "attention.layer_norm_rms_epsilon": 1e-05, "attention.key_length": 64, "attention.value_length": 64,
        "vocab_size": 128256, "rope.dimension_count": 64,
    }  # fmt: skip
    assert found == {f"llama.{key}": value for key, value in expected.items()}


def test_gguf_keys_of_a_yarn_model_are_those_that_llama_cpp_reads() -> None:
    found = metadata(QWEN2_5_7B_LONG)
    assert found["qwen2.rope.scaling.type"] == "yarn"
    assert found["qwen2.rope.scaling.factor"] == 4.0
    assert found["qwen2.rope.scaling.original_context_length"] == 32768


def test_windows_are_read_as_their_families_mean_them() -> None:
    assert read(MISTRAL_7B_V0_1).sliding_window == 4096
    assert read(MISTRAL_NEMO).sliding_window is None
    assert read(QWEN2_5_0_5B).sliding_window is None


def test_heads_may_be_wider_than_hidden_size_over_heads() -> None:
    assert read(QWEN3_0_6B).head_dim == 128
    assert read(MISTRAL_NEMO).head_dim == 128
    assert read(SMOLLM2_135M).head_dim == 64


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_files_of_llama_cpps_converter_without_a_vocabulary_size_are_read(name: str) -> None:
    """Its qwen2 and qwen3 files have no vocab_size key; the embedding's shape tells."""
    keys: dict[str, Json] = {
        "general.architecture": name, f"{name}.block_count": 2, f"{name}.context_length": 64,
        f"{name}.embedding_length": 32, f"{name}.feed_forward_length": 64, f"{name}.attention.head_count": 4,
        f"{name}.attention.head_count_kv": 2, f"{name}.attention.layer_norm_rms_epsilon": 1e-6,
    }  # fmt: skip
    assert architecture_for_gguf(keys).config_from_gguf(keys, {"token_embd.weight": (77, 32)}).vocab_size == 77
