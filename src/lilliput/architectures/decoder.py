# SPDX-License-Identifier: Apache-2.0
"""The decoder that Llama, Mistral, Qwen2 and Qwen3 share: pre-norm blocks of rotary attention and a gated ffn.

A family's file says what its config.json means and how its GGUF orders rows; the rest is here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from lilliput.architectures.architecture import Json, ModelConfig, TensorEntry
from lilliput.architectures.config_fields import ConfigFields
from lilliput.architectures.program import (
    Add,
    Attention,
    Embed,
    Glu,
    KvState,
    Linear,
    Operation,
    Program,
    RmsNorm,
    Rope,
    SelectOutputRows,
)
from lilliput.architectures.rope_scaling import (
    DEFAULT_BASE,
    ROPE_FACTORS_TENSOR,
    llama3_factors,
    rope_from_gguf,
    rope_from_huggingface,
    rope_gguf_metadata,
)
from lilliput.architectures.sources import Computed, Named, PermutedHeads, Source
from lilliput.errors import UnsupportedModelError
from lilliput.records import Role

EMBEDDING = "token_embd.weight"
OUTPUT = "output.weight"
RopeStyle = Literal["adjacent", "halves"]


@dataclass(frozen=True, slots=True)
class HuggingFaceDefaults:
    """What the family's config class assumes where config.json is silent.

    kv_heads, head_dim: None means as many as heads, hidden_size / heads.
    """

    context_length: int
    kv_heads: int | None = None
    head_dim: int | None = None
    sliding_window: int | None = None
    tied: bool = False
    rope_base: float = DEFAULT_BASE


@dataclass(frozen=True, slots=True)
class Biases:
    """Which linears of a block have a bias: q, k and v; the attention output; the three of the ffn."""

    attention: bool = False
    output: bool = False
    ffn: bool = False


# Fields that change the arithmetic of checkpoints with custom code, and the values under which they change nothing.
_NEUTRAL_VALUES: Mapping[str, tuple[Json, ...]] = {
    "attn_logit_softcapping": (None, 0, 0.0),
    "final_logit_softcapping": (None, 0, 0.0),
    "attention_multiplier": (None,),
    "embedding_multiplier": (None, 1, 1.0),
    "residual_multiplier": (None, 1, 1.0),
    "logits_scaling": (None, 1, 1.0),
    "logit_scale": (None, 1, 1.0),
    "clip_qkv": (None,),
    "use_mrope": (None, False),
    "use_qk_norm": (None, False),
    "qk_layernorm": (None, False),
    "is_causal": (None, True),
    "use_bidirectional_attention": (None, False),
    "num_experts": (None, 0, 1),
    "num_local_experts": (None, 0, 1),
    "n_routed_experts": (None, 0, 1),
    "num_nextn_predict_layers": (None, 0),
    "draft_vocab_size": (None,),
    "no_rope_layers": (None, []),
    "attention_sinks": (None, False),
    "parallel_attn": (None, False),
}


def read_huggingface(
    config: Mapping[str, Json], family: str, defaults: HuggingFaceDefaults, biases: Biases, *, qk_norm: bool = False
) -> ModelConfig:
    """Read a config.json of this decoder. Raises UnsupportedModelError naming the field that has no equivalent here.

    The sliding window is read for all layers; a family whose layers differ narrows it (`windowed_layers`).
    """
    fields = ConfigFields(config, "config.json")
    refuse_other_arithmetic(fields)
    hidden_size = fields.integer("hidden_size")
    heads = fields.integer("num_attention_heads")
    context_length = fields.integer("max_position_embeddings", defaults.context_length)
    head_dim = fields.integer("head_dim", _head_dim(fields, hidden_size, heads, defaults.head_dim))
    kv_heads = _kv_heads(fields, heads, defaults.kv_heads)
    rope, llama3 = rope_from_huggingface(fields, head_dim, context_length, defaults.rope_base)
    return ModelConfig(
        family=family,
        vocab_size=fields.integer("vocab_size"),
        context_length=context_length,
        hidden_size=hidden_size,
        layers=fields.integer("num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn_size=fields.integer("intermediate_size"),
        norm_epsilon=fields.number("rms_norm_eps", 1e-6),
        rope=rope,
        tied=fields.boolean("tie_word_embeddings", default=defaults.tied),
        attention_bias=biases.attention,
        output_bias=biases.output,
        ffn_bias=biases.ffn,
        qk_norm=qk_norm,
        sliding_window=_sliding_window(fields, defaults.sliding_window),
        rope_llama3=llama3,
    )


def without_rope_factors(config: ModelConfig) -> ModelConfig:
    """The same, for families whose GGUF holds no `rope_freqs.weight`: UnsupportedModelError for llama3 scaling."""
    if config.rope.factors is not None:
        raise UnsupportedModelError(
            f"config.json: rope_type is 'llama3', which {config.family}'s GGUF has no tensor for; "
            "supported: default, linear, yarn, dynamic"
        )
    return config


def refuse_other_arithmetic(fields: ConfigFields) -> None:
    """Raise UnsupportedModelError for fields that this decoder has no operation for."""
    activation = fields.text("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise fields.error("hidden_act", f"is '{activation}'", "silu")
    for name, neutral in _NEUTRAL_VALUES.items():
        if fields.value(name) not in neutral:
            raise fields.error(name, f"is {fields.value(name)!r}", f"{neutral[-1]!r} or absent, for this family")
    classes = fields.value("architectures")
    if isinstance(classes, list) and classes and not any(str(name).endswith("ForCausalLM") for name in classes):
        raise fields.error("architectures", f"is {classes[0]}", "models that predict the next token (…ForCausalLM)")


def read_gguf(
    metadata: Mapping[str, Json], family: str, shapes: Mapping[str, tuple[int, ...]], *, qk_norm: bool = False
) -> ModelConfig:
    """Read `<family>.*` keys; what GGUF keeps no key for is told by the tensors.

    shapes: canonical name -> [out, in] of every tensor in the file.
    """
    fields = ConfigFields(metadata, "GGUF metadata", f"{family}.")
    if fields.has("expert_count") and fields.value("expert_count") != 0:
        raise fields.error("expert_count", f"is {fields.value('expert_count')}", "0 (no experts) for this family")
    hidden_size = fields.integer("embedding_length")
    heads = fields.integer("attention.head_count")
    context_length = fields.integer("context_length")
    head_dim = fields.integer("attention.key_length", _head_dim(fields, hidden_size, heads, None))
    value_dim = fields.integer("attention.value_length", head_dim)
    if value_dim != head_dim:
        raise fields.error("attention.value_length", f"is {value_dim}", f"{head_dim}, the key length")
    layers = fields.integer("block_count")
    window, windowed_layers = _gguf_windows(fields, layers)
    embedding = shapes.get(EMBEDDING, (0, 0))
    return ModelConfig(
        family=family,
        vocab_size=embedding[0] or fields.integer("vocab_size"),
        context_length=context_length,
        hidden_size=hidden_size,
        layers=layers,
        heads=heads,
        kv_heads=fields.integer("attention.head_count_kv", heads),
        head_dim=head_dim,
        ffn_size=fields.integer("feed_forward_length"),
        norm_epsilon=fields.number("attention.layer_norm_rms_epsilon"),
        rope=rope_from_gguf(fields, head_dim, context_length, has_factors=ROPE_FACTORS_TENSOR in shapes),
        tied=OUTPUT not in shapes,
        attention_bias="blk.0.attn_q.bias" in shapes,
        output_bias="blk.0.attn_output.bias" in shapes,
        ffn_bias="blk.0.ffn_down.bias" in shapes,
        qk_norm=qk_norm,
        sliding_window=window,
        windowed_layers=windowed_layers,
    )


def gguf_metadata(config: ModelConfig) -> dict[str, Json]:
    """The `<family>.*` keys, in the order llama.cpp's converter writes them."""
    prefix = f"{config.family}."
    metadata: dict[str, Json] = {
        prefix + "vocab_size": config.vocab_size,
        prefix + "context_length": config.context_length,
        prefix + "embedding_length": config.hidden_size,
        prefix + "block_count": config.layers,
        prefix + "feed_forward_length": config.ffn_size,
        prefix + "attention.head_count": config.heads,
        prefix + "attention.head_count_kv": config.kv_heads,
        prefix + "attention.key_length": config.head_dim,
        prefix + "attention.value_length": config.head_dim,
        prefix + "attention.layer_norm_rms_epsilon": config.norm_epsilon,
    }
    if config.sliding_window is not None:
        # llama.cpp attends to everything in these families and ignores the keys; our own engine reads them.
        metadata[prefix + "attention.sliding_window"] = config.sliding_window
        if config.windowed_layers is not None:
            pattern: list[Json] = [layer in config.windowed_layers for layer in range(config.layers)]
            metadata[prefix + "attention.sliding_window_pattern"] = pattern
    metadata.update(rope_gguf_metadata(config.family, config.rope))
    return metadata


def tensor_table(config: ModelConfig, style: RopeStyle) -> tuple[TensorEntry, ...]:
    """Every tensor in file order. With adjacent rope, q and k rows are permuted from transformers' halves."""
    vocabulary = (config.vocab_size, config.hidden_size)
    entries: list[TensorEntry] = []
    if config.rope.factors is not None:
        source: Source = Named(config.rope.factors)
        if config.rope_llama3 is not None:
            source = Computed(llama3_factors(config.rope.base, config.rope.rotary_dim, config.rope_llama3))
        entries.append(TensorEntry(config.rope.factors, source, (config.rope.rotary_dim // 2,), Role.ROPE))
    entries.append(TensorEntry(EMBEDDING, Named("model.embed_tokens.weight"), vocabulary, Role.TOKEN_EMBEDDING))
    for layer in range(config.layers):
        entries.extend(_attention_entries(config, layer, style))
        entries.extend(_ffn_entries(config, layer))
    norm_shape = (config.hidden_size,)
    entries.append(TensorEntry("output_norm.weight", Named("model.norm.weight"), norm_shape, Role.NORM))
    output_source = Named("model.embed_tokens.weight" if config.tied else "lm_head.weight")
    tied_to = EMBEDDING if config.tied else None
    entries.append(TensorEntry(OUTPUT, output_source, vocabulary, Role.OUTPUT, input_group="output", tied_to=tied_to))
    return tuple(entries)


def program(config: ModelConfig, style: RopeStyle) -> Program:
    """The forward pass. Rows whose logits nobody asked for are dropped before the last ffn."""
    q_width, kv_width = config.heads * config.head_dim, config.kv_heads * config.head_dim
    hidden = config.hidden_size
    buffers = {
        "residual": hidden,
        "selected": hidden,
        "normed": hidden,
        "q": q_width,
        "k": kv_width,
        "v": kv_width,
        "attention": q_width,
        "attention_output": hidden,
        "gate": config.ffn_size,
        "up": config.ffn_size,
        "activated": config.ffn_size,
        "ffn_output": hidden,
        "logits": config.vocab_size,
    }
    if config.qk_norm:
        buffers |= {"q_projected": q_width, "k_projected": kv_width}
    operations: list[Operation] = [Embed("residual", EMBEDDING)]
    residual = "residual"
    for layer in range(config.layers):
        operations.extend(_attention_operations(config, layer, style))
        if layer == config.layers - 1:
            operations.append(SelectOutputRows("selected", "residual"))
            residual = "selected"
        operations.extend(_ffn_operations(config, layer, residual))
    operations.append(RmsNorm("normed", residual, "output_norm.weight", config.norm_epsilon))
    operations.append(Linear("logits", "normed", EMBEDDING if config.tied else OUTPUT))
    states = tuple(KvState(layer, config.kv_heads, config.head_dim) for layer in range(config.layers))
    return Program(buffers, states, tuple(operations), "logits")


def _head_dim(fields: ConfigFields, hidden_size: int, heads: int, default: int | None) -> int:
    if default is not None:
        return default
    if hidden_size % heads and not (fields.has("head_dim") or fields.has("attention.key_length")):
        raise fields.error(
            "head_dim", "is missing", f"a value, as hidden size {hidden_size} is not {heads} equal heads"
        )
    return hidden_size // heads


def _kv_heads(fields: ConfigFields, heads: int, default: int | None) -> int:
    # An explicit null means "as many as heads" even where the class has another default.
    fallback = heads if default is None or fields.is_written("num_key_value_heads") else default
    kv_heads = fields.integer("num_key_value_heads", fallback)
    if heads % kv_heads:
        raise fields.error("num_key_value_heads", f"is {kv_heads}", f"a divisor of {heads} heads")
    return kv_heads


def _sliding_window(fields: ConfigFields, default: int | None) -> int | None:
    if fields.has("sliding_window"):
        return fields.integer("sliding_window")
    return None if fields.is_written("sliding_window") else default


def _gguf_windows(fields: ConfigFields, layers: int) -> tuple[int | None, tuple[int, ...] | None]:
    """The window, and which layers have one when not all do."""
    if not fields.value("attention.sliding_window"):
        return None, None
    window = fields.integer("attention.sliding_window")
    pattern = fields.value("attention.sliding_window_pattern")
    if pattern is None:
        return window, None
    if not isinstance(pattern, list) or len(pattern) != layers:
        raise fields.error("attention.sliding_window_pattern", f"is {pattern!r}", f"{layers} booleans, one a layer")
    return window, tuple(layer for layer, windowed in enumerate(pattern) if windowed)


def _attention_entries(config: ModelConfig, layer: int, style: RopeStyle) -> Iterator[TensorEntry]:
    ours, theirs = f"blk.{layer}", f"model.layers.{layer}"
    hidden, q_width, kv_width = config.hidden_size, config.heads * config.head_dim, config.kv_heads * config.head_dim

    def rotated(name: str, heads: int) -> Source:
        return PermutedHeads(name, heads) if style == "adjacent" else Named(name)

    yield TensorEntry(f"{ours}.attn_norm.weight", Named(f"{theirs}.input_layernorm.weight"), (hidden,), Role.NORM)
    for ours_part, their_part, heads, width, role in (
        ("attn_q", "q_proj", config.heads, q_width, Role.ATTENTION_Q),
        ("attn_k", "k_proj", config.kv_heads, kv_width, Role.ATTENTION_K),
        ("attn_v", "v_proj", None, kv_width, Role.ATTENTION_V),
    ):
        for kind in ("weight", "bias") if config.attention_bias else ("weight",):
            their_name = f"{theirs}.self_attn.{their_part}.{kind}"
            source = Named(their_name) if heads is None else rotated(their_name, heads)
            if kind == "bias":
                yield TensorEntry(f"{ours}.{ours_part}.bias", source, (width,), Role.BIAS)
            else:
                yield TensorEntry(
                    f"{ours}.{ours_part}.weight", source, (width, hidden), role, f"{ours}.attn_input", f"{ours}.qkv"
                )
    if config.qk_norm:
        for part in ("q", "k"):
            name, source = f"{ours}.attn_{part}_norm.weight", Named(f"{theirs}.self_attn.{part}_norm.weight")
            yield TensorEntry(name, source, (config.head_dim,), Role.NORM)
    output = f"{theirs}.self_attn.o_proj"
    yield TensorEntry(
        f"{ours}.attn_output.weight",
        Named(f"{output}.weight"),
        (hidden, q_width),
        Role.ATTENTION_OUTPUT,
        f"{ours}.attn_output_input",
    )
    if config.output_bias:
        yield TensorEntry(f"{ours}.attn_output.bias", Named(f"{output}.bias"), (hidden,), Role.BIAS)


def _ffn_entries(config: ModelConfig, layer: int) -> Iterator[TensorEntry]:
    ours, theirs = f"blk.{layer}", f"model.layers.{layer}"
    hidden, ffn = config.hidden_size, config.ffn_size
    norm = Named(f"{theirs}.post_attention_layernorm.weight")
    yield TensorEntry(f"{ours}.ffn_norm.weight", norm, (hidden,), Role.NORM)
    pair_input, pair = f"{ours}.ffn_input", f"{ours}.gate_up"
    for part, shape, role, input_group, runtime_group in (
        ("gate", (ffn, hidden), Role.FFN_GATE, pair_input, pair),
        ("up", (ffn, hidden), Role.FFN_UP, pair_input, pair),
        ("down", (hidden, ffn), Role.FFN_DOWN, f"{ours}.ffn_down_input", None),
    ):
        name, source = f"{ours}.ffn_{part}", f"{theirs}.mlp.{part}_proj"
        yield TensorEntry(f"{name}.weight", Named(f"{source}.weight"), shape, role, input_group, runtime_group)
        if config.ffn_bias:
            yield TensorEntry(f"{name}.bias", Named(f"{source}.bias"), shape[:1], Role.BIAS)


def _attention_operations(config: ModelConfig, layer: int, style: RopeStyle) -> Iterator[Operation]:
    block = f"blk.{layer}"

    def linear(out: str, x: str, part: str, *, bias: bool) -> Linear:
        return Linear(out, x, f"{block}.{part}.weight", f"{block}.{part}.bias" if bias else None)

    yield RmsNorm("normed", "residual", f"{block}.attn_norm.weight", config.norm_epsilon)
    suffix = "_projected" if config.qk_norm else ""
    yield linear("q" + suffix, "normed", "attn_q", bias=config.attention_bias)
    yield linear("k" + suffix, "normed", "attn_k", bias=config.attention_bias)
    yield linear("v", "normed", "attn_v", bias=config.attention_bias)
    for part, heads in (("q", config.heads), ("k", config.kv_heads)):
        if config.qk_norm:
            weight = f"{block}.attn_{part}_norm.weight"
            yield RmsNorm(part, part + suffix, weight, config.norm_epsilon, groups=heads)
        if config.rope_layers is None or layer in config.rope_layers:
            yield Rope(part, heads, config.head_dim, config.rope, style)
    is_windowed = config.windowed_layers is None or layer in config.windowed_layers
    yield Attention(
        out="attention",
        q="q",
        k="k",
        v="v",
        layer=layer,
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        scale=1.0 / math.sqrt(config.head_dim),
        window=config.sliding_window if is_windowed else None,
    )
    yield linear("attention_output", "attention", "attn_output", bias=config.output_bias)
    yield Add("residual", "residual", "attention_output")


def _ffn_operations(config: ModelConfig, layer: int, residual: str) -> Iterator[Operation]:
    block = f"blk.{layer}"

    def linear(out: str, x: str, part: str) -> Linear:
        return Linear(out, x, f"{block}.{part}.weight", f"{block}.{part}.bias" if config.ffn_bias else None)

    yield RmsNorm("normed", residual, f"{block}.ffn_norm.weight", config.norm_epsilon)
    yield linear("gate", "normed", "ffn_gate")
    yield linear("up", "normed", "ffn_up")
    yield Glu("activated", "gate", "up", "silu")
    yield linear("ffn_output", "activated", "ffn_down")
    yield Add(residual, residual, "ffn_output")
