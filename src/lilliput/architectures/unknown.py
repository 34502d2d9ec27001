# SPDX-License-Identifier: Apache-2.0
"""An architecture that no family here describes: its tensors are told apart by their names, shapes and biases.

Its checkpoint's names are the canonical ones. Nothing here can run such a model; its quantized folder runs elsewhere.
What is not surely a linear layer or an embedding stays as it is stored, because a wrong guess would break the model,
and a float left over costs only bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lilliput.architectures.architecture import (
    NO_ROPE,
    Json,
    ListedTensor,
    ModelConfig,
    TensorEntry,
    UnknownTraits,
)
from lilliput.architectures.program import Program
from lilliput.architectures.sources import Named
from lilliput.errors import UnsupportedModelError
from lilliput.records import Role

family = "unknown"
huggingface_types: tuple[str, ...] = ()

# Matrices with fewer rows or columns are gates and states: quantizing them saves nothing.
SMALLEST_SIDE = 8
# What config.json files call the same thing.
_SIZES: Mapping[str, tuple[str, ...]] = {
    "hidden_size": ("hidden_size", "d_model", "n_embd", "dim", "n_embed"),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv", "n_kv_heads"),
    "ffn_size": ("intermediate_size", "ffn_dim", "d_ff", "n_inner", "ffn_hidden_size"),
    "context": ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"),
    "experts": ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"),
}
_EMBEDDING = re.compile(
    r"(wte|wpe|shared|embd?|embeds?|tok_emb\w*|\w*_embd?|\w*embeddings?|\w*embed_(tokens|positions)\w*)"
)
_POSITIONS = re.compile(r"(wpe|\w*pos\w*)")
_SEGMENTS = re.compile(r"\w*(token_type|segment)\w*")
_NORM = re.compile(r"(\w*norm\w*|ln(_\w+)?|\w+_ln)", re.IGNORECASE)
_ROUTERS = ("gate", "router", "wg")
# The last part of a module's name -> its role, where the name says it is part of attention, then anywhere.
_ATTENTION: Mapping[Role, re.Pattern[str]] = {
    Role.ATTENTION_QKV: re.compile(r"(\w*qkv\w*|query_key_value|c_attn)", re.IGNORECASE),
    Role.ATTENTION_Q: re.compile(r"(q|wq|to_q|query|q_(proj|lin|a_proj|b_proj))"),
    Role.ATTENTION_K: re.compile(r"(k|wk|to_k|key|k_(proj|lin))"),
    Role.ATTENTION_V: re.compile(r"(v|wv|to_v|value|v_(proj|lin))"),
    Role.ATTENTION_OUTPUT: re.compile(r"(o|wo|dense|c_proj|to_out|o_proj|out_(proj|lin))"),
}
_FFN: Mapping[Role, re.Pattern[str]] = {
    Role.FFN_GATE: re.compile(r"(gate_proj|w1|wi_0)"),
    Role.FFN_UP: re.compile(r"(up_proj|gate_up_proj|w3|wi_1|wi|fc1|fc_in|c_fc|lin1|dense_h_to_4h)"),
    Role.FFN_DOWN: re.compile(r"(down_proj|w2|wo|fc2|fc_out|c_proj|lin2|dense_4h_to_h)"),
}


_HEADS_FOR_CLASSES = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")


@dataclass(frozen=True, slots=True)
class FoundTensor:
    """A tensor of the checkpoint. is_quantized: it lies there in codes, so it is a linear layer."""

    name: str
    shape: tuple[int, ...]
    is_float: bool = True
    is_quantized: bool = False


def head_for_classes(config: Mapping[str, Json]) -> str | None:
    """The class that config.json names, where it ends in a head for classes or spans."""
    classes = config.get("architectures")
    name = str(classes[0]) if isinstance(classes, list) and classes else ""
    return name if name.endswith(_HEADS_FOR_CLASSES) else None


def config_from_huggingface(config: Mapping[str, Json]) -> ModelConfig:
    """What config.json says under one of the usual names; sizes that it does not say are 1. Without tensors yet."""
    model_type = head_for_classes(config) or str(config.get("model_type", ""))
    text = config.get("text_config")
    fields = {**(text if isinstance(text, dict) else {}), **config}

    def size(name: str) -> int:
        found = (fields.get(spelled) for spelled in _SIZES[name])
        return next((v for v in found if isinstance(v, int) and not isinstance(v, bool) and v > 0), 1)

    vocabulary = fields.get("vocab_size")
    heads = size("heads")
    return ModelConfig(
        family=family,
        vocab_size=vocabulary if isinstance(vocabulary, int) and vocabulary > 0 else 1,
        context_length=size("context"),
        hidden_size=size("hidden_size"),
        layers=0,
        heads=heads,
        # Where it is not said, presets must not take the heads for grouped ones.
        kv_heads=next((v for v in (fields.get(n) for n in _SIZES["kv_heads"]) if isinstance(v, int) and v > 0), heads),
        head_dim=max(size("hidden_size") // heads, 1),
        ffn_size=size("ffn_size"),
        norm_epsilon=1e-5,
        rope=NO_ROPE,
        tied=False,
        experts=size("experts") if any(fields.get(name) for name in _SIZES["experts"]) else 0,
        unknown=UnknownTraits(model_type, ()),
    )


def with_tensors(config: ModelConfig, described: Mapping[str, Json], found: Sequence[FoundTensor]) -> ModelConfig:
    """The config with its list of tensors, its layers, and whether the head is the embedding.

    described: config.json.
    """
    assert config.unknown is not None
    listed = listed_tensors(config, found)
    numbers = [int(number) for item in listed if (number := layer_of(item.name)) is not None]
    classes = described.get("architectures")
    named = str(classes[0]) if isinstance(classes, list) and classes else ""
    has_head = any(item.role is Role.OUTPUT for item in listed)
    is_generating = "LM" in named or described.get("tie_word_embeddings") is True
    rows = [item.shape[0] for item in listed if item.role is Role.TOKEN_EMBEDDING]
    return replace(
        config,
        vocab_size=config.vocab_size if config.vocab_size > 1 or not rows else max(rows),
        layers=max(numbers, default=-1) + 1,
        tied=bool(rows) and not has_head and is_generating,
        unknown=replace(config.unknown, tensors=listed),
    )


def listed_tensors(config: ModelConfig, found: Sequence[FoundTensor]) -> tuple[ListedTensor, ...]:
    """What each tensor is taken for. config: for its sizes."""
    biases = {item.name: item.shape for item in found if item.name.endswith(".bias") and len(item.shape) == 1}
    judged = ((item, *_judged(item, config, biases)) for item in found)
    return tuple(ListedTensor(item.name, item.shape, role, assumed) for item, role, assumed in judged)


def layer_of(name: str) -> int | None:
    """The block that a checkpoint's tensor is in: the first number of its name."""
    found = re.search(r"\.(\d+)\.", f".{name}")
    return int(found[1]) if found else None


def config_from_gguf(metadata: Mapping[str, Json], shapes: Mapping[str, tuple[int, ...]]) -> ModelConfig:
    """GGUF holds no such models."""
    raise UnsupportedModelError("GGUF metadata: general.architecture is 'unknown', which says nothing")


def gguf_metadata(config: ModelConfig) -> dict[str, Json]:
    """GGUF holds no such models."""
    raise UnsupportedModelError(
        f"{_model_type(config)}: GGUF has no name for this architecture; give -o NAME.safetensors"
    )


def tensor_table(config: ModelConfig) -> tuple[TensorEntry, ...]:
    """The listed tensors, in the order of the checkpoint."""
    assert config.unknown is not None
    return tuple(
        TensorEntry(
            item.name,
            Named(item.name),
            item.shape,
            item.role,
            # Statistics, where somebody has them, are of one layer each.
            input_group=item.name if item.assumed.startswith("linear") else None,
            assumed=item.assumed,
        )
        for item in config.unknown.tensors
    )


def program(config: ModelConfig) -> Program:
    """There is none."""
    raise UnsupportedModelError(
        f"{_model_type(config)}: lilliput does not know how this architecture computes, so it can quantize but not run "
        "it; write -o NAME.compressed-tensors and run that in transformers"
    )


def _model_type(config: ModelConfig) -> str:
    return config.unknown.model_type if config.unknown is not None else config.family


def _judged(item: FoundTensor, config: ModelConfig, biases: Mapping[str, tuple[int, ...]]) -> tuple[Role, str]:
    """Role of a tensor, and why."""
    if not item.is_float:
        return Role.KEPT, "kept: whole numbers"
    if len(item.shape) < 2:
        return (Role.BIAS if item.name.endswith(".bias") else Role.NORM), "kept: a vector"
    if len(item.shape) > 2:
        return Role.KEPT, f"kept: {len(item.shape)} axes, so no plain linear layer"
    module, _, part = item.name.rpartition(".")
    if part != "weight":
        return Role.KEPT, "kept: a matrix that is not called .weight"
    bias = biases.get(f"{module}.bias")
    last = module.rpartition(".")[2]
    found = _embedding(last, item, config) if bias is None else None
    return found or _kept_matrix(last, item, config, bias) or _linear(module, item, config, bias)


def _embedding(last: str, item: FoundTensor, config: ModelConfig) -> tuple[Role, str] | None:
    if item.is_quantized or not _EMBEDDING.fullmatch(last):
        return None
    if item.shape[0] == config.vocab_size:
        return Role.TOKEN_EMBEDDING, f"embedding: its name, and a row for each of {item.shape[0]} tokens"
    if _POSITIONS.fullmatch(last):
        return Role.POSITION_EMBEDDING, "embedding of positions: its name"
    if _SEGMENTS.fullmatch(last):
        return Role.SEGMENT_EMBEDDING, "embedding of segments: its name"
    return Role.TOKEN_EMBEDDING, "embedding: its name"


def _kept_matrix(
    last: str, item: FoundTensor, config: ModelConfig, bias: tuple[int, ...] | None
) -> tuple[Role, str] | None:
    """What is a matrix and yet no linear layer to quantize."""
    rows, columns = item.shape
    if item.is_quantized:
        return None
    if "conv" in last:
        return Role.KEPT, "kept: named as a convolution"
    if _NORM.fullmatch(last):
        return Role.KEPT, "kept: named as a norm"
    if last in _ROUTERS and rows == config.experts:
        return Role.ROUTER, f"kept: a router, with a row for each of {rows} experts"
    if bias is not None and bias != (rows,):
        where = "laid out [in, out]" if bias == (columns,) else "not a linear layer's"
        return Role.KEPT, f"kept: its bias has {bias[0]} values and it has {rows} rows, so it is {where}"
    if min(rows, columns) < SMALLEST_SIDE:
        return Role.KEPT, f"kept: {rows}x{columns} is too small to gain by it"
    return None


def _linear(module: str, item: FoundTensor, config: ModelConfig, bias: tuple[int, ...] | None) -> tuple[Role, str]:
    why = "linear: a matrix called .weight" + ("" if bias is None else " with a bias for each row")
    why = "linear: it lies in codes" if item.is_quantized else why
    before, _, last = module.rpartition(".")
    if item.shape[0] == config.vocab_size and layer_of(item.name) is None:
        return Role.OUTPUT, f"{why} and a row for each of {item.shape[0]} tokens: the output head"
    tables = (_ATTENTION, _FFN) if re.search(r"att(e?n|ention)", before, re.IGNORECASE) else (_FFN,)
    for table in tables:
        for role, pattern in table.items():
            if pattern.fullmatch(last):
                return role, why
    return Role.OTHER, why
