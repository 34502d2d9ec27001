# SPDX-License-Identifier: Apache-2.0
"""Hyper-parameters of decoders, from config.json and from and to GGUF: what Llama and those after it share.

A family's file says what its config.json means where it differs; `layout` and `decoder_program` do the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from lilliput.architectures.architecture import NO_ROPE, Json, ModelConfig
from lilliput.architectures.config_fields import ConfigFields
from lilliput.architectures.layout import EMBEDDING, OUTPUT, Layout
from lilliput.architectures.program import Activation
from lilliput.architectures.rope_scaling import (
    DEFAULT_BASE,
    ROPE_FACTORS_TENSOR,
    rope_from_gguf,
    rope_from_huggingface,
    rope_gguf_metadata,
)
from lilliput.errors import UnsupportedModelError


@dataclass(frozen=True, slots=True)
class HuggingFaceDefaults:
    """What the family's config class assumes where config.json is silent.

    kv_heads, head_dim: None means as many as heads, hidden_size / heads.
    activation, activation_field, epsilon, epsilon_field: of the ffn and the norms, and what the class calls them.
    rotary_share: part of each head that rotates where config.json does not say; None where it is always the whole.
    """

    context_length: int
    kv_heads: int | None = None
    head_dim: int | None = None
    sliding_window: int | None = None
    tied: bool = False
    rope_base: float = DEFAULT_BASE
    rotary_share: float | None = None
    activation: str = "silu"
    activation_field: str = "hidden_act"
    epsilon: float = 1e-6
    epsilon_field: str = "rms_norm_eps"


@dataclass(frozen=True, slots=True)
class Biases:
    """Which linears of a block have a bias: q, k and v; the attention output; those of the ffn."""

    attention: bool = False
    output: bool = False
    ffn: bool = False


EVERYWHERE = Biases(attention=True, output=True, ffn=True)
# transformers' names of activations -> ours.
_ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}

_EPSILON_KEYS = {"rms": "attention.layer_norm_rms_epsilon", "layer": "attention.layer_norm_epsilon"}
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
    "draft_vocab_size": (None,),
    "no_rope_layers": (None, []),
    "attention_sinks": (None, False),
    "parallel_attn": (None, False),
}


def read_huggingface(
    config: Mapping[str, Json], family: str, layout: Layout, defaults: HuggingFaceDefaults, biases: Biases
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
    rope, llama3 = NO_ROPE, None
    if layout.rope is not None:
        base, share = defaults.rope_base, defaults.rotary_share
        rope, llama3 = rope_from_huggingface(fields, head_dim, context_length, base, share)
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
        norm_epsilon=fields.number(defaults.epsilon_field, defaults.epsilon),
        rope=rope,
        tied=fields.boolean("tie_word_embeddings", default=defaults.tied),
        attention_bias=biases.attention,
        output_bias=biases.output,
        ffn_bias=biases.ffn,
        activation=_activation(fields, layout, defaults),
        sliding_window=_sliding_window(fields, defaults.sliding_window),
        rope_llama3=llama3,
    )


def without(config: Mapping[str, Json], *names: str) -> dict[str, Json]:
    """The same without fields that a family reads itself, or that its class ignores."""
    return {name: value for name, value in config.items() if name not in names}


def renamed(config: Mapping[str, Json], names: Mapping[str, str]) -> dict[str, Json]:
    """The same with a class's own names of fields replaced by the usual ones, which they overrule."""
    own = {usual: config[name] for name, usual in names.items() if name in config}
    return {name: value for name, value in config.items() if name not in names} | own


def with_experts(
    config: ModelConfig, fields: ConfigFields, counts: tuple[str, ...], *, default: tuple[int, int], normalizes: bool
) -> ModelConfig:
    """The same with experts.

    counts: names that the field of their number has.  default: experts, and used ones, where config.json is silent.
    """
    name = next((name for name in counts if fields.has(name)), counts[0])
    experts = fields.integer(name, default[0])
    found = _used_experts(fields, "num_experts_per_tok", experts, default[1])
    return replace(config, experts=experts, used_experts=found, normalizes_experts=normalizes)


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
    for name, neutral in _NEUTRAL_VALUES.items():
        if fields.value(name) not in neutral:
            raise fields.error(name, f"is {fields.value(name)!r}", f"{neutral[-1]!r} or absent, for this family")
    classes = fields.value("architectures")
    heads = ("ForCausalLM", "LMHeadModel")
    if isinstance(classes, list) and classes and not any(str(name).endswith(heads) for name in classes):
        raise fields.error("architectures", f"is {classes[0]}", "models that predict the next token (…ForCausalLM)")


def read_gguf(
    metadata: Mapping[str, Json], family: str, shapes: Mapping[str, tuple[int, ...]], layout: Layout
) -> ModelConfig:
    """Read `<family>.*` keys; what GGUF keeps no key for is told by the tensors.

    shapes: canonical name -> [out, in] of every tensor in the file.
    """
    fields = ConfigFields(metadata, "GGUF metadata", f"{family}.")
    experts = fields.integer("expert_count") if fields.value("expert_count") else 0
    if bool(experts) != (layout.experts is not None):
        allowed = "1 or more" if layout.experts is not None else "0 (no experts) for this family"
        raise fields.error("expert_count", f"is {experts}", allowed)
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
    rope = NO_ROPE
    if layout.rope is not None:
        whole = layout.rotates_whole_heads
        has_factors = ROPE_FACTORS_TENSOR in shapes
        rope = rope_from_gguf(fields, head_dim, context_length, has_factors=has_factors, whole_heads=whole)
    return ModelConfig(
        family=family,
        vocab_size=embedding[0] or fields.integer("vocab_size"),
        context_length=context_length,
        hidden_size=hidden_size,
        layers=layers,
        heads=heads,
        kv_heads=fields.integer("attention.head_count_kv", heads),
        head_dim=head_dim,
        ffn_size=fields.integer("expert_feed_forward_length", fields.integer("feed_forward_length")),
        norm_epsilon=fields.number(_EPSILON_KEYS[layout.norm]),
        rope=rope,
        tied=OUTPUT not in shapes,
        attention_bias="blk.0.attn_q.bias" in shapes or "blk.0.attn_qkv.bias" in shapes,
        output_bias="blk.0.attn_output.bias" in shapes,
        ffn_bias="blk.0.ffn_down.bias" in shapes,
        head_bias="output.bias" in shapes,
        activation=_gguf_activation(fields, layout),
        experts=experts,
        used_experts=_used_experts(fields, "expert_used_count", experts),
        normalizes_experts=fields.boolean("expert_weights_norm", default=True),
        attention_scale=_optional(fields, "attention.scale"),
        attention_softcap=_optional(fields, "attn_logit_softcapping"),
        output_softcap=_optional(fields, "final_logit_softcapping"),
        sliding_window=window,
        windowed_layers=windowed_layers,
    )


def gguf_metadata(config: ModelConfig, layout: Layout) -> dict[str, Json]:
    """The `<family>.*` keys, in the order llama.cpp's converter writes them.

    Where GGUF has no key for something, it is written under one that says it, which llama.cpp ignores.
    """
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
        prefix + _EPSILON_KEYS[layout.norm]: config.norm_epsilon,
    }
    for name, value in (
        ("attention.scale", config.attention_scale),
        ("attn_logit_softcapping", config.attention_softcap),
        ("final_logit_softcapping", config.output_softcap),
    ):
        if value is not None:
            metadata[prefix + name] = value
    if config.experts:
        metadata[prefix + "expert_count"] = config.experts
        metadata[prefix + "expert_used_count"] = config.used_experts
        metadata[prefix + "expert_feed_forward_length"] = config.ffn_size
        metadata[prefix + "expert_weights_norm"] = config.normalizes_experts
    if config.activation != layout.activations[0]:
        metadata[prefix + "feed_forward_activation"] = config.activation
    if config.sliding_window is not None:
        # llama.cpp attends to everything in these families and ignores the keys; our own engine reads them.
        metadata[prefix + "attention.sliding_window"] = config.sliding_window
        if config.windowed_layers is not None:
            pattern: list[Json] = [layer in config.windowed_layers for layer in range(config.layers)]
            metadata[prefix + "attention.sliding_window_pattern"] = pattern
    if layout.rope is not None:
        metadata.update(rope_gguf_metadata(config.family, config.rope))
    return metadata


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


def _activation(fields: ConfigFields, layout: Layout, defaults: HuggingFaceDefaults) -> Activation:
    name = fields.text(defaults.activation_field, defaults.activation)
    activation = _ACTIVATIONS.get(name)
    if activation is None or activation not in layout.activations:
        known = ", ".join(name for name, ours in _ACTIVATIONS.items() if ours in layout.activations)
        raise fields.error(defaults.activation_field, f"is '{name}'", known)
    return activation


def _gguf_activation(fields: ConfigFields, layout: Layout) -> Activation:
    name = fields.text("feed_forward_activation", layout.activations[0])
    for activation in layout.activations:
        if activation == name:
            return activation
    raise fields.error("feed_forward_activation", f"is '{name}'", ", ".join(layout.activations))


def _optional(fields: ConfigFields, name: str) -> float | None:
    # Zero means none to llama.cpp too.
    return fields.number(name) if fields.value(name) else None


def _used_experts(fields: ConfigFields, name: str, experts: int, default: int | None = None) -> int:
    if not experts:
        return 0
    used = fields.integer(name, default)
    if used > experts:
        raise fields.error(name, f"is {used}", f"up to the {experts} experts")
    return used
