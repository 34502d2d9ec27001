# SPDX-License-Identifier: Apache-2.0
"""M2M100 and NLLB: mBART with fairseq's computed positions, no norm on the embeddings, no bias on the logits.

Positions start after the padding token's. Sources: arXiv 2010.11125, 2207.04672.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lilliput.architectures import bart, seq2seq
from lilliput.architectures.architecture import Json, ModelConfig, TensorEntry
from lilliput.architectures.config_fields import ConfigFields
from lilliput.architectures.program import Program

family = "m2m100"
huggingface_types: tuple[str, ...] = ("m2m_100",)
STYLE = replace(
    bart.STYLE, is_pre_norm=True, norms_embeddings=False, positions="fairseq", has_output_bias=False, first_position=2
)


def config_from_huggingface(config: Mapping[str, Json]) -> ModelConfig:
    """Read config.json."""
    fields = ConfigFields(config, "config.json")
    if fields.value("pad_token_id") not in (None, STYLE.first_position - 1):
        raise fields.error("pad_token_id", f"is {fields.value('pad_token_id')!r}", f"{STYLE.first_position - 1}")
    answers = seq2seq.answer_tokens(fields, default_start=2, default_end=2, forced_end=None)
    usual = {"activation_function": "relu", "scale_embedding": True, **config}
    return bart.read(ConfigFields(usual, "config.json"), family, answers)


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
