# SPDX-License-Identifier: Apache-2.0
"""The transformers configuration of an opened model, whatever container it came from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lilliput.architectures.architecture import Json, ModelConfig
from lilliput.architectures.program import RopeFrequencies
from lilliput.checkpoints.model_source import ModelSource
from lilliput.errors import CalibrationError

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def transformers_config(source: ModelSource) -> PretrainedConfig:
    """The folder's own config.json, or one with the same meaning for other containers.

    Raises CalibrationError where transformers cannot read it.
    """
    from transformers import AutoConfig

    if source.container != "huggingface":
        fields = huggingface_fields(source.config)
        return AutoConfig.for_model(**fields)
    try:
        settings = AutoConfig.from_pretrained(source.path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise CalibrationError(f"{source.path}: transformers cannot read config.json: {error}") from error
    # The source gives decoded float32 weights, so transformers has nothing left to decode.
    if hasattr(settings, "quantization_config"):
        del settings.quantization_config
    # A checkpoint may hold a head of its own where config.json says that it shares the embedding, and a transform may
    # give it one.
    settings.tie_word_embeddings = source.config.tied
    return settings


def huggingface_fields(config: ModelConfig) -> dict[str, Json]:
    """config.json fields with this config's arithmetic. Raises CalibrationError for what no family's class can do."""
    if config.attention_bias != config.output_bias and config.family != "qwen2":
        raise CalibrationError(
            f"{config.family}: biases on only some attention tensors have no transformers model; "
            "calibrate from the original Hugging Face folder"
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
