# SPDX-License-Identifier: Apache-2.0
"""Mixtral: Mistral whose ffn is a mixture of experts, two of eight for each token (arXiv 2401.04088).

GGUF knows it as `llama` with experts, and a GGUF file of it opens as Llama.
"""

from __future__ import annotations

from collections.abc import Mapping

from lilliput.architectures import decoder, llama
from lilliput.architectures.architecture import Json, ModelConfig, TensorEntry
from lilliput.architectures.config_fields import ConfigFields
from lilliput.architectures.decoder import Biases, HuggingFaceDefaults
from lilliput.architectures.program import Program

family = llama.family
huggingface_types: tuple[str, ...] = ("mixtral",)
_DEFAULTS = HuggingFaceDefaults(context_length=131_072, kv_heads=8, rope_base=1_000_000.0, epsilon=1e-5)
_EXPERTS = ("num_local_experts", "num_experts")


def config_from_huggingface(config: Mapping[str, Json]) -> ModelConfig:
    """Read config.json."""
    plain = decoder.without(config, *_EXPERTS)
    model = decoder.read_huggingface(plain, family, llama.MIXTURE, _DEFAULTS, Biases())
    fields = ConfigFields(config, "config.json")
    return decoder.with_experts(model, fields, _EXPERTS, default=(8, 2), normalizes=True)


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
