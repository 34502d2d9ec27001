# SPDX-License-Identifier: Apache-2.0
"""What a Program means: a plain float64 interpreter, one method per operation, no cache and no fusing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lilliput.architectures.architecture import Computed, PermutedHeads, Source, TensorEntry
from lilliput.architectures.program import (
    Add,
    Attention,
    Embed,
    Glu,
    Linear,
    Program,
    RmsNorm,
    Rope,
    RopeFrequencies,
    SelectOutputRows,
)

Values = NDArray[np.float64]


def canonical_tensors(
    table: Sequence[TensorEntry], checkpoint: Mapping[str, NDArray[np.float32]]
) -> dict[str, NDArray[np.float32]]:
    """The tensors of a table, made from a Hugging Face checkpoint by its source expressions."""
    tensors = {}
    for entry in table:
        if entry.tied_to is None:
            tensor = _from_source(entry.source, checkpoint)
            assert tensor.shape == entry.shape, entry.name
            tensors[entry.name] = tensor
    return tensors


def run_program(program: Program, tensors: Mapping[str, NDArray[np.float32]], tokens: Sequence[int]) -> Values:
    """Float64 logits [tokens, vocab_size] of one sequence from position 0."""
    buffers: dict[str, Values] = {}
    for operation in program.operations:
        match operation:
            case Embed(out, weight, scale):
                buffers[out] = scale * tensors[weight].astype(np.float64)[np.asarray(tokens)]
            case RmsNorm(out, x, weight, epsilon, groups):
                parts = buffers[x].reshape(len(tokens), groups, -1)
                scale = 1 / np.sqrt(np.mean(parts**2, axis=-1, keepdims=True) + epsilon)
                buffers[out] = (parts * scale * tensors[weight]).reshape(buffers[x].shape)
            case Linear(out, x, weight, bias):
                buffers[out] = buffers[x] @ tensors[weight].astype(np.float64).T
                if bias is not None:
                    buffers[out] = buffers[out] + tensors[bias]
            case Rope():
                buffers[operation.x] = _rope(operation, buffers[operation.x], tensors)
            case Attention():
                q, k, v = (buffers[name] for name in (operation.q, operation.k, operation.v))
                buffers[operation.out] = _attention(operation, q, k, v)
            case Glu(out, gate, up, activation):
                assert activation == "silu"
                buffers[out] = buffers[gate] / (1 + np.exp(-buffers[gate])) * buffers[up]
            case Add(out, a, b):
                buffers[out] = buffers[a] + buffers[b]
            case SelectOutputRows(out, x):
                buffers[out] = buffers[x]
    for name, width in program.buffers.items():
        assert name not in buffers or buffers[name].shape[1] == width, name
    return buffers[program.output]


def inverse_frequencies(rope: RopeFrequencies, tensors: Mapping[str, NDArray[np.float32]]) -> tuple[Values, float]:
    """[rotary_dim / 2] angles per position, and the factor on cos and sin."""
    dims = np.arange(rope.rotary_dim // 2, dtype=np.float64)
    frequencies = rope.base ** (-2 * dims / rope.rotary_dim) / rope.linear_factor
    if rope.factors is not None:
        frequencies = frequencies / tensors[rope.factors]
    if rope.yarn is None:
        return frequencies, 1.0
    yarn = rope.yarn

    def dimension(rotations: float) -> float:
        """The pair of dimensions that turns `rotations` times in the original context."""
        return rope.rotary_dim * math.log(yarn.original_context / (rotations * 2 * math.pi)) / (2 * math.log(rope.base))

    low = max(math.floor(dimension(yarn.beta_fast)), 0)
    high = min(math.ceil(dimension(yarn.beta_slow)), rope.rotary_dim - 1)
    interpolated = np.clip((dims - low) / max(high - low, 0.001), 0, 1)
    magnitude = yarn.attention_factor
    if magnitude is None:
        magnitude = 0.1 * math.log(yarn.factor) + 1
    return frequencies * (1 - interpolated) + frequencies / yarn.factor * interpolated, magnitude


def _from_source(source: Source, checkpoint: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    if isinstance(source, Computed):
        return np.array(source.values, dtype=np.float32)
    tensor = checkpoint[source.name]
    if isinstance(source, PermutedHeads):
        halves = tensor.reshape(source.heads, 2, -1, *tensor.shape[1:])
        return halves.swapaxes(1, 2).reshape(tensor.shape)
    return tensor


def _rope(operation: Rope, x: Values, tensors: Mapping[str, NDArray[np.float32]]) -> Values:
    frequencies, magnitude = inverse_frequencies(operation.frequencies, tensors)
    angles = np.arange(len(x))[:, None, None] * frequencies
    cos, sin = magnitude * np.cos(angles), magnitude * np.sin(angles)
    heads = x.reshape(len(x), operation.heads, operation.head_dim).copy()
    half, rotary = operation.frequencies.rotary_dim // 2, operation.frequencies.rotary_dim
    if operation.style == "adjacent":
        first, second = slice(0, rotary, 2), slice(1, rotary, 2)
    else:
        first, second = slice(0, half), slice(half, rotary)
    a, b = heads[..., first].copy(), heads[..., second].copy()
    heads[..., first], heads[..., second] = a * cos - b * sin, a * sin + b * cos
    return heads.reshape(x.shape)


def _attention(operation: Attention, q: Values, k: Values, v: Values) -> Values:
    tokens, shared = len(q), operation.heads // operation.kv_heads
    split = (tokens, -1, operation.head_dim)
    queries = q.reshape(split).swapaxes(0, 1)
    keys, values = (np.repeat(x.reshape(split).swapaxes(0, 1), shared, axis=0) for x in (k, v))
    scores = operation.scale * queries @ keys.swapaxes(1, 2)
    if operation.softcap is not None:
        scores = operation.softcap * np.tanh(scores / operation.softcap)
    age = np.arange(tokens)[:, None] - np.arange(tokens)[None, :]
    hidden = age < 0
    if operation.window is not None:
        hidden |= age >= operation.window
    scores = np.where(hidden, -np.inf, scores)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return (weights @ values).swapaxes(0, 1).reshape(tokens, -1)
