# SPDX-License-Identifier: Apache-2.0
"""Plain frozen data that the rooms hand each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import prod

import numpy as np

from lilliput.activations import StaticFormat, StaticInputs
from lilliput.arrays import Array, DoubleArray, FloatArray
from lilliput.formats import NumberFormat, Planes
from lilliput.formats.native_decode import decode


class Role(StrEnum):
    """What a tensor does in its model; recipes and presets speak of roles."""

    TOKEN_EMBEDDING = "token_embedding"
    POSITION_EMBEDDING = "position_embedding"
    SEGMENT_EMBEDDING = "segment_embedding"
    OUTPUT = "output"
    ATTENTION_Q = "attention_q"
    ATTENTION_K = "attention_k"
    ATTENTION_V = "attention_v"
    ATTENTION_QKV = "attention_qkv"
    ATTENTION_OUTPUT = "attention_output"
    CROSS_ATTENTION_Q = "cross_attention_q"
    CROSS_ATTENTION_K = "cross_attention_k"
    CROSS_ATTENTION_V = "cross_attention_v"
    CROSS_ATTENTION_OUTPUT = "cross_attention_output"
    FFN_GATE = "ffn_gate"
    FFN_UP = "ffn_up"
    FFN_DOWN = "ffn_down"
    ROUTER = "router"
    NORM = "norm"
    BIAS = "bias"
    ROPE = "rope"
    RELATIVE_BIAS = "relative_bias"
    POOLER = "pooler"
    CLASSIFIER = "classifier"
    OTHER = "other"
    # Left as it is stored, whatever its shape.
    KEPT = "kept"


@dataclass(frozen=True, slots=True)
class QuantizedTensor:
    """A tensor as stored: any format, plain floats included.

    shape: [out_features, in_features], or more leading axes, or [n] for a vector (one row).
    planes: as `number_format.stored_planes(rows, columns)` declares; may be memory-mapped and read-only.
    sidecars: extra arrays that travel with it (outliers, ranges, permutation, mask).
    """

    name: str
    shape: tuple[int, ...]
    format: NumberFormat
    planes: Planes
    sidecars: Mapping[str, Array] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Product of all axes but the last."""
        return prod(self.shape[:-1])

    @property
    def columns(self) -> int:
        """Length of the last axis."""
        return self.shape[-1] if self.shape else 1

    @property
    def nbytes(self) -> int:
        """Stored bytes, planes and sidecars."""
        return sum(array.nbytes for array in (*self.planes.values(), *self.sidecars.values()))

    def dequantize(self) -> FloatArray:
        """Float32 values in `shape`."""
        return decode(self.format, self.planes, self.columns).reshape(self.shape)


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """What a header alone tells of a stored tensor. inputs: those whose range travels with it."""

    name: str
    shape: tuple[int, ...]
    format: NumberFormat
    inputs: StaticFormat | None = None

    @property
    def rows(self) -> int:
        """Product of all axes but the last."""
        return prod(self.shape[:-1])

    @property
    def columns(self) -> int:
        """Length of the last axis."""
        return self.shape[-1] if self.shape else 1

    @property
    def nbytes(self) -> int:
        """Stored bytes."""
        return self.format.stored_bytes(self.rows, self.columns)


@dataclass(frozen=True, slots=True)
class InputStatistics:
    """Prior statistics of what enters one linear layer, on the float model.

    tokens: how many inputs were seen.  sum_of_squares: [in_features] float64.  absmax: [in_features] float32.
    """

    tokens: int
    sum_of_squares: DoubleArray
    absmax: FloatArray

    @property
    def input_mean_square(self) -> FloatArray:
        """[in_features] float32: the imatrix, and the diagonal of the Hessian."""
        return (self.sum_of_squares / max(self.tokens, 1)).astype(np.float32)

    def merged(self, other: InputStatistics) -> InputStatistics:
        """Statistics of both texts together."""
        return InputStatistics(
            self.tokens + other.tokens,
            self.sum_of_squares + other.sum_of_squares,
            np.maximum(self.absmax, other.absmax),
        )


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class LayerInputs:
    """What a method may know about the inputs x of one linear layer; linears that share an input share one object.

    Equality is identity, so that a method may keep what it derives (a factorization) per object.
    tokens: how many inputs were seen.  mean_square: [columns] float32, the imatrix.
    hessian: [columns, columns] float32, mean of x x^T over the stream that the quantized layer will see.
    held_out: the same over tokens that `hessian` has not seen.
    retargeting: [columns, columns] float32 R: codes are chosen for W + W R instead of W (methods/retarget.py).
    None where nothing is known. The mean square is numpy, the matrices torch tensors (on CPU or GPU) or numpy.
    """

    tokens: int = 0
    mean_square: Array | None = None
    hessian: Array | None = None
    held_out: Array | None = None
    retargeting: Array | None = None


NO_INPUTS = LayerInputs()


@dataclass(frozen=True, slots=True)
class Statistics:
    """Prior statistics of a whole model, keyed by canonical tensor name (`blk.0.attn_q.weight`).

    chunks, chunk_size: how the text was cut.  datasets: basenames of the texts.  model: fingerprint of the float model.
    outputs: smallest and largest value of what each operation gives (`encoder_half.place`); empty unless asked for.
    """

    inputs: Mapping[str, InputStatistics]
    chunks: int
    chunk_size: int
    datasets: tuple[str, ...]
    model: str
    outputs: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """One row of the plan: what happens to one tensor, decided before any work.

    name: canonical name.  source_name: as the user's checkpoint spells it.  shape: [out, in].
    tied_to: canonical name of the tensor whose bytes this one shares, or None.
    runtime_group: tensors that the target runtime fuses and that must share a format, or None.
    reason: why this format, in words for the user.
    inputs: static ones, whose range is to travel with the weight, or None.
    """

    name: str
    source_name: str
    shape: tuple[int, ...]
    role: Role
    format: NumberFormat
    method: str
    reason: str
    tied_to: str | None = None
    runtime_group: str | None = None
    inputs: StaticInputs | None = None

    @property
    def nbytes(self) -> int:
        """Stored bytes; a tied tensor costs none of its own."""
        if self.tied_to is not None:
            return 0
        return self.format.stored_bytes(prod(self.shape[:-1]), self.shape[-1] if self.shape else 1)


@dataclass(frozen=True, slots=True)
class TransformPlan:
    """One function-preserving rewrite of the float model, decided before any work.

    edges: where it acts, by the tensors that make the vectors.  skipped: edge -> why it is left as it is.
    strength: as the user chose it; None where it is searched, or there is none.
    """

    name: str
    edges: tuple[str, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    strength: float | None = None


@dataclass(frozen=True, slots=True)
class AppliedEdge:
    """What a transform did at one edge.

    strength: that was used, 0 where nothing was done, None where there is none to choose.
    loss_ratio: quantization loss with over without it, as judged while searching; None where nothing was searched.
    """

    transform: str
    edge: str
    strength: float | None = None
    loss_ratio: float | None = None
