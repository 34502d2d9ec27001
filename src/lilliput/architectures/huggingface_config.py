# SPDX-License-Identifier: Apache-2.0
"""config.json of a model that came without one, for readers that want it."""

from __future__ import annotations

from lilliput.architectures.architecture import Json, ModelConfig
from lilliput.architectures.program import RopeFrequencies
from lilliput.errors import UnsupportedModelError

_FAMILIES = ("llama", "qwen2", "qwen3", "smollm3")


def huggingface_fields(config: ModelConfig) -> dict[str, Json]:
    """config.json fields of the same arithmetic. Raises UnsupportedModelError for what no class can do."""
    if config.family not in _FAMILIES:
        raise UnsupportedModelError(
            f"{config.family}: no config.json can be rebuilt for this family yet; take the original Hugging Face folder"
        )
    if config.attention_bias != config.output_bias and config.family != "qwen2":
        raise UnsupportedModelError(
            f"{config.family}: biases on only some attention tensors have no transformers model; "
            "take the original Hugging Face folder"
        )
    fields: dict[str, Json] = {
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ffn_size,
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tied,
        "pad_token_id": None,
        "rope_parameters": _rope_parameters(config.rope),
    }
    if config.family == "llama" and config.sliding_window is not None:
        return fields | {"model_type": "mistral", "sliding_window": config.sliding_window}
    if config.family in ("llama", "smollm3"):
        return fields | {"attention_bias": config.attention_bias, "mlp_bias": config.ffn_bias}
    windowed = range(config.layers) if config.windowed_layers is None else config.windowed_layers
    kinds: list[Json] = ["full_attention"] * config.layers
    if config.sliding_window is not None:
        for layer in windowed:
            kinds[layer] = "sliding_attention"
    fields |= {
        "use_sliding_window": config.sliding_window is not None,
        "sliding_window": config.sliding_window,
        "layer_types": kinds,
    }
    return fields if config.family == "qwen2" else fields | {"attention_bias": config.attention_bias}


def _rope_parameters(rope: RopeFrequencies) -> dict[str, Json]:
    """The `rope_parameters` field; divisors that came as a tensor are applied to the built model instead."""
    fields: dict[str, Json] = {"rope_type": "default", "rope_theta": rope.base}
    if rope.linear_factor != 1.0:
        fields |= {"rope_type": "linear", "factor": rope.linear_factor}
    if rope.yarn is not None:
        fields |= {
            "rope_type": "yarn",
            "factor": rope.yarn.factor,
            "original_max_position_embeddings": rope.yarn.original_context,
            "beta_fast": rope.yarn.beta_fast,
            "beta_slow": rope.yarn.beta_slow,
        }
        if rope.yarn.attention_factor is not None:
            fields["attention_factor"] = rope.yarn.attention_factor
    return fields
