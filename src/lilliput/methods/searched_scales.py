# SPDX-License-Identifier: Apache-2.0
"""Searched scales: the best scales and codes that a look at one tensor, and at its inputs' mean squares, can find.

Problem   the scale that reaches a group's largest weight is rarely the one with the smallest error, least of all where
          a few columns matter most; and stored scales are themselves rounded.
Idea      try many scales per group, round, solve least squares for the scale, keep the best by weighted squared error;
          choose the block's scale so that the groups' own land near its multiples; then compare neighbouring
          scale codes by the error that the rounded weights really have. (`formats/scale_search.py`)
Changes   from llama.cpp's search: both signs of symmetric scales, a wider range of candidates, refinement from the
          best one, the finest scale among ties, block scales swept, scale codes re-tested after rounding.
          Squared errors count, much as llama.cpp's do, importance * sqrt(2 * mean square of the row + weight^2): a
          diagonal importance alone lets large weights, which carry a row's output, be rounded carelessly. Measured on
          the built-in model (mean KL over 30000 tokens, paired 95 % interval): plain importance is worse by 3 to 7 %
          at Q4_K_M and 1 to 6 % at Q3_K_M; in Q2_K 1 * mean square beats 2 by 8 to 13 %. Without an imatrix the square
          root alone stays as the weight: Q2_K better by 7 to 13 %, Q4_K_M no difference.
          By squared error (benchmarks/encoders.py) the product stays below llama-quantize's under both weightings on
          every type; plain importance exceeds it by up to 60 % under the product.
          At last a block's scale is stretched until the rounded weights, weighted by importance, project onto the
          original ones with length 1. Least squares shrinks them by the relative error, and what is missing adds up
          where inputs are correlated, which a diagonal cannot see. KL on the built-in model after / before: Q2_K 0.90,
          IQ2_XS 0.85, IQ2_S 0.90, IQ3_XXS 0.95, Q3_K 0.96 to 1.01, four bits 0.98 to 0.99 (docs/log.md).
Cost      20 to 110 roundings per weight. The native encoder, which gives the array code's bytes, does 14 (IQ4_XS) to
          100 (Q8_0) million weights a second and thread with AVX-512, Q4_K 41; the array code 0.3 to 2.
Not when  inputs are correlated and a Hessian is at hand: error feedback then gains much more.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from lilliput.arrays import FloatArray
from lilliput.formats import BlockFormat, Encoded, NumberFormat, Parameters, Planes
from lilliput.formats.native_decode import decode
from lilliput.formats.ordered_groups import OrderedGroups
from lilliput.formats.scale_search import bounded, row_mean_square, to_half
from lilliput.methods.column_order import quantize_in_order
from lilliput.methods.method import Needs
from lilliput.records import LayerInputs

# Weights in one piece of the array encoder; about twelve temporaries of this size live at once.
PIECE_WEIGHTS = 1 << 18
# Share of the mean that the importance of a column never falls below: an input that calibration never saw still counts.
IMPORTANCE_FLOOR = np.float32(1e-6)
# A block that would need more is not worth following: its codes have little to do with its weights.
LARGEST_STRETCH = np.float32(1.5)
# Formats whose errors weigh large weights more than the rest do; see the essay.
MEAN_SQUARE_SHARES = {"q2_k": 1.0}


class SearchedScales:
    """Scales searched per group, weighted by importance where there is any."""

    name: str = "searched_scales"
    paper: str = "https://github.com/ggml-org/llama.cpp/pull/4930 (importance matrix), searched further"
    needs: Needs = "nothing"
    baseline: str | None = "round_to_nearest"

    def supports(self, number_format: NumberFormat) -> bool:
        """Every format that encodes."""
        return number_format.can_encode

    def quantize(self, number_format: NumberFormat, weight: FloatArray, inputs: LayerInputs, *, threads: int) -> Planes:
        """Weight [rows, columns] -> stored planes, weighted by the mean square of the inputs where it is known."""
        if isinstance(number_format, OrderedGroups):
            return quantize_in_order(self, number_format, weight, inputs, threads=threads)
        importance = None if inputs.mean_square is None else np.asarray(inputs.mean_square, dtype=np.float32)
        planes = encode(number_format, weight, importance, threads=threads)
        return stretched(number_format, planes, weight, importance, threads=threads)


def stretched(
    number_format: NumberFormat,
    planes: Planes,
    weight: FloatArray,
    importance: FloatArray | None = None,
    *,
    threads: int = 1,
) -> Planes:
    """Planes whose blocks project onto `weight` with length 1: <values, weight> = <weight, weight> under importance.

    Formats whose scales are no fp16 numbers at fixed places stay as they are, and so do blocks that have nothing in
    common with their weights.
    """
    if not isinstance(number_format, BlockFormat) or not number_format.half_places or not weight.size:
        return planes
    relative = np.ones(weight.shape[1], np.float32) if importance is None else relative_importance(importance)
    size = number_format.block_size
    shape = (weight.shape[0], -1, size)
    values = decode(number_format, planes, weight.shape[1], threads=threads).reshape(shape)
    original = weight.reshape(shape)
    weighted = bounded(original) * relative.reshape(-1, size)
    wanted, found = (np.einsum("rbc,rbc->rb", weighted, other) for other in (original, values))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = wanted / found
    is_usable = np.isfinite(ratio) & (found > 0.0)
    factor = np.where(is_usable, np.clip(ratio, 1.0 / LARGEST_STRETCH, LARGEST_STRETCH), np.float32(1.0))
    blocks = planes["blocks"].reshape(weight.shape[0], -1, number_format.block_bytes).copy()
    for place in number_format.half_places:
        old = np.ascontiguousarray(blocks[:, :, place : place + 2]).view("<f2")[:, :, 0]
        new = to_half(old.astype(np.float32) * factor)
        blocks[:, :, place : place + 2] = np.ascontiguousarray(new)[:, :, None].view(np.uint8)
    return {"blocks": blocks.reshape(planes["blocks"].shape)}


def encode(
    number_format: NumberFormat, weight: FloatArray, importance: FloatArray | None = None, *, threads: int = 1
) -> Planes:
    """Choose scales and codes of finite float32 weight [rows, columns] and pack them.

    importance: [columns] mean square of the inputs, any scale, or None.
    Raises FormatError when the format has no encoder or the row length is not a multiple of its block.
    """
    number_format.check_columns("weight", weight.shape[1])
    weight = np.ascontiguousarray(weight, dtype=np.float32)
    relative = None if importance is None else relative_importance(importance)
    if number_format.name not in native_encoders():
        return encode_with_arrays(number_format, weight, relative)
    from lilliput import _native

    share = mean_square_share(number_format)
    return {"blocks": _native.encode(number_format.name, weight, relative, share, threads)}


def encode_with_arrays(number_format: NumberFormat, weight: FloatArray, relative: FloatArray | None) -> Planes:
    """The array implementation, in pieces of bounded memory. relative: what `relative_importance` gives."""
    share = mean_square_share(number_format)
    if number_format.row_step is None:
        # Parameters of the whole matrix are fitted once; codes do not look beyond their rows.
        return pack_in_pieces(
            number_format, weight, number_format.fitted(weight, error_weights(weight, relative, share))
        )
    pieces = []
    for piece in _pieces(weight, number_format.row_step):
        weights_of_piece = error_weights(piece, relative, share) if number_format.scopes else None
        pieces.append(number_format.pack(number_format.encode(piece, weights_of_piece)))
    return number_format.joined_rows(pieces)


def pack_in_pieces(number_format: NumberFormat, weight: FloatArray, parameters: Parameters) -> Planes:
    """Nearest codes under parameters of the whole matrix, packed, some rows at a time."""
    packed, start = [], 0
    for piece in _pieces(weight, 1):
        own = number_format.parameters_of_rows(parameters, start, start + len(piece))
        packed.append(number_format.pack(Encoded(number_format.nearest_codes(piece, own), own)))
        start += len(piece)
    return number_format.joined_rows(packed)


def _pieces(weight: FloatArray, together: int) -> list[FloatArray]:
    """Slices of some rows, a multiple of `together` each; one empty slice of no rows."""
    step = max(1, PIECE_WEIGHTS // max(weight.shape[1], 1) // together) * together
    return [weight[start : start + step] for start in range(0, max(weight.shape[0], 1), step)]


@cache
def native_encoders() -> frozenset[str]:
    """Names of the formats that the native core encodes; none where it is not built."""
    try:
        from lilliput import _native
    except ImportError:  # the array code is complete on its own; only slower
        return frozenset()
    return frozenset(_native.encoders())


def relative_importance(importance: FloatArray) -> FloatArray:
    """Importance over its mean, with a floor; ones where there is none (all zero)."""
    mean = np.float32(np.mean(importance, dtype=np.float64))
    if not np.isfinite(mean) or mean <= 0:
        return np.ones_like(importance, dtype=np.float32)
    relative: FloatArray = np.maximum(importance.astype(np.float32) / mean, IMPORTANCE_FLOOR)
    return relative


def mean_square_share(number_format: NumberFormat) -> float:
    """What multiplies the mean square in `error_weights`."""
    return MEAN_SQUARE_SHARES.get(number_format.name, 2.0)


def error_weights(weight: FloatArray, relative: FloatArray | None, share: float = 2.0) -> FloatArray:
    """Weight of each squared error [rows, columns]: importance * sqrt(share * mean square of the row + weight^2).

    share 2 keeps both measures of benchmarks/encoders.py below llama-quantize's on every type; 1 and 4 do not.
    """
    weight = bounded(weight)
    root: FloatArray = np.sqrt(np.float32(share) * row_mean_square(weight)[:, None] + weight * weight)
    return root if relative is None else relative * root
