# SPDX-License-Identifier: Apache-2.0
"""Weights of an AWQ checkpoint (gemm) as our own formats: the same codes, scales and zero points, nothing decoded.

layout   a linear layer `<module>` has, in place of `<module>.weight` [out, in]:
         qweight int32 [in, out / 8]: nibble n of word w is the code of output 8 w + ORDER[n]
         qzeros  int32 [groups, out / 8]: zero points in the same order;  scales float [groups, out]
value    scales[g, o] * (code - zero_point)
config   config.json, quantization_config: bits 4, group_size (-1: a row), version gemm, modules_to_not_convert
source   the arrays that AutoAWQ and GPTQModel 7.6 read and write
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lilliput.arrays import Array
from lilliput.checkpoints.packed_weight import (
    Files,
    as_floats,
    as_stored,
    check_array,
    check_present,
    holds_scales,
    matrix_shape,
    region_of_groups,
    stored_group,
    words,
)
from lilliput.errors import CheckpointError
from lilliput.formats import NumberFormat, Planes, get_format
from lilliput.formats.integer_zero_point import ZeroPointInteger
from lilliput.formats.regions import CHANNEL
from lilliput.formats.scoped_number import pack_bits

METHOD = "awq"
VERSION = "gemm"
# Which of the eight outputs of a word each nibble holds, lowest first.
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_WHERE = "config.json: quantization_config"


def is_awq(quantization: object) -> bool:
    """Whether config.json's quantization_config is one of this kind."""
    return isinstance(quantization, Mapping) and quantization.get("quant_method") == METHOD


def in_words(codes: Array) -> Array:
    """4-bit codes [n, out] -> int32 [n, out / 8]."""
    eights = codes.reshape(codes.shape[0], -1, 8)[:, :, list(ORDER)].astype(np.uint32)
    packed = np.zeros(eights.shape[:2], dtype=np.uint32)
    for nibble in range(8):
        packed |= eights[:, :, nibble] << np.uint32(4 * nibble)
    return packed.view("<i4")


def from_words(packed: Array) -> Array:
    """uint32 [n, out / 8] -> uint8 [n, out]."""
    codes = np.empty((*packed.shape, 8), dtype=np.uint8)
    for nibble, place in enumerate(ORDER):
        codes[:, :, place] = (packed >> np.uint32(4 * nibble)) & np.uint32(15)
    return codes.reshape(packed.shape[0], -1)


@dataclass(frozen=True, slots=True)
class AwqWeight:
    """One weight as it lies in the files.

    number_format: of codes, scales and zero points.  repeats: of our groups in one stored group.
    is_exact: the format holds the stored numbers; otherwise the weight is F32.
    """

    name: str
    number_format: ZeroPointInteger
    shape: tuple[int, int]
    arrays: Mapping[str, str]
    repeats: int
    is_exact: bool

    @property
    def format(self) -> NumberFormat:
        """What the weight is in memory."""
        return self.number_format if self.is_exact else get_format("f32")

    def planes(self, files: Files) -> Planes:
        """Planes of `format`, rows in the checkpoint's order."""
        codes = np.ascontiguousarray(from_words(words(self.arrays["codes"], files)).T)
        scale = files[self.arrays["scale"]].float32(self.arrays["scale"]).T
        zero_point = from_words(words(self.arrays["zero_point"], files)).T
        if not self.is_exact:
            group = self.shape[1] // scale.shape[1]
            level = codes.astype(np.float32) - np.repeat(zero_point, group, axis=1)
            return as_floats(np.repeat(scale, group, axis=1) * level)
        planes: dict[str, Array] = {
            "codes": pack_bits(codes, 4),
            "scale": np.repeat(scale, self.repeats, axis=1),
            "zero_point": np.repeat(zero_point, self.repeats, axis=1),
        }
        return as_stored(self.number_format, planes, self.shape)


def packed_weights(quantization: Mapping[str, object], files: Files) -> dict[str, AwqWeight]:
    """Weight name of the float checkpoint -> how it lies here.

    Raises CheckpointError naming the field of quantization_config, or the array, that cannot be read.
    """
    version = str(quantization.get("version", quantization.get("format", VERSION))).lower()
    if version != VERSION:
        raise CheckpointError(f"{_WHERE}.version is '{version}'; readable is {VERSION}; use the original checkpoint")
    bits = quantization.get("bits", quantization.get("w_bit", 4))
    if bits != 4:
        raise CheckpointError(f"{_WHERE}.bits is {bits!r}; this layout has 4")
    return {
        f"{name.removesuffix('.qweight')}.weight": _weight(name.removesuffix(".qweight"), quantization, files)
        for name in files
        if name.endswith(".qweight")
    }


def _weight(module: str, quantization: Mapping[str, object], files: Files) -> AwqWeight:
    name = f"{module}.weight"
    arrays = {"codes": f"{module}.qweight", "scale": f"{module}.scales", "zero_point": f"{module}.qzeros"}
    check_present(name, arrays, files)
    columns, across = matrix_shape(arrays["codes"], files)
    groups, rows = matrix_shape(arrays["scale"], files)
    check_array(arrays["codes"], files, ("I32",), (columns, across))
    check_array(arrays["scale"], files, ("F16", "BF16", "F32"), (groups, across * 8))
    check_array(arrays["zero_point"], files, ("I32",), (groups, across))
    if columns % groups:
        raise CheckpointError(f"tensor '{arrays['scale']}' has {groups} groups for rows of {columns}")
    fixed = region_of_groups(stored_group(quantization, columns, groups), columns)
    region, repeats = fixed or (CHANNEL, 1)
    number_format = get_format(f"int4_{region.name}_asym")
    assert isinstance(number_format, ZeroPointInteger)
    is_exact = fixed is not None and holds_scales(number_format, arrays["scale"], files)
    return AwqWeight(name, number_format, (rows, columns), arrays, repeats, is_exact)
