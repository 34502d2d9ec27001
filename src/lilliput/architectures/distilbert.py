# SPDX-License-Identifier: Apache-2.0
"""DistilBERT: BERT without segments and pooler, under names of its own (arXiv 1910.01108).

Its classifier has a dense layer of its own with ReLU, where BERT's pooler has tanh; GGUF has no key for that.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from lilliput.architectures import decoder, encoder
from lilliput.architectures.architecture import Json, ModelConfig, TensorEntry
from lilliput.architectures.program import Program
from lilliput.architectures.sources import FirstOf, Named, Source

family = "bert"
huggingface_types: tuple[str, ...] = ("distilbert",)
# DistilBertConfig's names of the usual fields.
_FIELDS = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "hidden_dim": "intermediate_size",
    "activation": "hidden_act",
}
# What the class assumes where config.json is silent, and what it has no field for.
_USUAL: Mapping[str, Json] = {"hidden_size": 768, "num_hidden_layers": 6, "num_attention_heads": 12}
_FIXED: Mapping[str, Json] = {"type_vocab_size": 0, "layer_norm_eps": 1e-12}
# BERT's names -> DistilBERT's, the longer ones first.
_NAMES = {
    "encoder.layer.": "transformer.layer.",
    "attention.self.query": "attention.q_lin",
    "attention.self.key": "attention.k_lin",
    "attention.self.value": "attention.v_lin",
    "attention.output.dense": "attention.out_lin",
    "attention.output.LayerNorm": "sa_layer_norm",
    "intermediate.dense": "ffn.lin1",
    "output.dense": "ffn.lin2",
    "output.LayerNorm": "output_layer_norm",
}
_HEADS = {
    "pooler.dense": "pre_classifier",
    encoder.MASKED_DENSE: "vocab_transform",
    encoder.MASKED_NORM: "vocab_layer_norm",
    encoder.MASKED_OUTPUT: "vocab_projector.weight",
    encoder.MASKED_BIAS: "vocab_projector.bias",
}


def config_from_huggingface(config: Mapping[str, Json]) -> ModelConfig:
    """Read config.json."""
    usual = {**_USUAL, "intermediate_size": 3072, "vocab_size": 30522, **decoder.renamed(config, _FIELDS), **_FIXED}
    return encoder.read_huggingface(usual, first_position=0, pooler_activation="relu")


def config_from_gguf(metadata: Mapping[str, Json], shapes: Mapping[str, tuple[int, ...]]) -> ModelConfig:
    """Read `bert.*` metadata."""
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
    """With and without the prefix that models with a head have."""
    if name.startswith("classifier"):
        return Named(name.replace("classifier", head))
    for theirs, ours in _HEADS.items():
        if name.startswith(theirs):
            return Named(name.replace(theirs, ours))
    for theirs, ours in _NAMES.items():
        name = name.replace(theirs, ours)
    return FirstOf((Named(name), Named(f"distilbert.{name}")))
