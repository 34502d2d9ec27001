# SPDX-License-Identifier: Apache-2.0
"""SmolLM3: Llama in which every fourth layer does without rope (huggingface.co/blog/smollm3; NoPE: arXiv 2305.19466).

GGUF has no key for which layers those are: readers take every fourth for granted, so no other pattern is accepted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lilliput.architectures import decoder, decoder_program, layout
from lilliput.architectures.architecture import Json, ModelConfig, TensorEntry
from lilliput.architectures.config_fields import ConfigFields
from lilliput.architectures.decoder import Biases, HuggingFaceDefaults
from lilliput.architectures.layout import ADJACENT
from lilliput.architectures.program import Program

family = "smollm3"
huggingface_types: tuple[str, ...] = ("smollm3",)
# What transformers' SmolLM3Config assumes for absent fields.
_DEFAULTS = HuggingFaceDefaults(context_length=32_768, kv_heads=4, tied=True, rope_base=2_000_000.0)
INTERVAL = 4


def config_from_huggingface(config: Mapping[str, Json]) -> ModelConfig:
    """Read config.json."""
    fields = ConfigFields(config, "config.json")
    has_bias = fields.boolean("attention_bias", default=False)
    biases = Biases(has_bias, has_bias, fields.boolean("mlp_bias", default=False))
    others = decoder.without(config, "no_rope_layers", "sliding_window")
    model = _with_rope_layers(decoder.read_huggingface(others, family, ADJACENT, _DEFAULTS, biases))
    if fields.boolean("use_sliding_window", default=False) and fields.has("sliding_window"):
        raise fields.error("use_sliding_window", "is true", "false for this family")
    interval = fields.integer("no_rope_layer_interval", INTERVAL)
    given = fields.value("no_rope_layers") or [(layer + 1) % interval != 0 for layer in range(model.layers)]
    # A 1 in `no_rope_layers` means that the layer has rope.
    rotates = [bool(layer) for layer in given][: model.layers] if isinstance(given, list) else []
    if rotates != [layer in (model.rope_layers or ()) for layer in range(model.layers)]:
        raise fields.error("no_rope_layers", f"is {given!r}", f"every {INTERVAL}th layer without rope")
    return decoder.without_rope_factors(model)


def config_from_gguf(metadata: Mapping[str, Json], shapes: Mapping[str, tuple[int, ...]]) -> ModelConfig:
    """Read `smollm3.*` metadata."""
    return _with_rope_layers(decoder.read_gguf(metadata, family, shapes, ADJACENT))


def gguf_metadata(config: ModelConfig) -> dict[str, Json]:
    """The `smollm3.*` keys."""
    return decoder.gguf_metadata(config, ADJACENT)


def tensor_table(config: ModelConfig) -> tuple[TensorEntry, ...]:
    """Every tensor, in file order."""
    return layout.tensor_table(config, ADJACENT)


def program(config: ModelConfig) -> Program:
    """The forward pass."""
    return decoder_program.program(config, ADJACENT)


def _with_rope_layers(config: ModelConfig) -> ModelConfig:
    return replace(config, rope_layers=tuple(layer for layer in range(config.layers) if (layer + 1) % INTERVAL))
