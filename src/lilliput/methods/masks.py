# SPDX-License-Identifier: Apache-2.0
"""Masks: half of the weights become exact zeros, chosen by magnitude or, as Wanda does, by magnitude times input.

Problem   a sparse matrix can be stored or multiplied in less than a dense one, but which weights can go?
Idea      Wanda: a weight matters as much as what it adds to the output, |weight| * root mean square of its input;
          compared within each output. The rest is quantized as always; a zero that the grid has stays exact.
          2:4 keeps two of every four neighbours, which sparse tensor cores need.
Changes   codes and scales are searched on the masked weights (`searched_scales`), instead of rounding after or before.
          `sparse_gpt` also moves the weights that stay and is far better where there is a Hessian.
Cost      a partial sort of each row beside the quantization.
Not when  bytes count: no file format here stores a mask, so that zeros cost as much as other codes, and a dense model
          of fewer bits is better at equal bytes: with half of the weights gone, INT4_G128 has 2.6 times the output loss
          of all of them (2026-11, correlated inputs).
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np

from lilliput.arrays import Array, FloatArray
from lilliput.errors import CalibrationError, FormatError
from lilliput.formats import Encoded, NumberFormat, Planes
from lilliput.methods.method import Needs
from lilliput.methods.searched_scales import encode
from lilliput.records import LayerInputs

Pattern = Literal["half", "2_4"]
SERVES = "formats with an exact zero (no minimum, palette or sign alone): int4_g128, Q4_0, Q6_K, F16 …"


class MagnitudeMask:
    """The smaller half of each row, or two of four, become zero; the rest is rounded to nearest."""

    paper: str = "https://arxiv.org/abs/1506.02626 (magnitude pruning), without training"
    needs: Needs = "nothing"
    baseline: str | None = None
    serves: str = SERVES

    def __init__(self, pattern: Pattern) -> None:
        """Named after the pattern."""
        self.name = masked_name("magnitude_mask", pattern)
        self._pattern = pattern

    def supports(self, number_format: NumberFormat) -> bool:
        """Formats with an exact zero."""
        return has_exact_zero(number_format)

    def quantize(self, number_format: NumberFormat, weight: FloatArray, inputs: LayerInputs, *, threads: int) -> Planes:
        """Weight [rows, columns] -> stored planes. `inputs` and `threads` are not used."""
        check_zero(number_format, self.name)
        masked = np.where(kept(np.abs(weight), self._pattern), weight, np.float32(0))
        parameters = number_format.widest_parameters(masked)
        return number_format.pack(Encoded(number_format.nearest_codes(masked, parameters), parameters))


class Wanda:
    """What adds least to the outputs becomes zero; searched scales for the rest."""

    paper: str = "https://arxiv.org/abs/2306.11695 (Wanda)"
    needs: Needs = "mean_square"
    serves: str = SERVES

    def __init__(self, pattern: Pattern) -> None:
        """Named after the pattern."""
        self.name = masked_name("wanda", pattern)
        self.baseline: str | None = masked_name("magnitude_mask", pattern)
        self._pattern = pattern

    def supports(self, number_format: NumberFormat) -> bool:
        """Formats with an exact zero."""
        return has_exact_zero(number_format)

    def quantize(self, number_format: NumberFormat, weight: FloatArray, inputs: LayerInputs, *, threads: int) -> Planes:
        """Weight [rows, columns] -> stored planes. Raises CalibrationError without statistics of the inputs."""
        check_zero(number_format, self.name)
        if inputs.mean_square is None:
            raise CalibrationError(f"{self.name} weighs by the layer's inputs; give --text, --statistics or --imatrix")
        mean_square = np.asarray(inputs.mean_square, dtype=np.float32)
        masked = np.where(kept(np.abs(weight) * np.sqrt(mean_square), self._pattern), weight, np.float32(0))
        return encode(number_format, masked, mean_square, threads=threads)


def masked_name(method: str, pattern: Pattern) -> str:
    """`wanda`, `wanda_2_4`."""
    return method if pattern == "half" else f"{method}_{pattern}"


def kept(scores: Array, pattern: Pattern) -> Array:
    """Which weights stay, bool [rows, columns]: the larger half of each row's scores, or two of every four.

    Of equal scores the earlier one stays. Raises FormatError where rows do not divide into fours.
    """
    rows, columns = scores.shape
    width = columns if pattern == "half" else 4
    if columns % width:
        raise FormatError(f"rows of {columns} do not divide into fours; use the method without _2_4")
    grouped = np.asarray(scores).reshape(rows, -1, width)
    ranks = np.argsort(np.argsort(-grouped, axis=2, kind="stable"), axis=2, kind="stable")
    stays: Array = (ranks < (width + 1) // 2).reshape(rows, columns)
    return stays


@cache
def has_exact_zero(number_format: NumberFormat) -> bool:
    """Whether a weight of 0 decodes to 0 whatever else its block holds, as far as samples of both signs can tell."""
    if not number_format.can_encode or number_format.unit > 1:  # no codebook has a vector of zeros
        return False
    columns = max(number_format.block_size, 256)
    weight = np.random.default_rng(0).standard_normal((3, columns)).astype(np.float32)
    weight += np.array([[0], [3], [-3]], dtype=np.float32)
    weight[:, ::3] = 0
    encoded = number_format.encode(weight)
    return not np.asarray(number_format.values(encoded.codes, encoded.parameters))[:, ::3].any()


def check_zero(number_format: NumberFormat, method: str) -> None:
    """Raise FormatError for a format that would turn masked weights into small ones."""
    if not has_exact_zero(number_format):
        raise FormatError(
            f"{number_format.name.upper()} has no exact zero, so that {method} would leave no weight out; use {SERVES}"
        )
