# SPDX-License-Identifier: Apache-2.0
"""Blenderbot: BART with norms before each sublayer, none on the embeddings, positions from row 0 (arXiv 2004.13637)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lilliput.architectures import bart, seq2seq
from lilliput.architectures.architecture import Json, ModelConfig, TensorEntry
from lilliput.architectures.config_fields import ConfigFields
from lilliput.architectures.program import Program

family = "blenderbot"
huggingface_types: tuple[str, ...] = ("blenderbot",)
STYLE = replace(bart.STYLE, is_pre_norm=True, norms_embeddings=False, first_position=0)


def config_from_huggingface(config: Mapping[str, Json]) -> ModelConfig:
    """Read config.json."""
    fields = ConfigFields(config, "config.json")
    answers = seq2seq.answer_tokens(fields, default_start=1, default_end=2, forced_end=2)
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
