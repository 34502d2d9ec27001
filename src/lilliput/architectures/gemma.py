# SPDX-License-Identifier: Apache-2.0
"""What Gemma 2 and Gemma 3 share: norms before and after each branch, scaled embeddings, windows in most layers.

Checkpoints keep norms as what is added to 1; GGUF keeps the sum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from lilliput.architectures import decoder
from lilliput.architectures.architecture import Json, ModelConfig
from lilliput.architectures.config_fields import ConfigFields
from lilliput.architectures.decoder import Biases, HuggingFaceDefaults
from lilliput.architectures.layout import STANDARD_OUTER, STANDARD_PARTS, Layout
from lilliput.architectures.windowed_layers import layers_of_kind

PARTS = {
    "attn_norm": "input_layernorm",
    **{part: STANDARD_PARTS[part] for part in ("attn_q", "attn_k", "attn_v", "attn_output")},
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    **{part: STANDARD_PARTS[part] for part in ("ffn_gate", "ffn_up", "ffn_down")},
    "post_ffw_norm": "post_feedforward_layernorm",
}
LAYOUT = Layout(
    outer=STANDARD_OUTER,
    block="model.layers.{}",
    parts=PARTS,
    rope="halves",
    norm_shift=1.0,
    embedding_scale="root_of_width",
    activations=("gelu_tanh", "gelu", "silu", "relu"),
)
# Fields that change the arithmetic and that are read here.
_READ_HERE = ("attn_logit_softcapping", "final_logit_softcapping")


def read_huggingface(
    config: Mapping[str, Json],
    family: str,
    layout: Layout,
    defaults: HuggingFaceDefaults,
    softcaps: tuple[float | None, float | None],
) -> ModelConfig:
    """Read config.json but for windows.  softcaps: of attention scores and of logits where it is silent."""
    fields = ConfigFields(config, "config.json")
    has_bias = fields.boolean("attention_bias", default=False)
    biases = Biases(attention=has_bias, output=has_bias)
    model = decoder.read_huggingface(decoder.without(config, *_READ_HERE), family, layout, defaults, biases)
    return replace(
        decoder.without_rope_factors(model),
        attention_scale=1.0 / math.sqrt(fields.number("query_pre_attn_scalar", 256.0)),
        attention_softcap=_softcap(fields, _READ_HERE[0], softcaps[0]),
        output_softcap=_softcap(fields, _READ_HERE[1], softcaps[1]),
    )


def with_windows(config: ModelConfig, source: Mapping[str, Json], every: int) -> ModelConfig:
    """Windows on the layers that config.json `source` names, or on all but every `every`th."""
    fields = ConfigFields(source, "config.json")
    windowed = layers_of_kind(fields, config.layers)
    if windowed is None:
        windowed = tuple(layer for layer in range(config.layers) if (layer + 1) % every)
    if not windowed or config.sliding_window is None:
        return replace(config, sliding_window=None, windowed_layers=None)
    return replace(config, windowed_layers=windowed)


def read_gguf(
    metadata: Mapping[str, Json], family: str, shapes: Mapping[str, tuple[int, ...]], layout: Layout, every: int
) -> ModelConfig:
    """Read `<family>.*` metadata; without a pattern all but every `every`th layer have the window, as in llama.cpp."""
    model = decoder.read_gguf(metadata, family, shapes, layout)
    if model.sliding_window is not None and model.windowed_layers is None:
        model = replace(model, windowed_layers=tuple(layer for layer in range(model.layers) if (layer + 1) % every))
    return model


def largest_model_scale(config: ModelConfig, largest_layers: int) -> float:
    """The factor on scores where GGUF has none: of the head's width, or of hidden_size / heads in the largest model."""
    width = config.hidden_size // config.heads if config.layers == largest_layers else config.head_dim
    return 1.0 / math.sqrt(width)


def _softcap(fields: ConfigFields, name: str, default: float | None) -> float | None:
    if fields.has(name):
        return fields.number(name)
    return None if fields.is_written(name) else default
