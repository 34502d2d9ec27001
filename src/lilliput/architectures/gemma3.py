# SPDX-License-Identifier: Apache-2.0
"""Gemma 3, text: norms over heads instead of soft caps, five windowed layers to one, each kind with its own rope.

arXiv 2503.19786. Models with images keep their text model inside another config and are refused by their model_type.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lilliput.architectures import decoder, decoder_program, gemma, layout
from lilliput.architectures.architecture import Json, ModelConfig, TensorEntry
from lilliput.architectures.config_fields import ConfigFields
from lilliput.architectures.decoder import HuggingFaceDefaults
from lilliput.architectures.layout import with_qk_norm
from lilliput.architectures.program import Program, RopeFrequencies

family = "gemma3"
huggingface_types: tuple[str, ...] = ("gemma3_text",)
LAYOUT = replace(gemma.LAYOUT, parts=with_qk_norm(gemma.PARTS))
# What transformers' Gemma3TextConfig assumes for absent fields.
_DEFAULTS = HuggingFaceDefaults(
    context_length=131_072,
    kv_heads=4,
    head_dim=256,
    sliding_window=4096,
    tied=True,
    rope_base=1_000_000.0,
    activation="gelu_pytorch_tanh",
    activation_field="hidden_activation",
)
_WINDOW_BASE = 10_000.0
_EVERY = 6
_LARGEST_LAYERS = 62


def config_from_huggingface(config: Mapping[str, Json]) -> ModelConfig:
    """Read config.json, whose rope may be split by kind of layer (transformers 5) or be two plain fields."""
    fields = ConfigFields(config, "config.json")
    if fields.has("attn_logit_softcapping"):
        # transformers keeps the field and does not look at it.
        raise fields.error("attn_logit_softcapping", f"is {fields.value('attn_logit_softcapping')!r}", "null")
    plain, window_base = _split_rope(fields, config)
    model = gemma.read_huggingface(plain, family, LAYOUT, _DEFAULTS, (None, None))
    model = gemma.with_windows(model, config, fields.integer("sliding_window_pattern", _EVERY))
    window_rope = RopeFrequencies(window_base, model.head_dim)
    return replace(model, window_rope=window_rope if model.sliding_window is not None else None)


def config_from_gguf(metadata: Mapping[str, Json], shapes: Mapping[str, tuple[int, ...]]) -> ModelConfig:
    """Read `gemma3.*` metadata."""
    fields = ConfigFields(metadata, "GGUF metadata", "gemma3.")
    model = gemma.read_gguf(metadata, family, shapes, LAYOUT, _EVERY)
    if model.attention_scale is None:
        model = replace(model, attention_scale=gemma.largest_model_scale(model, _LARGEST_LAYERS))
    window_rope = RopeFrequencies(fields.number("rope.freq_base_swa", _WINDOW_BASE), model.head_dim)
    return replace(model, window_rope=window_rope if model.sliding_window is not None else None)


def gguf_metadata(config: ModelConfig) -> dict[str, Json]:
    """The `gemma3.*` keys."""
    own: dict[str, Json] = {}
    if config.window_rope is not None:
        own["gemma3.rope.freq_base_swa"] = config.window_rope.base
    return decoder.gguf_metadata(config, LAYOUT) | own


def tensor_table(config: ModelConfig) -> tuple[TensorEntry, ...]:
    """Every tensor, in file order."""
    return layout.tensor_table(config, LAYOUT)


def program(config: ModelConfig) -> Program:
    """The forward pass."""
    return decoder_program.program(config, LAYOUT)


def _split_rope(fields: ConfigFields, config: Mapping[str, Json]) -> tuple[dict[str, Json], float]:
    """config.json with the rope of full layers alone, and the base of windowed ones."""
    others = decoder.without(config, "rope_parameters", "rope_local_base_freq")
    parameters = fields.section("rope_parameters")
    base = fields.number("rope_local_base_freq", _WINDOW_BASE)
    if parameters is None:
        return others, base
    windowed = parameters.section("sliding_attention")
    if windowed is not None:
        if windowed.text("rope_type", "default") != "default":
            raise windowed.error("rope_type", f"is {windowed.value('rope_type')!r}", "default")
        base = windowed.number("rope_theta", base)
    full = parameters.value("full_attention")
    return others | {"rope_parameters": full}, base
