# SPDX-License-Identifier: Apache-2.0
"""Granite 3: Llama whose embeddings, branches, scores and logits are multiplied by numbers of its config (IBM 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lilliput.architectures import decoder, decoder_program, layout
from lilliput.architectures.architecture import Json, ModelConfig, TensorEntry
from lilliput.architectures.config_fields import ConfigFields
from lilliput.architectures.decoder import Biases, HuggingFaceDefaults
from lilliput.architectures.layout import ADJACENT
from lilliput.architectures.program import Program

family = "granite"
huggingface_types: tuple[str, ...] = ("granite",)
LAYOUT = ADJACENT
_DEFAULTS = HuggingFaceDefaults(context_length=2048)
_READ_HERE = ("attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling")


def config_from_huggingface(config: Mapping[str, Json]) -> ModelConfig:
    """Read config.json."""
    fields = ConfigFields(config, "config.json")
    has_bias = fields.boolean("attention_bias", default=False)
    biases = Biases(has_bias, has_bias, fields.boolean("mlp_bias", default=False))
    model = decoder.read_huggingface(decoder.without(config, *_READ_HERE), family, LAYOUT, _DEFAULTS, biases)
    return replace(
        decoder.without_rope_factors(model),
        attention_scale=fields.number("attention_multiplier", 1.0),
        embedding_scale=fields.number("embedding_multiplier", 1.0),
        branch_scale=fields.number("residual_multiplier", 1.0),
        logit_divisor=fields.number("logits_scaling", 1.0),
    )


def config_from_gguf(metadata: Mapping[str, Json], shapes: Mapping[str, tuple[int, ...]]) -> ModelConfig:
    """Read `granite.*` metadata; a factor of 0 means none to llama.cpp."""
    fields = ConfigFields(metadata, "GGUF metadata", "granite.")
    return replace(
        decoder.read_gguf(metadata, family, shapes, LAYOUT),
        embedding_scale=_factor(fields, "embedding_scale"),
        branch_scale=_factor(fields, "residual_scale"),
        logit_divisor=fields.number("logit_scale"),
    )


def gguf_metadata(config: ModelConfig) -> dict[str, Json]:
    """The `granite.*` keys."""
    return decoder.gguf_metadata(config, LAYOUT) | {
        "granite.embedding_scale": config.embedding_scale,
        "granite.residual_scale": config.branch_scale,
        "granite.logit_scale": config.logit_divisor,
    }


def tensor_table(config: ModelConfig) -> tuple[TensorEntry, ...]:
    """Every tensor, in file order."""
    return layout.tensor_table(config, LAYOUT)


def program(config: ModelConfig) -> Program:
    """The forward pass."""
    return decoder_program.program(config, LAYOUT)


def _factor(fields: ConfigFields, name: str) -> float:
    return fields.number(name) if fields.value(name) else 1.0
