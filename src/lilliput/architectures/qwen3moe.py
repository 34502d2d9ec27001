# SPDX-License-Identifier: Apache-2.0
"""Qwen3-MoE: Qwen3 whose ffn is a mixture of many small experts (arXiv 2505.09388).

Blocks with a plain ffn among them (`mlp_only_layers`, `decoder_sparse_step`) are refused: GGUF has no such models.
llama.cpp always makes the shares of a token's experts sum to 1, whatever the file says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lilliput.architectures import decoder, decoder_program, layout
from lilliput.architectures.architecture import Json, ModelConfig, TensorEntry
from lilliput.architectures.config_fields import ConfigFields
from lilliput.architectures.decoder import Biases, HuggingFaceDefaults
from lilliput.architectures.layout import HALVES, WITHOUT_FFN, ExpertNames, with_qk_norm
from lilliput.architectures.program import Program
from lilliput.architectures.windowed_layers import read_windowed_layers

family = "qwen3moe"
huggingface_types: tuple[str, ...] = ("qwen3_moe",)
LAYOUT = replace(
    HALVES,
    parts=with_qk_norm(WITHOUT_FFN),
    experts=ExpertNames(
        router=("mlp.gate",),
        gate="mlp.experts.{}.gate_proj",
        up="mlp.experts.{}.up_proj",
        down="mlp.experts.{}.down_proj",
    ),
)
_DEFAULTS = HuggingFaceDefaults(context_length=32_768, kv_heads=4, sliding_window=4096)
_EXPERTS = ("num_experts", "num_local_experts")


def config_from_huggingface(config: Mapping[str, Json]) -> ModelConfig:
    """Read config.json."""
    fields = ConfigFields(config, "config.json")
    if fields.value("mlp_only_layers"):
        raise fields.error("mlp_only_layers", f"is {fields.value('mlp_only_layers')!r}", "[]")
    if fields.integer("decoder_sparse_step", 1) != 1:
        raise fields.error("decoder_sparse_step", f"is {fields.value('decoder_sparse_step')!r}", "1")
    plain = decoder.without(config, *_EXPERTS)
    plain["intermediate_size"] = fields.integer("moe_intermediate_size", 768)
    has_bias = fields.boolean("attention_bias", default=False)
    biases = Biases(attention=has_bias, output=has_bias)
    model = decoder.without_rope_factors(decoder.read_huggingface(plain, family, LAYOUT, _DEFAULTS, biases))
    normalizes = fields.boolean("norm_topk_prob", default=False)
    model = decoder.with_experts(model, fields, _EXPERTS, default=(128, 8), normalizes=normalizes)
    return read_windowed_layers(model, config)


def config_from_gguf(metadata: Mapping[str, Json], shapes: Mapping[str, tuple[int, ...]]) -> ModelConfig:
    """Read `qwen3moe.*` metadata."""
    return decoder.read_gguf(metadata, family, shapes, LAYOUT)


def gguf_metadata(config: ModelConfig) -> dict[str, Json]:
    """The `qwen3moe.*` keys."""
    return decoder.gguf_metadata(config, LAYOUT)


def tensor_table(config: ModelConfig) -> tuple[TensorEntry, ...]:
    """Every tensor, in file order."""
    return layout.tensor_table(config, LAYOUT)


def program(config: ModelConfig) -> Program:
    """The forward pass."""
    return decoder_program.program(config, LAYOUT)
