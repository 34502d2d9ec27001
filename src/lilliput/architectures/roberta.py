# SPDX-License-Identifier: Apache-2.0
"""RoBERTa, XLM-RoBERTa and CamemBERT: BERT whose positions start after the padding token's (arXiv 1907.11692).

GGUF calls it "bert" and drops the rows of the position embedding before position 0, which no text reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from lilliput.architectures import encoder
from lilliput.architectures.architecture import Json, ModelConfig, Task, TensorEntry
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
    spelled = partial(_spelled, task=config.task)
    total = FIRST_POSITION + config.context_length
    name = "embeddings.position_embeddings.weight"
    positions = FirstOf(tuple(Rows(each, FIRST_POSITION, total, total) for each in (name, f"roberta.{name}")))
    return encoder.tensor_table(config, spelled, positions)


def program(config: ModelConfig) -> Program:
    """The forward pass."""
    return encoder.program(config)


# BERT's names of the masked head -> RoBERTa's.
_MASKED = {
    encoder.MASKED_DENSE: "lm_head.dense",
    encoder.MASKED_NORM: "lm_head.layer_norm",
    encoder.MASKED_OUTPUT: "lm_head.decoder.weight",
}


def _spelled(name: str, *, task: Task) -> Source:
    """With and without the prefix that models with a head have; heads have names of their own."""
    if task == "classification" and name.startswith("pooler.dense"):
        return Named(name.replace("pooler.dense", "classifier.dense"))
    if name.startswith("classifier"):
        heads = {"classification": "classifier.out_proj", "spans": "qa_outputs"}
        return Named(name.replace("classifier", heads.get(task, "classifier")))
    if name == encoder.MASKED_BIAS:
        return FirstOf((Named("lm_head.decoder.bias"), Named("lm_head.bias")))
    for theirs, ours in _MASKED.items():
        if name.startswith(theirs):
            return Named(name.replace(theirs, ours))
    return FirstOf((Named(name), Named(f"roberta.{name}")))
