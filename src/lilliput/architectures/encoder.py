# SPDX-License-Identifier: Apache-2.0
"""The encoder that BERT and its kin share: post-norm blocks of attention in both directions, an ungated ffn, a head.

A family's file says what its config.json means and how its checkpoint spells names; the rest is here. GGUF calls all
of them "bert". The pooler and the layer before RoBERTa's and DistilBERT's classes are one thing, `cls`: dense and an
activation on the first token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from lilliput.architectures.architecture import (
    NO_ROPE,
    EncoderHead,
    EncoderTraits,
    Json,
    ModelConfig,
    Pooling,
    TensorEntry,
)
from lilliput.architectures.config_fields import ConfigFields
from lilliput.architectures.program import (
    Activate,
    Activation,
    Add,
    Attention,
    Embed,
    KvState,
    LayerNorm,
    Linear,
    Operation,
    Program,
    SelectOutputRows,
)
from lilliput.architectures.sources import Source
from lilliput.errors import UnsupportedModelError
from lilliput.records import Role

EMBEDDING = "token_embd.weight"
POSITIONS = "position_embd.weight"
SEGMENTS = "token_types.weight"
# What config.json calls them.
ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
# Class of the checkpoint -> what its head tells, and whether `id2label` names it.
_HEADS: Mapping[str, tuple[EncoderHead, bool]] = {
    "ForSequenceClassification": ("text", True),
    "ForTokenClassification": ("tags", True),
    "ForQuestionAnswering": ("spans", False),
    "ForMaskedLM": ("masked", False),
    "Model": ("text", False),
}
# llama.cpp's numbers; 0 leaves the choice to whoever reads the file.
_POOLING: Mapping[int, Pooling] = {0: "mean", 1: "mean", 2: "cls", 4: "cls"}
_RANK = 4
# Fields that change the arithmetic and have no operation here, and the values under which they change nothing.
_NEUTRAL_VALUES: Mapping[str, tuple[Json, ...]] = {
    "position_embedding_type": (None, "absolute"),
    "is_decoder": (None, False),
    "add_cross_attention": (None, False),
    "embedding_size": (None,),
    "rotary_value": (None, False),
    "use_bias": (None, True),
}
# BERT's names of the masked head; families spell them otherwise.
MASKED_DENSE, MASKED_NORM = "cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm"
MASKED_OUTPUT, MASKED_BIAS = "cls.predictions.decoder.weight", "cls.predictions.bias"
NEXT_SENTENCE = "cls.seq_relationship"
# Checkpoint name of a canonical tensor without its prefix and layer, from the family's file.
Spelled = Callable[[str], Source]


def read_huggingface(
    config: Mapping[str, Json], *, first_position: int, pooler_activation: Activation = "tanh"
) -> ModelConfig:
    """Read a config.json. Raises UnsupportedModelError naming the field that has no equivalent here.

    first_position: row of the position embedding that the first token takes.  pooler_activation: see EncoderTraits.
    """
    fields = ConfigFields(config, "config.json")
    for name, neutral in _NEUTRAL_VALUES.items():
        if fields.value(name) not in neutral:
            raise fields.error(name, f"is {fields.value(name)!r}", f"{neutral[-1]!r} or absent, for this family")
    hidden_size, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    if hidden_size % heads:
        raise fields.error("num_attention_heads", f"is {heads}", f"a divisor of hidden size {hidden_size}")
    head, has_classes = head_of(fields)
    labels = labels_of(fields) if has_classes else ("start", "end") if head == "spans" else ()
    pooling, is_normalized = _pooling(fields)
    traits = EncoderTraits(
        segments=0 if fields.value("type_vocab_size") == 0 else fields.integer("type_vocab_size", 2),
        activation=activation_of(fields, "hidden_act"),
        pooling="cls" if labels else pooling,
        is_normalized=is_normalized and not labels and head == "text",
        # DistilBERT has the layer with its classes alone.
        has_pooler=head == "text" and (bool(labels) or pooler_activation == "tanh"),
        pooler_activation=pooler_activation if head == "text" and labels else "tanh",
        labels=labels,
        head=head,
    )
    return ModelConfig(
        family="bert",
        vocab_size=fields.integer("vocab_size"),
        context_length=fields.integer("max_position_embeddings", 512) - first_position,
        hidden_size=hidden_size,
        layers=fields.integer("num_hidden_layers"),
        heads=heads,
        kv_heads=heads,
        head_dim=hidden_size // heads,
        ffn_size=fields.integer("intermediate_size"),
        norm_epsilon=fields.number("layer_norm_eps", 1e-12),
        rope=NO_ROPE,
        tied=head == "masked",
        head_bias=head == "masked",
        encoder=traits,
    )


def activation_of(fields: ConfigFields, name: str, default: str = "gelu") -> Activation:
    """Raises UnsupportedModelError for one that the engine does not know."""
    found = fields.text(name, default)
    if found not in ACTIVATIONS:
        raise fields.error(name, f"is '{found}'", ", ".join(ACTIVATIONS))
    return ACTIVATIONS[found]


def head_of(fields: ConfigFields) -> tuple[EncoderHead, bool]:
    """What the checkpoint's head tells, and whether it tells classes that config.json names.

    Raises UnsupportedModelError for other heads.
    """
    classes = fields.value("architectures")
    name = str(classes[0]) if isinstance(classes, list) and classes else "Model"
    for ending, found in _HEADS.items():
        if name.endswith(ending):
            return found
    known = ", ".join(f"…{ending}" for ending in _HEADS)
    raise fields.error("architectures", f"is {name}", f"{known}, for this family")


def labels_of(fields: ConfigFields) -> tuple[str, ...]:
    """Names of the classes; transformers assumes two where config.json is silent."""
    names = fields.value("id2label")
    if isinstance(names, dict) and names:
        return tuple(str(names[key]) for key in sorted(names, key=int))
    return tuple(f"LABEL_{index}" for index in range(fields.integer("num_labels", 2)))


def _pooling(fields: ConfigFields) -> tuple[Pooling, bool]:
    """What sentence-transformers' modules make of the hidden states; the mean where there are none."""
    modules = fields.section("sentence_transformers")
    if modules is None:
        return "mean", False
    unknown = [name for name in modules.names() if name not in ("Transformer", "Pooling", "Normalize")]
    if unknown:
        raise fields.error("modules.json", f"has a module {unknown[0]}", "Transformer, Pooling and Normalize")
    chosen = modules.section("Pooling")
    modes = [] if chosen is None else [name for name in chosen.names() if chosen.value(name) is True]
    modes = [name for name in modes if name.startswith("pooling_mode_")]
    if modes not in ([], ["pooling_mode_mean_tokens"], ["pooling_mode_cls_token"]):
        raise fields.error(
            "1_Pooling/config.json", f"has {' and '.join(modes)}", "pooling_mode_mean_tokens, pooling_mode_cls_token"
        )
    return "cls" if modes == ["pooling_mode_cls_token"] else "mean", modules.is_written("Normalize")


def read_gguf(metadata: Mapping[str, Json], shapes: Mapping[str, tuple[int, ...]]) -> ModelConfig:
    """Read `bert.*` keys; what GGUF keeps no key for is told by the tensors."""
    fields = ConfigFields(metadata, "GGUF metadata", "bert.")
    hidden_size, heads = fields.integer("embedding_length"), fields.integer("attention.head_count")
    pooling = fields.value("pooling_type") or 0
    if not isinstance(pooling, int) or pooling not in _POOLING:
        raise fields.error("pooling_type", f"is {pooling!r}", "0 (none), 1 (mean), 2 (cls), 4 (rank)")
    if fields.boolean("attention.causal", default=False):
        raise fields.error("attention.causal", "is true", "false for this family")
    classes = shapes.get("cls.output.weight", (0,))[0]
    names = fields.value("classifier.output_labels")
    if not isinstance(names, list) or len(names) != classes:
        names = [f"LABEL_{index}" for index in range(classes)]
    embedding, positions = shapes.get(EMBEDDING, (0, 0)), shapes.get(POSITIONS, (0, 0))
    return ModelConfig(
        family="bert",
        vocab_size=embedding[0] or fields.integer("vocab_size"),
        context_length=positions[0] or fields.integer("context_length"),
        hidden_size=hidden_size,
        layers=fields.integer("block_count"),
        heads=heads,
        kv_heads=heads,
        head_dim=hidden_size // heads,
        ffn_size=fields.integer("feed_forward_length"),
        norm_epsilon=fields.number("attention.layer_norm_epsilon"),
        rope=NO_ROPE,
        tied=False,
        encoder=EncoderTraits(
            segments=shapes.get(SEGMENTS, (0,))[0],
            pooling=_POOLING[pooling],
            is_normalized=fields.boolean("lilliput_normalized", default=not classes),
            has_pooler="cls.weight" in shapes,
            labels=tuple(map(str, names)),
        ),
    )


def gguf_metadata(config: ModelConfig) -> dict[str, Json]:
    """The `bert.*` keys. Raises UnsupportedModelError for an activation that llama.cpp does not take from a file."""
    traits = _traits(config)
    if traits.head != "text":
        raise UnsupportedModelError(
            f"GGUF has no place for the head of a BERT for {config.task.replace('_', ' ')}; "
            "give -o NAME.safetensors for lilliput's own layout"
        )
    if traits.activation != "gelu":
        raise UnsupportedModelError(
            f"GGUF has no key for a BERT's activation, which is {traits.activation} here and gelu to its readers; "
            "give -o NAME.safetensors for lilliput's own layout"
        )
    if traits.labels and traits.pooler_activation != "tanh":
        raise UnsupportedModelError(
            f"GGUF has no key for the activation before a BERT's classes, which is {traits.pooler_activation} here and "
            "tanh to its readers; give -o NAME.safetensors for lilliput's own layout"
        )
    metadata: dict[str, Json] = {
        "bert.vocab_size": config.vocab_size,
        "bert.context_length": config.context_length,
        "bert.embedding_length": config.hidden_size,
        "bert.block_count": config.layers,
        "bert.feed_forward_length": config.ffn_size,
        "bert.attention.head_count": config.heads,
        "bert.attention.layer_norm_epsilon": config.norm_epsilon,
        "bert.attention.causal": False,
        "bert.pooling_type": _RANK if traits.labels else {"mean": 1, "cls": 2}[traits.pooling],
        # llama.cpp's tools normalize by an option of theirs.
        "bert.lilliput_normalized": traits.is_normalized,
        "tokenizer.ggml.token_type_count": max(traits.segments, 1),
    }
    if traits.labels:
        metadata["bert.classifier.output_labels"] = list[Json](traits.labels)
    return metadata


def tensor_table(config: ModelConfig, spelled: Spelled, positions: Source) -> tuple[TensorEntry, ...]:
    """Every tensor, in file order.

    spelled: the checkpoint's tensor for one of BERT's names without prefix.  positions: where position 0 is the first.
    """
    traits, hidden = _traits(config), config.hidden_size
    entries = [
        TensorEntry(
            EMBEDDING, spelled("embeddings.word_embeddings.weight"), (config.vocab_size, hidden), Role.TOKEN_EMBEDDING
        ),
        TensorEntry(POSITIONS, positions, (config.context_length, hidden), Role.POSITION_EMBEDDING),
    ]
    if traits.segments:
        source = spelled("embeddings.token_type_embeddings.weight")
        entries.append(TensorEntry(SEGMENTS, source, (traits.segments, hidden), Role.SEGMENT_EMBEDDING))
    entries.extend(_norm("token_embd_norm", "embeddings.LayerNorm", hidden, spelled))
    for layer in range(config.layers):
        entries.extend(_block_entries(config, layer, spelled))
    if traits.has_pooler or traits.head != "text" or not traits.labels:
        pooler = _linear("cls", "pooler.dense", (hidden, hidden), Role.POOLER, "cls_input", spelled)
        # Sentence vectors do not pass through it; it is kept where a checkpoint has it.
        is_needed = traits.head == "text" and traits.labels
        entries.extend(replace(entry, optional=not is_needed) for entry in pooler)
    if traits.head == "masked":
        entries.extend(_masked_entries(config, spelled))
    if traits.labels:
        shape = (len(traits.labels), hidden)
        entries.extend(_linear("cls.output", "classifier", shape, Role.CLASSIFIER, "cls_output_input", spelled))
    return tuple(entries)


def _masked_entries(config: ModelConfig, spelled: Spelled) -> Iterator[TensorEntry]:
    """A dense layer, an activation, a norm, and the token embedding again with a bias."""
    hidden = config.hidden_size
    yield from _linear("masked", MASKED_DENSE, (hidden, hidden), Role.POOLER, "masked_input", spelled)
    yield from _norm("masked_norm", MASKED_NORM, hidden, spelled)
    tied_to = EMBEDDING if config.tied else None
    shape = (config.vocab_size, hidden)
    source = spelled("embeddings.word_embeddings.weight" if config.tied else MASKED_OUTPUT)
    yield TensorEntry("output.weight", source, shape, Role.OUTPUT, "output", tied_to=tied_to)
    yield TensorEntry("output.bias", spelled(MASKED_BIAS), shape[:1], Role.BIAS)
    # Of models that were also trained to tell whether one sentence follows another; nothing here asks them.
    for entry in _linear("next_sentence", NEXT_SENTENCE, (2, hidden), Role.CLASSIFIER, "next_sentence_input", spelled):
        yield replace(entry, optional=True, input_group=None)


def _norm(ours: str, theirs: str, width: int, spelled: Spelled) -> Iterator[TensorEntry]:
    yield TensorEntry(f"{ours}.weight", spelled(f"{theirs}.weight"), (width,), Role.NORM)
    yield TensorEntry(f"{ours}.bias", spelled(f"{theirs}.bias"), (width,), Role.NORM)


def _linear(
    ours: str, theirs: str, shape: tuple[int, int], role: Role, input_group: str, spelled: Spelled
) -> Iterator[TensorEntry]:
    yield TensorEntry(f"{ours}.weight", spelled(f"{theirs}.weight"), shape, role, input_group)
    yield TensorEntry(f"{ours}.bias", spelled(f"{theirs}.bias"), shape[:1], Role.BIAS)


def _block_entries(config: ModelConfig, layer: int, spelled: Spelled) -> Iterator[TensorEntry]:
    ours, theirs = f"blk.{layer}", f"encoder.layer.{layer}"
    hidden, ffn = config.hidden_size, config.ffn_size
    square, attention_input = (hidden, hidden), f"{ours}.attn_input"
    for our_part, their_part, shape, role, input_group in (
        ("attn_q", "attention.self.query", square, Role.ATTENTION_Q, attention_input),
        ("attn_k", "attention.self.key", square, Role.ATTENTION_K, attention_input),
        ("attn_v", "attention.self.value", square, Role.ATTENTION_V, attention_input),
        ("attn_output", "attention.output.dense", square, Role.ATTENTION_OUTPUT, f"{ours}.attn_output_input"),
        ("ffn_up", "intermediate.dense", (ffn, hidden), Role.FFN_UP, f"{ours}.ffn_input"),
        ("ffn_down", "output.dense", (hidden, ffn), Role.FFN_DOWN, f"{ours}.ffn_down_input"),
    ):
        yield from _linear(f"{ours}.{our_part}", f"{theirs}.{their_part}", shape, role, input_group, spelled)
    yield from _norm(f"{ours}.attn_output_norm", f"{theirs}.attention.output.LayerNorm", hidden, spelled)
    yield from _norm(f"{ours}.layer_output_norm", f"{theirs}.output.LayerNorm", hidden, spelled)


def program(config: ModelConfig) -> Program:
    """The forward pass. Rows that nobody asked for are dropped after the last attention."""
    traits, hidden = _traits(config), config.hidden_size
    widths = ("residual", "selected", "sum", "normed", "q", "k", "v", "attention", "selected_attention", "output")
    buffers = {
        **dict.fromkeys(widths, hidden),
        "embedded": hidden,
        "up": config.ffn_size,
        "hidden": hidden,
    }
    operations: list[Operation] = [
        Embed("sum", EMBEDDING),
        Embed("embedded", POSITIONS, by="position"),
        Add("sum", "sum", "embedded"),
    ]
    if traits.segments:
        operations += [Embed("embedded", SEGMENTS, by="segment"), Add("sum", "sum", "embedded")]
    operations.append(_norm_operation("residual", "sum", "token_embd_norm", config))
    for layer in range(config.layers):
        operations.extend(_block_operations(config, layer, is_last=layer == config.layers - 1))
    result = "hidden"
    if traits.head == "masked":
        buffers |= {"dense": hidden, "logits": config.vocab_size}
        head = EMBEDDING if config.tied else "output.weight"
        operations += [
            Linear("dense", result, "masked.weight", "masked.bias"),
            Activate("dense", "dense", traits.activation),
            _norm_operation("dense", "dense", "masked_norm", config),
            Linear("logits", "dense", head, "output.bias"),
        ]
        result = "logits"
    if traits.labels:
        if traits.has_pooler:
            buffers |= {"pooled": hidden}
            operations += [
                Linear("pooled", result, "cls.weight", "cls.bias"),
                Activate("pooled", "pooled", traits.pooler_activation),
            ]
            result = "pooled"
        buffers |= {"logits": len(traits.labels)}
        operations.append(Linear("logits", result, "cls.output.weight", "cls.output.bias"))
        result = "logits"
    # Nothing outlives its layer, so that all layers share one cache.
    states = (KvState(0, config.heads, config.head_dim),)
    return Program(buffers, states, tuple(operations), result)


def _block_operations(config: ModelConfig, layer: int, *, is_last: bool) -> Iterator[Operation]:
    block = f"blk.{layer}"

    def linear(out: str, x: str, part: str) -> Linear:
        return Linear(out, x, f"{block}.{part}.weight", f"{block}.{part}.bias")

    for part in ("q", "k", "v"):
        yield linear(part, "residual", f"attn_{part}")
    yield Attention(
        out="attention",
        q="q",
        k="k",
        v="v",
        layer=0,
        heads=config.heads,
        kv_heads=config.heads,
        head_dim=config.head_dim,
        scale=1.0 / math.sqrt(config.head_dim),
        causal=False,
    )
    residual, attention = "residual", "attention"
    if is_last:
        residual, attention = "selected", "selected_attention"
        yield SelectOutputRows(residual, "residual")
        yield SelectOutputRows(attention, "attention")
    yield linear("output", attention, "attn_output")
    yield Add("sum", residual, "output")
    yield _norm_operation("normed", "sum", f"{block}.attn_output_norm", config)
    yield linear("up", "normed", "ffn_up")
    yield Activate("up", "up", _traits(config).activation)
    yield linear("output", "up", "ffn_down")
    yield Add("sum", "normed", "output")
    yield _norm_operation("hidden" if is_last else "residual", "sum", f"{block}.layer_output_norm", config)


def _norm_operation(out: str, x: str, name: str, config: ModelConfig) -> LayerNorm:
    return LayerNorm(out, x, f"{name}.weight", f"{name}.bias", config.norm_epsilon)


def _traits(config: ModelConfig) -> EncoderTraits:
    assert config.encoder is not None
    return config.encoder
