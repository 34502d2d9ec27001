# SPDX-License-Identifier: Apache-2.0
"""Rotary position scaling, from and to config.json and GGUF: none, linear, llama3, yarn.

"dynamic" (NTK) equals no scaling up to `max_position_embeddings`, and a longer context is refused everywhere in this
project, so it is read as none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from lilliput.architectures.architecture import Json
from lilliput.architectures.config_fields import ConfigFields
from lilliput.architectures.program import RopeFrequencies, YarnScaling

ROPE_FACTORS_TENSOR = "rope_freqs.weight"
DEFAULT_BASE = 10_000.0


def rope_from_huggingface(
    fields: ConfigFields,
    head_dim: int,
    context_length: int,
    default_base: float = DEFAULT_BASE,
    default_share: float | None = None,
) -> tuple[RopeFrequencies, Mapping[str, float] | None]:
    """Frequencies, and the llama3 parameters if that is the scaling.

    default_share: of each head that rotates; None where only the whole head may.
    Reads `rope_parameters` (transformers 5), `rope_scaling` + `rope_theta` (before). Raises UnsupportedModelError.
    """
    scaling = fields.section("rope_scaling") or fields.section("rope_parameters") or ConfigFields({}, "config.json")
    for nested in ("full_attention", "sliding_attention"):
        if scaling.has(nested):
            raise scaling.error(nested, "gives each kind of layer its own rope", "one set of values for all layers")
    base = scaling.number("rope_theta", fields.number("rope_theta", default_base))
    share = fields.number("partial_rotary_factor", 1.0 if default_share is None else default_share)
    share = scaling.number("partial_rotary_factor", share)
    if share != 1.0 and default_share is None:
        raise fields.error("partial_rotary_factor", f"is {share}", "1.0 for this family")
    rotary_dim = int(head_dim * share)
    if share != 1.0 and (rotary_dim < 2 or rotary_dim % 2 or rotary_dim > head_dim):
        raise fields.error("partial_rotary_factor", f"is {share}", f"an even part of heads of {head_dim}")
    original = fields.integer(
        "original_max_position_embeddings", scaling.integer("original_max_position_embeddings", context_length)
    )
    kind = scaling.text("rope_type", scaling.text("type", "default"))
    if kind in ("default", "none", "dynamic"):
        return RopeFrequencies(base, rotary_dim), None
    if kind == "linear":
        return RopeFrequencies(base, rotary_dim, linear_factor=scaling.number("factor")), None
    if kind == "llama3":
        llama3 = {
            "factor": scaling.number("factor"),
            "low_freq_factor": scaling.number("low_freq_factor"),
            "high_freq_factor": scaling.number("high_freq_factor"),
            "original_context": float(original),
        }
        return RopeFrequencies(base, rotary_dim, factors=ROPE_FACTORS_TENSOR), llama3
    if kind == "yarn":
        return RopeFrequencies(base, rotary_dim, yarn=_yarn_from_huggingface(scaling, original, context_length)), None
    raise scaling.error("rope_type", f"is '{kind}'", "default, linear, llama3, yarn, dynamic")


def rope_from_gguf(
    fields: ConfigFields, head_dim: int, context_length: int, *, has_factors: bool, whole_heads: bool = True
) -> RopeFrequencies:
    """Frequencies from `<family>.rope.*`.

    has_factors: the file holds `rope_freqs.weight`.  whole_heads: a rotary dimension below head_dim is an error.
    """
    rotary_dim = fields.integer("rope.dimension_count", head_dim)
    if rotary_dim > head_dim or rotary_dim % 2:
        raise fields.error("rope.dimension_count", f"is {rotary_dim}", f"an even number up to {head_dim}")
    if rotary_dim != head_dim and whole_heads:
        raise fields.error("rope.dimension_count", f"is {rotary_dim}", f"{head_dim}, the whole head, for this family")
    base = fields.number("rope.freq_base", DEFAULT_BASE)
    factors = ROPE_FACTORS_TENSOR if has_factors else None
    kind = fields.text("rope.scaling.type", "linear")
    if kind == "none":
        return RopeFrequencies(base, rotary_dim, factors=factors)
    # Old files have rope.scale_linear instead.
    factor = fields.number("rope.scaling.factor", fields.number("rope.scale_linear", 1.0))
    if kind == "linear":
        return RopeFrequencies(base, rotary_dim, linear_factor=factor, factors=factors)
    if kind != "yarn":
        raise fields.error("rope.scaling.type", f"is '{kind}'", "none, linear, yarn")
    if fields.has("rope.scaling.attn_factor"):
        attention_factor = fields.number("rope.scaling.attn_factor") * default_attention_factor(factor)
    else:
        attention_factor = fields.number("rope.scaling.yarn_attn_factor", default_attention_factor(factor))
    return RopeFrequencies(
        base,
        rotary_dim,
        factors=factors,
        yarn=YarnScaling(
            factor=factor,
            original_context=fields.integer("rope.scaling.original_context_length", context_length),
            beta_fast=fields.number("rope.scaling.yarn_beta_fast", 32.0),
            beta_slow=fields.number("rope.scaling.yarn_beta_slow", 1.0),
            attention_factor=_none_if_default(attention_factor, factor),
        ),
    )


def rope_gguf_metadata(family: str, rope: RopeFrequencies) -> dict[str, Json]:
    """The `<family>.rope.*` keys."""
    prefix = f"{family}.rope."
    metadata: dict[str, Json] = {
        prefix + "dimension_count": rope.rotary_dim,
        prefix + "freq_base": rope.base,
    }
    if rope.linear_factor != 1.0:
        metadata[prefix + "scaling.type"] = "linear"
        metadata[prefix + "scaling.factor"] = rope.linear_factor
    if rope.yarn is not None:
        yarn = rope.yarn
        metadata[prefix + "scaling.type"] = "yarn"
        metadata[prefix + "scaling.factor"] = yarn.factor
        metadata[prefix + "scaling.original_context_length"] = yarn.original_context
        if yarn.attention_factor is not None:
            metadata[prefix + "scaling.yarn_attn_factor"] = yarn.attention_factor
            # llama.cpp replaces yarn_attn_factor by its default and multiplies by this one.
            metadata[prefix + "scaling.attn_factor"] = yarn.attention_factor / default_attention_factor(yarn.factor)
        metadata[prefix + "scaling.yarn_beta_fast"] = yarn.beta_fast
        metadata[prefix + "scaling.yarn_beta_slow"] = yarn.beta_slow
    return metadata


def llama3_factors(base: float, head_dim: int, llama3: Mapping[str, float]) -> tuple[float, ...]:
    """[head_dim / 2] divisors of the inverse frequencies: 1 for short wavelengths, `factor` for long ones.

    In float32 throughout, as llama.cpp's converter computes the `rope_freqs` tensor.
    llama3: factor, low_freq_factor, high_freq_factor, original_context (tokens).
    """
    one = np.float32(1.0)
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    wavelengths = np.float32(2 * math.pi) / (one / np.float32(base) ** exponents)
    factor, low, high = (np.float32(llama3[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    context = np.float32(llama3["original_context"])
    smooth = (context / wavelengths - low) / (high - low)
    between = one / ((one - smooth) / factor + smooth)
    factors = np.where(wavelengths < context / high, one, np.where(wavelengths > context / low, factor, between))
    return tuple(float(value) for value in factors)


def default_attention_factor(factor: float) -> float:
    """YaRN's magnitude of cos and sin when none is given (arXiv 2309.00071, equation 22)."""
    return 0.1 * math.log(factor) + 1.0 if factor > 1.0 else 1.0


def _yarn_from_huggingface(scaling: ConfigFields, original: int, context_length: int) -> YarnScaling:
    if not scaling.boolean("truncate", default=True):
        raise scaling.error("truncate", "is false", "true (whole dimensions at the ends of yarn's ramp)")
    factor = scaling.number("factor", context_length / original)
    attention_factor = scaling.number("attention_factor", _magnitude(scaling, factor))
    return YarnScaling(
        factor=factor,
        original_context=original,
        beta_fast=scaling.number("beta_fast", 32.0),
        beta_slow=scaling.number("beta_slow", 1.0),
        attention_factor=_none_if_default(attention_factor, factor),
    )


def _magnitude(scaling: ConfigFields, factor: float) -> float:
    """DeepSeek's ratio of two magnitudes where the config has both, else the default."""
    if not (scaling.value("mscale") and scaling.value("mscale_all_dim")):
        return default_attention_factor(factor)
    log_factor = 0.1 * math.log(max(factor, 1.0))
    return (scaling.number("mscale") * log_factor + 1.0) / (scaling.number("mscale_all_dim") * log_factor + 1.0)


def _none_if_default(attention_factor: float, factor: float) -> float | None:
    # Files hold float32, so the default comes back with a relative error of up to 2^-24.
    is_default = math.isclose(attention_factor, default_attention_factor(factor), rel_tol=2.0**-22)
    return None if is_default else attention_factor
