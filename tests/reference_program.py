# SPDX-License-Identifier: Apache-2.0
"""What each operation of a Program means, in numpy at any precision: the oracle of the native engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray

from lilliput.architectures.program import (
    Activate,
    Add,
    Attention,
    CrossAttention,
    Embed,
    Experts,
    Glu,
    LayerNorm,
    Linear,
    Operation,
    Program,
    RmsNorm,
    Rope,
    Scale,
    SelectOutputRows,
    Share,
    Softcap,
)
from lilliput.architectures.relative_bias import distance_buckets
from lilliput.architectures.rope_frequencies import inverse_frequencies
from lilliput.formats import get_format
from lilliput.records import QuantizedTensor

Numbers = NDArray[np.floating]


@dataclass
class ProgramSource:
    """A stand-in for an opened model: a program and its tensors, nothing else.

    rounded: what becomes of each operation's result, given its number.
    """

    program: Program
    tensors: Mapping[str, QuantizedTensor]
    context_length: int = 4096
    path: Path = field(default_factory=lambda: Path("program"))
    weight_files: tuple[Path, ...] = ()
    rounded: Callable[[int, Operation, Numbers], Numbers] | None = None

    @property
    def config(self) -> SimpleNamespace:
        return SimpleNamespace(context_length=self.context_length)

    @property
    def architecture(self) -> SimpleNamespace:
        return SimpleNamespace(program=lambda config: self.program)

    def tensor(self, name: str) -> QuantizedTensor:
        return self.tensors[name]


def float_tensor(name: str, values: NDArray[np.float32]) -> QuantizedTensor:
    """Values as an F32 tensor."""
    return encoded_tensor(name, values, "f32")


def encoded_tensor(name: str, values: NDArray[np.float32], format_name: str) -> QuantizedTensor:
    number_format = get_format(format_name)
    matrix = np.ascontiguousarray(values, dtype=np.float32).reshape(-1, values.shape[-1])
    return QuantizedTensor(name, values.shape, number_format, number_format.pack(number_format.encode(matrix)))


def run_program(
    source: ProgramSource,
    token_ids: Sequence[int],
    rows: Sequence[int],
    dtype: type[np.floating] = np.float64,
    segments: Sequence[int] | None = None,
    shared: dict[int, tuple[Numbers, Numbers]] | None = None,
) -> Numbers:
    """Logits [rows, vocab] of one batch from an empty cache.

    shared: keys and values by shared state: an encoder's program puts them there, a decoder's takes them.
    """
    shared = {} if shared is None else shared
    values = {name: tensor.dequantize().astype(dtype) for name, tensor in source.tensors.items()}
    buffers: dict[str, Numbers] = {}
    for number, operation in enumerate(source.program.operations):
        match operation:
            case Embed(out, weight, scale, by, offset):
                chosen = {
                    "token": np.asarray(token_ids),
                    "position": np.arange(len(token_ids)) + offset,
                    "segment": np.zeros(len(token_ids), dtype=int) if segments is None else np.asarray(segments),
                }[by]
                buffers[out] = values[weight][chosen] * dtype(scale)
            case RmsNorm(out, x, weight, epsilon, groups):
                parts = buffers[x].reshape(len(buffers[x]), groups, -1)
                mean = np.mean(parts * parts, axis=2, keepdims=True)
                buffers[out] = (parts / np.sqrt(mean + dtype(epsilon)) * values[weight]).reshape(len(parts), -1)
            case LayerNorm(out, x, weight, bias, epsilon):
                centred = buffers[x] - buffers[x].mean(axis=1, keepdims=True)
                variance = np.mean(centred * centred, axis=1, keepdims=True)
                normed = centred / np.sqrt(variance + dtype(epsilon)) * values[weight]
                buffers[out] = normed + (0 if bias is None else values[bias])
            case Linear(out, x, weight, bias, row_range):
                part = slice(None) if row_range is None else slice(*row_range)
                buffers[out] = buffers[x] @ values[weight][part].T + (0 if bias is None else values[bias][part])
            case Rope():
                buffers[operation.x] = rotate(operation, buffers[operation.x], values)
            case Attention():
                k, v = buffers[operation.k], buffers[operation.v]
                buffers[operation.out] = attend(operation, buffers[operation.q], k, v, values)
            case CrossAttention():
                buffers[operation.out] = attend(operation, buffers[operation.q], *shared[operation.layer], values)
            case Share(k_name, v_name, layer):
                shared[layer] = buffers[k_name], buffers[v_name]
            case Experts():
                buffers[operation.out] = mixture(operation, buffers, values)
            case SelectOutputRows(out, x):
                buffers[out] = buffers[x][np.asarray(rows, dtype=int)]
            case _:
                buffers[operation.out] = elementwise(operation, buffers, dtype)
        round_result_(source, number, operation, buffers)
    return buffers[source.program.output]


def round_result_(source: ProgramSource, number: int, operation: Operation, buffers: dict[str, Numbers]) -> None:
    """Put what the source makes of a result in its place."""
    made = operation.x if isinstance(operation, Rope) else getattr(operation, "out", None)
    if source.rounded is not None and made is not None:
        buffers[made] = source.rounded(number, operation, buffers[made])


def mixture(operation: Experts, buffers: Mapping[str, Numbers], values: Mapping[str, Numbers]) -> Numbers:
    """Every expert on every token, the unused ones times zero."""
    x, logits = buffers[operation.x], buffers[operation.router]
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    used = np.argsort(-logits, axis=1, kind="stable")[:, : operation.used]
    share = np.zeros_like(p)
    np.put_along_axis(share, used, np.take_along_axis(p, used, axis=1), axis=1)
    if operation.normalizes:
        share /= share.sum(axis=1, keepdims=True)
    gate = np.einsum("th,efh->tef", x, values[operation.gate])
    up = np.einsum("th,efh->tef", x, values[operation.up])
    inner = ACTIVATIONS[operation.activation](gate) * up
    return np.einsum("tef,ehf,te->th", inner, values[operation.down], share)


def elementwise(operation: Operation, buffers: Mapping[str, Numbers], dtype: type[np.floating]) -> Numbers:
    """Operations whose output's elements depend on the same elements of their inputs alone."""
    match operation:
        case Glu(_, gate, up, activation):
            return ACTIVATIONS[activation](buffers[gate]) * buffers[up]
        case Activate(_, x, activation):
            return ACTIVATIONS[activation](buffers[x])
        case Scale(_, x, factor):
            return buffers[x] * dtype(factor)
        case Softcap(_, x, limit):
            return dtype(limit) * np.tanh(buffers[x] / dtype(limit))
        case Add(_, a, b):
            return buffers[a] + buffers[b]
    raise AssertionError(f"no meaning for {operation}")


def rotate(operation: Rope, x: Numbers, values: Mapping[str, Numbers]) -> Numbers:
    """Each pair as a complex number, turned by its angle."""
    factors = operation.frequencies.factors
    inverse, magnitude = inverse_frequencies(operation.frequencies, None if factors is None else values[factors])
    angles = np.arange(len(x))[:, None] * inverse
    turn = (magnitude * np.exp(1j * angles))[:, None, :]
    heads = x.reshape(len(x), operation.heads, operation.head_dim).copy()
    rotary = 2 * inverse.size
    if operation.style == "adjacent":
        first, second = heads[..., 0:rotary:2], heads[..., 1:rotary:2]
    else:
        first, second = heads[..., : rotary // 2], heads[..., rotary // 2 : rotary]
    turned = (first + 1j * second) * turn
    first[...], second[...] = turned.real, turned.imag
    return heads.reshape(x.shape)


def attend(
    operation: Attention | CrossAttention, q: Numbers, k: Numbers, v: Numbers, values: Mapping[str, Numbers]
) -> Numbers:
    """softmax(scale q kᵀ + bias) v, causal and within the window where the operation says so."""
    tokens, keys, dtype = len(q), len(k), q.dtype.type
    group = operation.heads // operation.kv_heads
    q = q.reshape(tokens, operation.heads, -1)
    k = np.repeat(k.reshape(keys, operation.kv_heads, -1), group, axis=1)
    v = np.repeat(v.reshape(keys, operation.kv_heads, -1), group, axis=1)
    scores = np.einsum("thd,shd->hts", q, k) * dtype(operation.scale)
    age = np.arange(tokens)[:, None] - np.arange(keys)[None, :]
    if isinstance(operation, Attention):
        if operation.softcap:
            scores = dtype(operation.softcap) * np.tanh(scores / dtype(operation.softcap))
        if operation.bias is not None:
            scores += values[operation.bias.weight][distance_buckets(operation.bias, -age)].transpose(2, 0, 1)
        visible = (age >= 0) & (age < (operation.window or tokens)) | (not operation.causal)
        scores = np.where(visible, scores, -np.inf)
    p = np.exp(scores - scores.max(axis=2, keepdims=True))
    p /= p.sum(axis=2, keepdims=True)
    return np.einsum("hts,shd->thd", p, v).reshape(tokens, -1)


def _erf(x: Numbers) -> Numbers:
    import math

    return np.vectorize(math.erf)(x).astype(x.dtype)


ACTIVATIONS = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: 0.5 * x * (1 + _erf(x / np.sqrt(x.dtype.type(2)))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(x.dtype.type(2 / np.pi)) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
}
