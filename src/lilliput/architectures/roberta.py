# SPDX-License-Identifier: Apache-2.0
"""RoBERTa, XLM-RoBERTa and CamemBERT: BERT whose positions start after the padding token's (arXiv 1907.11692).

GGUF calls it "bert" and drops the rows of the position embedding before position 0, which no text reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from lilliput.architectures import encoder
from lilliput.architectures.architecture import Json, ModelConfig, TensorEntry
from lilliput.architectures.config_fields import ConfigFields
from lilliput.architectures.program import Program
from lilliput.architectures.sources import FirstOf, Named, Rows, Source

family = "bert"
huggingface_types: tuple[str, ...] = ("roberta", "xlm-roberta", "camembert")
# Rows before position 0: as many as the padding token's id, which is 1 in all that were published, and its own.
FIRST_POSITION = 2


def config_from_huggingface(config: Mapping[str, Json]) -> ModelConfig:
    """Read config.json."""
    fields = ConfigFields(config, "config.json")
    if fields.value("pad_token_id") not in (None, FIRST_POSITION - 1):
        raise fields.error("pad_token_id", f"is {fields.value('pad_token_id')!r}", f"{FIRST_POSITION - 1}")
    return encoder.read_huggingface(config, first_position=FIRST_POSITION)


def config_from_gguf(metadata: Mapping[str, Json], shapes: Mapping[str, tuple[int, ...]]) -> ModelConfig:
    """Read `bert.*` metadata."""
    return encoder.read_gguf(metadata, shapes)


def gguf_metadata(config: ModelConfig) -> dict[str, Json]:
    """The `bert.*` keys."""
    return encoder.gguf_metadata(config)


def tensor_table(config: ModelConfig) -> tuple[TensorEntry, ...]:
    """Every tensor, in file order."""
    spelled = partial(_spelled, is_classifier=bool(config.encoder and config.encoder.labels))
    total = FIRST_POSITION + config.context_length
    name = "embeddings.position_embeddings.weight"
    positions = FirstOf(tuple(Rows(each, FIRST_POSITION, total, total) for each in (name, f"roberta.{name}")))
    return encoder.tensor_table(config, spelled, positions)


def program(config: ModelConfig) -> Program:
    """The forward pass."""
    return encoder.program(config)


def _spelled(name: str, *, is_classifier: bool) -> Source:
    """With and without the prefix that models with a head have; the head's two layers have names of their own."""
    if is_classifier and name.startswith("pooler.dense"):
        return Named(name.replace("pooler.dense", "classifier.dense"))
    if name.startswith("classifier"):
        return Named(name.replace("classifier", "classifier.out_proj"))
    return FirstOf((Named(name), Named(f"roberta.{name}")))
