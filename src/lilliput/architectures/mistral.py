# SPDX-License-Identifier: Apache-2.0
"""Mistral: Llama with a sliding window in its first versions (arXiv 2310.06825).

GGUF knows it as `llama`, so `family` is that, and a GGUF file of it opens as Llama. llama.cpp attends to the whole
context; the window is written under the key other families use, and our engine keeps to it.
"""

from __future__ import annotations

from collections.abc import Mapping

from lilliput.architectures import decoder, llama
from lilliput.architectures.architecture import Json, ModelConfig, TensorEntry
from lilliput.architectures.config_fields import ConfigFields
from lilliput.architectures.decoder import Biases, HuggingFaceDefaults
from lilliput.architectures.layout import ADJACENT
from lilliput.architectures.program import Program

family = llama.family
huggingface_types: tuple[str, ...] = ("mistral",)
# What transformers' MistralConfig assumes for absent fields.
_DEFAULTS = HuggingFaceDefaults(context_length=131_072, kv_heads=8, sliding_window=4096)


def config_from_huggingface(config: Mapping[str, Json]) -> ModelConfig:
    """Read config.json."""
    fields = ConfigFields(config, "config.json")
    kinds = fields.value("layer_types")
    if isinstance(kinds, list) and len({str(kind) for kind in kinds}) > 1:
        raise fields.error("layer_types", "mixes sliding and full attention", "one kind for all layers of this family")
    return decoder.read_huggingface(config, family, ADJACENT, _DEFAULTS, Biases())


def config_from_gguf(metadata: Mapping[str, Json], shapes: Mapping[str, tuple[int, ...]]) -> ModelConfig:
    """Read `llama.*` metadata."""
    return llama.config_from_gguf(metadata, shapes)


def gguf_metadata(config: ModelConfig) -> dict[str, Json]:
    """The `llama.*` keys."""
    return llama.gguf_metadata(config)


def tensor_table(config: ModelConfig) -> tuple[TensorEntry, ...]:
    """Every tensor, in file order."""
    return llama.tensor_table(config)


def program(config: ModelConfig) -> Program:
    """The forward pass."""
    return llama.program(config)
