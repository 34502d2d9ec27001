# SPDX-License-Identifier: Apache-2.0
"""StarCoder 2: layer norms, an ungated ffn, biases everywhere, a sliding window (arXiv 2402.19173).

llama.cpp ignores the window.
"""

from __future__ import annotations

from collections.abc import Mapping

from lilliput.architectures import decoder, decoder_program, layout
from lilliput.architectures.architecture import Json, ModelConfig, TensorEntry
from lilliput.architectures.config_fields import ConfigFields
from lilliput.architectures.decoder import EVERYWHERE, Biases, HuggingFaceDefaults
from lilliput.architectures.layout import STANDARD_OUTER, WITHOUT_FFN, Layout
from lilliput.architectures.program import Program

family = "starcoder2"
huggingface_types: tuple[str, ...] = ("starcoder2",)
LAYOUT = Layout(
    outer=STANDARD_OUTER,
    block="model.layers.{}",
    parts={**WITHOUT_FFN, "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"},
    norm="layer",
    rope="halves",
    activations=("gelu_tanh", "gelu", "relu", "silu"),
)
# What transformers' Starcoder2Config assumes for absent fields.
_DEFAULTS = HuggingFaceDefaults(
    context_length=4096,
    kv_heads=2,
    tied=True,
    activation="gelu_pytorch_tanh",
    epsilon=1e-5,
    epsilon_field="norm_epsilon",
)


def config_from_huggingface(config: Mapping[str, Json]) -> ModelConfig:
    """Read config.json."""
    has_bias = ConfigFields(config, "config.json").boolean("use_bias", default=True)
    biases = EVERYWHERE if has_bias else Biases()
    return decoder.without_rope_factors(decoder.read_huggingface(config, family, LAYOUT, _DEFAULTS, biases))


def config_from_gguf(metadata: Mapping[str, Json], shapes: Mapping[str, tuple[int, ...]]) -> ModelConfig:
    """Read `starcoder2.*` metadata."""
    return decoder.read_gguf(metadata, family, shapes, LAYOUT)


def gguf_metadata(config: ModelConfig) -> dict[str, Json]:
    """The `starcoder2.*` keys."""
    return decoder.gguf_metadata(config, LAYOUT)


def tensor_table(config: ModelConfig) -> tuple[TensorEntry, ...]:
    """Every tensor, in file order."""
    return layout.tensor_table(config, LAYOUT)


def program(config: ModelConfig) -> Program:
    """The forward pass."""
    return decoder_program.program(config, LAYOUT)
