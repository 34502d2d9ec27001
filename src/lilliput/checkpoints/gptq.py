# SPDX-License-Identifier: Apache-2.0
"""Weights of a GPTQ checkpoint as our own formats: the same codes, scales and zero points, nothing decoded.

layout   a linear layer `<module>` has, in place of `<module>.weight` [out, in]:
         qweight int32 [in * bits / 32, out]: a little-endian bit string of unsigned codes down each column
         qzeros  int32 [groups, out * bits / 32]: a little-endian bit string of zero points along each row
         scales  float [groups, out];  g_idx int32 [in]: the group of each column
value    scales[g, o] * (code - zero_point);  "gptq" (v1) stores the zero point less one, "gptq_v2" the zero point
config   config.json, quantization_config: bits, group_size (-1: a row), sym, desc_act, checkpoint_format
source   the arrays that AutoGPTQ and GPTQModel 7.6 read and write
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lilliput.arrays import Array, FloatArray
from lilliput.checkpoints.packed_weight import (
    Files,
    Integer,
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
from lilliput.formats.integer import SymmetricInteger
from lilliput.formats.integer_zero_point import ZeroPointInteger
from lilliput.formats.ordered_groups import COLUMN_GROUP
from lilliput.formats.regions import CHANNEL
from lilliput.formats.scoped_number import pack_bits, unpack_bits

METHOD = "gptq"
V1, V2 = "gptq", "gptq_v2"
BITS = (2, 3, 4, 8)
_WHERE = "config.json: quantization_config"
# Fields of GPTQModel under which the arrays would mean something else than is read here.
_ABSENT = ("adapter", "dynamic_scales", "planar")


def is_gptq(quantization: object) -> bool:
    """Whether config.json's quantization_config is one of this kind."""
    return isinstance(quantization, Mapping) and quantization.get("quant_method") == METHOD


@dataclass(frozen=True, slots=True)
class GptqWeight:
    """One weight as it lies in the files.

    number_format: of codes, scales and zero points.  repeats: of our groups in one stored group.
    zero_offset: what is added to stored zero points.
    is_exact: the format holds the stored numbers; otherwise the weight is F32.
    is_ordered: the columns of a group lie apart.
    """

    name: str
    number_format: Integer
    shape: tuple[int, int]
    arrays: Mapping[str, str]
    repeats: int
    zero_offset: int
    is_exact: bool
    is_ordered: bool = False

    @property
    def format(self) -> NumberFormat:
        """What the weight is in memory."""
        if not self.is_exact:
            return get_format("f32")
        return get_format(f"{self.number_format.name}_ordered") if self.is_ordered else self.number_format

    def planes(self, files: Files) -> Planes:
        """Planes of `format`, rows in the checkpoint's order."""
        packed = np.ascontiguousarray(words(self.arrays["codes"], files).T).view(np.uint8)
        scale = np.ascontiguousarray(files[self.arrays["scale"]].float32(self.arrays["scale"]).T)
        zero_point = self._zero_points(files)
        if not self.is_exact:
            return as_floats(self._values(packed, scale, zero_point, files))
        planes: dict[str, Array] = {"codes": packed, "scale": np.repeat(scale, self.repeats, axis=1)}
        if isinstance(self.number_format, ZeroPointInteger):
            planes["zero_point"] = np.repeat(zero_point, self.repeats, axis=1)
        stored = dict(as_stored(self.number_format, planes, self.shape))
        if self.is_ordered:
            stored[COLUMN_GROUP] = self._column_group(files, scale.shape[1])
        return stored

    def _column_group(self, files: Files, groups: int) -> Array:
        """int32 [1, 1, columns]. Groups that are cut into several are cut in the order of their columns."""
        index = group_index(self.arrays["group_index"], files, self.shape[1], groups)
        if self.repeats > 1:
            place = np.argsort(np.argsort(index, kind="stable"), kind="stable")
            index = place // self.number_format.block_size
        return index.astype("<i4")[None, None, :]

    def _zero_points(self, files: Files) -> Array:
        """uint8 [rows, stored groups]."""
        bits = self.number_format.code_bits
        stored = np.ascontiguousarray(words(self.arrays["zero_point"], files)).view(np.uint8)
        unpacked = unpack_bits(stored, bits, self.shape[0]).T
        # A stored 2^bits - 1 of v1 is what zero less one becomes in so many bits.
        return (unpacked + np.uint8(self.zero_offset)) & np.uint8((1 << bits) - 1)

    def _values(self, packed: Array, scale: FloatArray, zero_point: Array, files: Files) -> FloatArray:
        columns = self.shape[1]
        codes = unpack_bits(packed, self.number_format.code_bits, columns)
        groups = scale.shape[1]
        group_of = np.arange(columns) // -(-columns // groups)
        if "group_index" in self.arrays:
            group_of = group_index(self.arrays["group_index"], files, columns, groups)
        level = codes.astype(np.float32) - zero_point[:, group_of]
        result: FloatArray = scale[:, group_of] * level
        return result


def packed_weights(quantization: Mapping[str, object], files: Files) -> dict[str, GptqWeight]:
    """Weight name of the float checkpoint -> how it lies here.

    Raises CheckpointError naming the field of quantization_config, or the array, that cannot be read.
    """
    for field in _ABSENT:
        if quantization.get(field):
            raise CheckpointError(f"{_WHERE}.{field} is set, which cannot be read; use the original checkpoint")
    layout = str(quantization.get("checkpoint_format") or V1)
    if layout not in (V1, V2):
        raise CheckpointError(
            f"{_WHERE}.checkpoint_format is '{layout}'; readable are {V1} and {V2}; save it in one of these"
        )
    found: dict[str, GptqWeight] = {}
    for name in files:
        if name.endswith(".qweight"):
            module = name.removesuffix(".qweight")
            found[f"{module}.weight"] = _weight(module, quantization, files, zero_offset=1 if layout == V1 else 0)
    return found


def _weight(module: str, quantization: Mapping[str, object], files: Files, *, zero_offset: int) -> GptqWeight:
    name = f"{module}.weight"
    arrays = {"codes": f"{module}.qweight", "scale": f"{module}.scales", "zero_point": f"{module}.qzeros"}
    check_present(name, arrays, files)
    if f"{module}.g_idx" in files:
        arrays["group_index"] = f"{module}.g_idx"
    word_rows, rows = matrix_shape(arrays["codes"], files)
    groups = matrix_shape(arrays["scale"], files)[0]
    bits = _bits(arrays, word_rows, quantization, files)
    columns = word_rows * 32 // bits
    if word_rows * 32 % bits or rows * bits % 32 or columns % groups:
        raise CheckpointError(
            f"tensor '{arrays['codes']}' [{word_rows}, {rows}] in {groups} groups is no matrix of {bits}-bit codes"
        )
    check_array(arrays["codes"], files, ("I32",), (word_rows, rows))
    check_array(arrays["scale"], files, ("F16", "BF16", "F32"), (groups, rows))
    check_array(arrays["zero_point"], files, ("I32",), (groups, rows * bits // 32))
    fixed = region_of_groups(stored_group(quantization, columns, groups), columns)
    region, repeats = fixed or (CHANNEL, 1)
    is_symmetric = quantization.get("sym", True) is True and _is_middle(arrays, files, bits, rows, zero_offset)
    number_format = get_format(f"int{bits}_{region.name}{'' if is_symmetric else '_asym'}")
    assert isinstance(number_format, SymmetricInteger | ZeroPointInteger)
    is_ordered = _is_reordered(arrays, files, columns, groups)
    is_exact = fixed is not None and holds_scales(number_format, arrays["scale"], files)
    if is_ordered:
        is_exact = is_exact and region.is_group and (repeats == 1 or _is_even(arrays, files, columns, groups))
    return GptqWeight(name, number_format, (rows, columns), arrays, repeats, zero_offset, is_exact, is_ordered)


def _bits(arrays: Mapping[str, str], word_rows: int, quantization: Mapping[str, object], files: Files) -> int:
    """Bits of a layer: from its own sizes where they tell, since `dynamic` may give a layer its own; else the config's.

    Raises CheckpointError.
    """
    bits = quantization.get("bits")
    if "group_index" in arrays:
        shape = files[arrays["group_index"]].tensors[arrays["group_index"]].shape
        bits = word_rows * 32 // shape[0] if len(shape) == 1 and shape[0] else bits
    if isinstance(bits, bool) or bits not in BITS:
        raise CheckpointError(
            f"{_WHERE}.bits is {bits!r} for '{arrays['codes']}'; readable are {', '.join(map(str, BITS))}"
        )
    return int(str(bits))


def _is_reordered(arrays: Mapping[str, str], files: Files, columns: int, groups: int) -> bool:
    if "group_index" not in arrays:
        return False
    order = group_index(arrays["group_index"], files, columns, groups)
    return not np.array_equal(order, np.arange(columns) // (columns // groups))


def _is_even(arrays: Mapping[str, str], files: Files, columns: int, groups: int) -> bool:
    """Whether every group has as many columns."""
    counts = np.bincount(group_index(arrays["group_index"], files, columns, groups), minlength=groups)
    return bool((counts == columns // groups).all())


def group_index(name: str, files: Files, columns: int, groups: int) -> Array:
    """int64 [columns]: the group of each column. Raises CheckpointError for one that there is not."""
    check_array(name, files, ("I32", "I64"), (columns,))
    kind = "<i4" if files[name].tensors[name].dtype == "I32" else "<i8"
    order = np.frombuffer(files[name].data(name).tobytes(), dtype=kind).astype(np.int64)
    if order.size and (order.min() < 0 or order.max() >= groups):
        raise CheckpointError(f"tensor '{name}' names group {int(order.max())}; the layer has {groups}")
    return order


def _is_middle(arrays: Mapping[str, str], files: Files, bits: int, rows: int, zero_offset: int) -> bool:
    """Whether all zero points are 2^(bits - 1), so that there is nothing to store."""
    row = np.full((1, rows), (1 << (bits - 1)) - zero_offset, dtype=np.uint8)
    expected = np.ascontiguousarray(pack_bits(row, bits)).view("<u4")
    return bool((words(arrays["zero_point"], files) == expected).all())
