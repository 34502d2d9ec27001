# SPDX-License-Identifier: Apache-2.0
"""Rotary frequencies beside transformers' own, for every scaling that we know."""

from __future__ import annotations

import numpy as np
import pytest

from lilliput.architectures import llama
from lilliput.architectures.rope_frequencies import inverse_frequencies
from lilliput.architectures.rope_scaling import llama3_factors

transformers = pytest.importorskip("transformers")

SCALINGS = {
    "none": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    "yarn with its own numbers": {
        "rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096, "beta_fast": 16.0,
        "beta_slow": 2.0, "attention_factor": 0.9,
    },
    "yarn on a short context": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8},
}  # fmt: skip


@pytest.mark.parametrize("name", SCALINGS)
def test_frequencies_and_magnitude_are_those_of_transformers(name: str) -> None:
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    described = {
        "model_type": "llama", "vocab_size": 32, "hidden_size": 256, "num_hidden_layers": 1, "num_attention_heads": 4,
        "head_dim": 64, "intermediate_size": 64, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0, "rope_scaling": SCALINGS[name],
    }  # fmt: skip
    config = llama.config_from_huggingface(described)
    factors = None
    if config.rope_llama3 is not None:
        factors = np.array(llama3_factors(config.rope.base, 64, config.rope_llama3), dtype=np.float32)
    inverse, magnitude = inverse_frequencies(config.rope, factors)
    parameters = {**SCALINGS[name], "rope_theta": 500000.0}
    kept = {key: value for key, value in described.items() if key not in ("model_type", "rope_theta", "rope_scaling")}
    theirs = LlamaRotaryEmbedding(transformers.LlamaConfig(**kept, rope_parameters=parameters))
    assert magnitude == pytest.approx(theirs.attention_scaling, rel=1e-6)
    # They compute in float32: power, division, interpolation, a dozen roundings of 6e-8.
    np.testing.assert_allclose(inverse, theirs.inv_freq.numpy(), rtol=1e-6)
