# SPDX-License-Identifier: Apache-2.0
"""Rotary frequencies, resolved once, by the engine and by exports: base, linear, factors (llama3), YaRN."""

from __future__ import annotations

import math

import numpy as np

from lilliput.architectures.program import RopeFrequencies, YarnScaling
from lilliput.arrays import DoubleArray, FloatArray
from lilliput.errors import RuntimeModelError


def inverse_frequencies(rope: RopeFrequencies, factors: FloatArray | None = None) -> tuple[DoubleArray, float]:
    """Radians per position, [rotary_dim / 2], and the magnitude of cosine and sine.

    factors: [rotary_dim / 2], divide the frequencies (GGUF's `rope_freqs.weight`); required where rope names them.
    Source: RoFormer, arXiv 2104.09864; YaRN, arXiv 2309.00071; transformers' modeling_rope_utils for the rounding.
    """
    exponents = np.arange(0, rope.rotary_dim, 2, dtype=np.float64) / rope.rotary_dim
    inverse = rope.base**-exponents / rope.linear_factor
    if factors is not None:
        if factors.shape != inverse.shape:
            raise RuntimeModelError(
                f"{rope.factors}: {factors.size} rope factors, but a rotary dimension of {rope.rotary_dim} "
                f"needs {inverse.size}"
            )
        inverse = inverse / factors.astype(np.float64)
    if rope.yarn is None:
        return inverse, 1.0
    return _interpolated_by_parts(inverse, rope, rope.yarn), _magnitude(rope.yarn)


def _interpolated_by_parts(inverse: DoubleArray, rope: RopeFrequencies, yarn: YarnScaling) -> DoubleArray:
    """Fast dimensions keep their frequency, slow ones are divided by the factor, a ramp lies between (section 3.2)."""
    low = max(math.floor(_dimension_of(yarn.beta_fast, rope, yarn)), 0)
    high = float(min(math.ceil(_dimension_of(yarn.beta_slow, rope, yarn)), rope.rotary_dim - 1))
    if high == low:
        high += 0.001  # as transformers, so that the ramp stays a ramp
    ramp = np.clip((np.arange(inverse.size) - low) / (high - low), 0.0, 1.0)
    result: DoubleArray = inverse / yarn.factor * ramp + inverse * (1.0 - ramp)
    return result


def _dimension_of(rotations: float, rope: RopeFrequencies, yarn: YarnScaling) -> float:
    """Pair index that turns `rotations` times over the original context."""
    turns = yarn.original_context / (rotations * 2.0 * math.pi)
    return rope.rotary_dim * math.log(turns) / (2.0 * math.log(rope.base))


def _magnitude(yarn: YarnScaling) -> float:
    if yarn.attention_factor is not None:
        return yarn.attention_factor
    return 0.1 * math.log(yarn.factor) + 1.0 if yarn.factor > 1.0 else 1.0
