# SPDX-License-Identifier: Apache-2.0
"""OLMo 2: norms after each branch alone, and one over the whole of q and of k (arXiv 2501.00656)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lilliput.architectures import decoder, decoder_program, layout
from lilliput.architectures.architecture import Json, ModelConfig, TensorEntry
from lilliput.architectures.config_fields import ConfigFields
from lilliput.architectures.decoder import Biases, HuggingFaceDefaults
from lilliput.architectures.layout import HALVES, STANDARD_PARTS, with_qk_norm
from lilliput.architectures.program import Program

family = "olmo2"
huggingface_types: tuple[str, ...] = ("olmo2",)
_PARTS = {
    **{part: STANDARD_PARTS[part] for part in ("attn_q", "attn_k", "attn_v", "attn_output")},
    "post_attention_norm": "post_attention_layernorm",
    **{part: STANDARD_PARTS[part] for part in ("ffn_gate", "ffn_up", "ffn_down")},
    "post_ffw_norm": "post_feedforward_layernorm",
}
LAYOUT = replace(HALVES, parts=with_qk_norm(_PARTS), norms_whole_projections=True)
# What transformers' Olmo2Config assumes for absent fields.
_DEFAULTS = HuggingFaceDefaults(context_length=2048, epsilon=1e-5)


def config_from_huggingface(config: Mapping[str, Json]) -> ModelConfig:
    """Read config.json."""
    has_bias = ConfigFields(config, "config.json").boolean("attention_bias", default=False)
    biases = Biases(attention=has_bias, output=has_bias)
    return decoder.without_rope_factors(decoder.read_huggingface(config, family, LAYOUT, _DEFAULTS, biases))


def config_from_gguf(metadata: Mapping[str, Json], shapes: Mapping[str, tuple[int, ...]]) -> ModelConfig:
    """Read `olmo2.*` metadata."""
    return decoder.read_gguf(metadata, family, shapes, LAYOUT)


def gguf_metadata(config: ModelConfig) -> dict[str, Json]:
    """The `olmo2.*` keys."""
    return decoder.gguf_metadata(config, LAYOUT)


def tensor_table(config: ModelConfig) -> tuple[TensorEntry, ...]:
    """Every tensor, in file order."""
    return layout.tensor_table(config, LAYOUT)


def program(config: ModelConfig) -> Program:
    """The forward pass."""
    return decoder_program.program(config, LAYOUT)
