# SPDX-License-Identifier: Apache-2.0
"""Model families: the table of contents. To add one, write its file and add one line here."""

from __future__ import annotations

from collections.abc import Mapping

from lilliput.architectures import (
    bart,
    bert,
    blenderbot,
    distilbert,
    gemma1,
    gemma2,
    gemma3,
    gpt2,
    gptj,
    gptneox,
    granite,
    llama,
    m2m100,
    marian,
    mbart,
    mistral,
    mixtral,
    olmo2,
    olmoe,
    opt,
    pegasus,
    phi,
    phi3,
    qwen2,
    qwen3,
    qwen3moe,
    roberta,
    smollm3,
    stablelm,
    starcoder2,
    t5,
    unknown,
)
from lilliput.architectures.architecture import Architecture, Json
from lilliput.errors import UnsupportedModelError

__all__ = [
    "ARCHITECTURES",
    "NOT_IN_GGUF",
    "architecture_for_gguf",
    "architecture_for_huggingface",
    "architecture_of",
    "is_known",
]

ARCHITECTURES: tuple[Architecture, ...] = (
    llama,
    mistral,
    qwen2,
    qwen3,
    smollm3,
    bert,
    roberta,
    distilbert,
    gpt2,
    opt,
    gptneox,
    gptj,
    phi,
    phi3,
    gemma1,
    gemma2,
    gemma3,
    granite,
    olmo2,
    stablelm,
    starcoder2,
    mixtral,
    qwen3moe,
    olmoe,
    bart,
    mbart,
    marian,
    pegasus,
    m2m100,
    blenderbot,
    t5,
)
# Families that GGUF has no name for: their models travel in our own layout.
NOT_IN_GGUF = (
    opt.family,
    gptj.family,
    bart.family,
    mbart.family,
    marian.family,
    pegasus.family,
    m2m100.family,
    blenderbot.family,
    unknown.family,
)


def is_known(config: Mapping[str, Json]) -> bool:
    """Whether a config.json is of a family here, or names none, which is an error that wants to be told.

    Decoders and encoder-decoders that end in a head for classes are not: only their tensors are known.
    """
    model_type = config.get("model_type")
    found = next((item for item in ARCHITECTURES if model_type in item.huggingface_types), None)
    if found is None:
        return not model_type
    return found in (bert, roberta, distilbert) or unknown.head_for_classes(config) is None


def architecture_of(family: str) -> Architecture:
    """The architecture of a `ModelConfig.family`, unknown ones included. Raises UnsupportedModelError."""
    return unknown if family == unknown.family else architecture_for_gguf({"general.architecture": family})


def architecture_for_huggingface(config: Mapping[str, Json]) -> Architecture:
    """The family of a config.json, by its `model_type`. Raises UnsupportedModelError that lists the known ones."""
    model_type = config.get("model_type")
    for architecture in ARCHITECTURES:
        if model_type in architecture.huggingface_types:
            return architecture
    known = ", ".join(name for architecture in ARCHITECTURES for name in architecture.huggingface_types)
    found = f"model_type '{model_type}'" if model_type else "no model_type"
    raise UnsupportedModelError(
        f"config.json: {found}; model families known here: {known}. "
        "`lilliput inspect` still lists the tensors of a GGUF file of any family"
    )


def architecture_for_gguf(metadata: Mapping[str, Json]) -> Architecture:
    """The family of a GGUF file, by its `general.architecture`. Raises UnsupportedModelError."""
    name = metadata.get("general.architecture")
    for architecture in ARCHITECTURES:
        if architecture.family == name:
            return architecture
    known = ", ".join(dict.fromkeys(architecture.family for architecture in ARCHITECTURES))
    raise UnsupportedModelError(
        f"GGUF metadata: general.architecture is {name!r}; model families known here: {known}. "
        "`lilliput inspect` still lists this file's metadata and tensors"
    )
