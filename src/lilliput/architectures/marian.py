# SPDX-License-Identifier: Apache-2.0
"""Marian: BART with computed positions and no norm on the embeddings; OPUS-MT models (arXiv 1804.00344)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lilliput.architectures import bart, seq2seq
from lilliput.architectures.architecture import Json, ModelConfig, TensorEntry
from lilliput.architectures.config_fields import ConfigFields
from lilliput.architectures.program import Program

family = "marian"
huggingface_types: tuple[str, ...] = ("marian",)
STYLE = replace(bart.STYLE, norms_embeddings=False, positions="sinusoidal", first_position=0)


def config_from_huggingface(config: Mapping[str, Json]) -> ModelConfig:
    """Read config.json."""
    fields = ConfigFields(config, "config.json")
    seq2seq.refuse_unshared_embeddings(fields)
    answers = seq2seq.answer_tokens(fields, default_start=58100, default_end=0, forced_end=0)
    return bart.read(fields, family, answers)


def config_from_gguf(metadata: Mapping[str, Json], shapes: Mapping[str, tuple[int, ...]]) -> ModelConfig:
    """There is no such GGUF. Raises UnsupportedModelError."""
    raise bart.no_gguf(family)


def gguf_metadata(config: ModelConfig) -> dict[str, Json]:
    """There is no such GGUF. Raises UnsupportedModelError."""
    raise bart.no_gguf(config.family)


def tensor_table(config: ModelConfig) -> tuple[TensorEntry, ...]:
    """Every tensor, in file order."""
    return seq2seq.tensor_table(config, STYLE)


def encoder_program(config: ModelConfig) -> Program:
    """The forward pass over the text."""
    return seq2seq.encoder_program(config, STYLE)


def program(config: ModelConfig) -> Program:
    """The forward pass over the answer."""
    return seq2seq.decoder_program(config, STYLE)
