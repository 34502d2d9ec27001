# SPDX-License-Identifier: Apache-2.0
"""BERT, and what shares its layout: MiniLM, BGE, E5, GTE's first generation (arXiv 1810.04805, 2002.10957)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from lilliput.architectures import encoder
from lilliput.architectures.architecture import Json, ModelConfig, TensorEntry
from lilliput.architectures.program import Program
from lilliput.architectures.sources import FirstOf, Named, Source

family = "bert"
huggingface_types: tuple[str, ...] = ("bert",)


def config_from_huggingface(config: Mapping[str, Json]) -> ModelConfig:
    """Read config.json."""
    return encoder.read_huggingface(config, first_position=0)


def config_from_gguf(metadata: Mapping[str, Json], shapes: Mapping[str, tuple[int, ...]]) -> ModelConfig:
    """Read `bert.*` metadata; RoBERTa models arrive here too."""
    return encoder.read_gguf(metadata, shapes)


def gguf_metadata(config: ModelConfig) -> dict[str, Json]:
    """The `bert.*` keys."""
    return encoder.gguf_metadata(config)


def tensor_table(config: ModelConfig) -> tuple[TensorEntry, ...]:
    """Every tensor, in file order."""
    spelled = partial(_spelled, head="qa_outputs" if config.task == "spans" else "classifier")
    return encoder.tensor_table(config, spelled, _spelled("embeddings.position_embeddings.weight"))


def program(config: ModelConfig) -> Program:
    """The forward pass."""
    return encoder.program(config)


def _spelled(name: str, head: str = "classifier") -> Source:
    """With and without the prefix that models with a head have, and as TensorFlow's checkpoints called norms."""
    if name.startswith("classifier"):
        return Named(name.replace("classifier", head))
    if name == encoder.MASKED_BIAS:
        return FirstOf((Named("cls.predictions.decoder.bias"), Named(name)))
    if name.startswith(("cls.predictions.decoder", encoder.NEXT_SENTENCE)):
        return Named(name)
    old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
    names = dict.fromkeys((name, f"bert.{name}", old, f"bert.{old}"))
    return FirstOf(tuple(Named(each) for each in names))
