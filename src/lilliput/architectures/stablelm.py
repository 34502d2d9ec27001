# SPDX-License-Identifier: Apache-2.0
"""StableLM 1 and 2: Llama with layer norms, of which a quarter of each head rotates (arXiv 2402.17834).

Where attention and ffn read the stream side by side, one norm serves both. Norms over heads (the 12B model's) are
refused: each head there has weights of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lilliput.architectures import decoder, decoder_program, layout
from lilliput.architectures.architecture import Json, ModelConfig, TensorEntry
from lilliput.architectures.config_fields import ConfigFields
from lilliput.architectures.decoder import Biases, HuggingFaceDefaults
from lilliput.architectures.layout import HALVES, STANDARD_PARTS, Layout
from lilliput.architectures.program import Program

family = "stablelm"
huggingface_types: tuple[str, ...] = ("stablelm",)
LAYOUT = replace(HALVES, norm="layer", rotates_whole_heads=False, activations=("silu", "gelu", "gelu_tanh", "relu"))
_SIDE_BY_SIDE = replace(LAYOUT, parts={part: name for part, name in STANDARD_PARTS.items() if part != "ffn_norm"})
# What transformers' StableLmConfig assumes for absent fields.
_DEFAULTS = HuggingFaceDefaults(
    context_length=4096, kv_heads=32, rotary_share=0.25, epsilon=1e-5, epsilon_field="layer_norm_eps"
)


def config_from_huggingface(config: Mapping[str, Json]) -> ModelConfig:
    """Read config.json."""
    fields = ConfigFields(config, "config.json")
    biases = Biases(attention=fields.boolean("use_qkv_bias", default=False))
    model = decoder.without_rope_factors(decoder.read_huggingface(config, family, LAYOUT, _DEFAULTS, biases))
    is_parallel = fields.boolean("use_parallel_residual", default=False)
    return replace(model, residual="parallel" if is_parallel else "sequential")


def config_from_gguf(metadata: Mapping[str, Json], shapes: Mapping[str, tuple[int, ...]]) -> ModelConfig:
    """Read `stablelm.*` metadata; llama.cpp too tells the residual by the norm that is there."""
    if "blk.0.attn_q_norm.weight" in shapes:
        fields = ConfigFields(metadata, "GGUF metadata", "stablelm.")
        raise fields.error("attn_q_norm", "is a tensor of the file", "files without norms over heads")
    model = decoder.read_gguf(metadata, family, shapes, LAYOUT)
    return replace(model, residual="sequential" if "blk.0.ffn_norm.weight" in shapes else "parallel")


def gguf_metadata(config: ModelConfig) -> dict[str, Json]:
    """The `stablelm.*` keys."""
    own: dict[str, Json] = {"stablelm.use_parallel_residual": config.residual == "parallel"}
    return decoder.gguf_metadata(config, LAYOUT) | own


def tensor_table(config: ModelConfig) -> tuple[TensorEntry, ...]:
    """Every tensor, in file order."""
    return layout.tensor_table(config, _layout(config))


def program(config: ModelConfig) -> Program:
    """The forward pass."""
    return decoder_program.program(config, _layout(config))


def _layout(config: ModelConfig) -> Layout:
    return _SIDE_BY_SIDE if config.residual == "parallel" else LAYOUT
