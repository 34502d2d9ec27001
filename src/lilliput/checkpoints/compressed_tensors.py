# SPDX-License-Identifier: Apache-2.0
"""Weights of a compressed-tensors checkpoint as our own formats: the same codes and scales, nothing decoded.

layout   a linear layer `<module>` has, in place of `<module>.weight` [out, in]:
         pack-quantized   weight_packed int32 [out, ceil(in * bits / 32)]: each row a little-endian bit string of
                          unsigned codes; weight_scale; weight_shape int64 [2]; with zero points weight_zero_point int32
                          [ceil(out * bits / 32), groups], a bit string down each column
         int-quantized    weight int8 [out, in]: code - 128; weight_scale
         float-quantized, naive-quantized   weight F8_E4M3 [out, in]; weight_scale
         mxfp4-pack-quantized, nvfp4-pack-quantized   weight_packed uint8 [out, in / 2], see `four_bit_floats`;
                          weight_scale uint8 [out, in / 32], or F8_E4M3 [out, in / 16] over weight_global_scale
                          float32 [1]
         weight_scale is otherwise a float [out, in / group_size], [out, 1], [1] or, for FP8, one per block
         of 128 x 128; code 2^(bits - 1) and the zero point are 0.0
         static inputs: input_scale, a float [1]; input_zero_point, a whole number [1], absent or 0 where symmetric;
         codes of 8 bits are -128 … 127, of symmetric inputs too
config   config.json, quantization_config.config_groups: targets (module names, re:REGEX or Linear), `weights` and
         `input_activations`
source   vllm-project/compressed-tensors 0.20 and the arrays it reads
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from lilliput.arrays import Array, ByteArray, FloatArray
from lilliput.checkpoints.eight_bit_floats import eight_bit_float
from lilliput.checkpoints.four_bit_floats import blocks_of, four_bit_numbers
from lilliput.checkpoints.packed_weight import (
    Files,
    PackedWeight,
    as_floats,
    as_stored,
    check_array,
    check_columns,
    check_present,
    holds_scales,
    matrix_shape,
)
from lilliput.checkpoints.static_inputs import StoredRange, stored_ranges
from lilliput.errors import CheckpointError, FormatError
from lilliput.formats import NumberFormat, Planes, get_format
from lilliput.formats.integer import SymmetricInteger
from lilliput.formats.integer_zero_point import ZeroPointInteger
from lilliput.formats.mxfp4 import MXFP4
from lilliput.formats.nvfp4 import NVFP4
from lilliput.formats.scoped_number import ScopedNumber, pack_bits, unpack_bits

METHOD = "compressed-tensors"
PACKED, INTEGER, FLOAT = "pack-quantized", "int-quantized", "float-quantized"
MXFP4_PACKED, NVFP4_PACKED = "mxfp4-pack-quantized", "nvfp4-pack-quantized"
MIXED = "mixed-precision"
# E4M3's NaN, and from 0x80 negative numbers.
_NAN_SCALE = 0x7F
# naive-quantized is the older name of both plain kinds.
READABLE = (PACKED, INTEGER, FLOAT, "naive-quantized", MXFP4_PACKED, NVFP4_PACKED, MIXED)
# Fields under which a checkpoint of these kinds would mean something else than is read here.
_ABSENT = ("transform_config", "sparsity_config")
_WHERE = "config.json: quantization_config"


def is_compressed_tensors(quantization: object) -> bool:
    """Whether config.json's quantization_config is one of this kind."""
    return isinstance(quantization, Mapping) and quantization.get("quant_method") == METHOD


@dataclass(frozen=True, slots=True)
class CompressedWeight:
    """One weight as it lies in the files. arrays: role (codes, scale, zero_point, shape) -> stored name.

    number_format: of codes and scales.  is_exact: its scales hold the stored ones exactly; otherwise the weight is F32.
    """

    name: str
    number_format: ScopedNumber
    shape: tuple[int, int]
    arrays: Mapping[str, str]
    is_exact: bool

    @property
    def format(self) -> NumberFormat:
        """What the weight is in memory."""
        return self.number_format if self.is_exact else get_format("f32")

    def planes(self, files: Files) -> Planes:
        """Planes of `format`, rows in the checkpoint's order."""
        planes: dict[str, Array] = {"codes": self._codes(files), "scale": self._scale(files)}
        if "zero_point" in self.arrays:
            planes["zero_point"] = self._zero_points(files)
        if self.is_exact:
            return as_stored(self.number_format, planes, self.shape)
        values = self.number_format.dequantize(planes, self.shape[1])
        return {"blocks": values.view(np.uint8)}

    def _codes(self, files: Files) -> ByteArray:
        """uint8 [rows, row bytes]; a view of the map where rows need no padding."""
        name = self.arrays["codes"]
        data = files[name].data(name).reshape(self.shape[0], -1)
        if files[name].tensors[name].dtype == "I8":
            return data ^ np.uint8(0x80)
        return data[:, : self.number_format.row_bytes(self.shape[1])]

    def _scale(self, files: Files) -> FloatArray:
        name = self.arrays["scale"]
        return files[name].float32(name).reshape(self.number_format.region.grid(*self.shape))

    def _zero_points(self, files: Files) -> Array:
        name = self.arrays["zero_point"]
        rows, groups = self.number_format.region.grid(*self.shape)
        words = files[name].data(name).view("<u4").reshape(-1, groups)
        columns = np.ascontiguousarray(words.T).view(np.uint8)
        return unpack_bits(columns, self.number_format.code_bits, rows).T


@dataclass(frozen=True, slots=True)
class FourBitFloatWeight:
    """One weight in MXFP4 or NVFP4 as it lies in the files.

    arrays: codes, scale and, for NVFP4, global_scale.  is_exact: ggml's blocks hold it; otherwise it is F32.
    """

    shape: tuple[int, int]
    arrays: Mapping[str, str]
    is_exact: bool

    @property
    def format(self) -> NumberFormat:
        """What the weight is in memory."""
        return self._stored_format if self.is_exact else get_format("f32")

    @property
    def _stored_format(self) -> NumberFormat:
        return get_format("nvfp4" if "global_scale" in self.arrays else "mxfp4")

    def planes(self, files: Files) -> Planes:
        """Planes of `format`, rows in the checkpoint's order."""
        rows = self.shape[0]
        codes, scales = (
            files[self.arrays[role]].data(self.arrays[role]).reshape(rows, -1) for role in ("codes", "scale")
        )
        if self.is_exact:
            return blocks_of(self._stored_format, codes, scales)
        name = self.arrays["global_scale"]
        scale = files[self.arrays["scale"]].float32(self.arrays["scale"]) / files[name].float32(name).reshape(-1)[0]
        numbers = four_bit_numbers(codes)
        return as_floats(numbers * np.repeat(scale.reshape(rows, -1), NVFP4.group_size, axis=1))


def packed_zero_points(zero_points: Array, bits: int) -> Array:
    """uint8 [rows, groups] -> int32 [ceil(rows * bits / 32), groups]."""
    return np.ascontiguousarray(packed_codes(pack_bits(np.ascontiguousarray(zero_points.T), bits)).T)


def packed_codes(codes: ByteArray) -> Array:
    """Rows of bytes -> rows of int32 words, padded with zeros."""
    padded = np.pad(codes, ((0, 0), (0, -codes.shape[1] % 4))) if codes.shape[1] % 4 else codes
    return np.ascontiguousarray(padded).view("<i4")


def packed_weights(quantization: Mapping[str, object], files: Files) -> dict[str, PackedWeight]:
    """Weight name of the float checkpoint -> how it lies here.

    FP8 with scales of other shapes than one a tensor or row is left to `scaled_weights`.
    Raises CheckpointError naming the field of quantization_config, or the array, that cannot be read.
    """
    for field in _ABSENT:
        if quantization.get(field):
            raise CheckpointError(f"{_WHERE}.{field} is set, which cannot be read; use the original checkpoint")
    groups = _Groups(quantization.get("config_groups"))
    found: dict[str, PackedWeight] = {}
    for name, file in files.items():
        module, _, part = name.rpartition(".")
        weight = f"{module}.weight"
        if part == "weight_packed" and file.tensors[name].dtype == "U8":
            found[weight] = _four_bit_float(weight, groups.weights_of(module), files)
        elif part == "weight_packed":
            found[weight] = _packed(weight, groups.weights_of(module), files)
        elif part == "weight" and file.tensors[name].dtype == "I8":
            found[weight] = _plain_integer(weight, groups.weights_of(module), files)
        elif part == "weight" and file.tensors[name].dtype == "F8_E4M3":
            is_blocks = groups.strategy_of(module) == "block"
            eight_bit = eight_bit_float(weight, files, is_surely_blocks=is_blocks)
            found |= {weight: eight_bit} if eight_bit is not None else {}
    return found


def static_inputs(quantization: object, files: Files) -> dict[str, StoredRange]:
    """Weight name of the float checkpoint -> the range of its inputs, where it is static.

    Raises CheckpointError for arrays that are no range.
    """
    if not isinstance(quantization, Mapping) or not is_compressed_tensors(quantization):
        return {}
    return stored_ranges(_Groups(quantization.get("config_groups")).inputs_of, files)


class _Groups:
    """config_groups: which description belongs to a module."""

    def __init__(self, groups: object) -> None:
        self._groups: list[tuple[str, tuple[str, ...], Mapping[str, object]]] = []
        self._inputs: dict[str, Mapping[str, object]] = {}
        for key, group in groups.items() if isinstance(groups, Mapping) else ():
            targets = group.get("targets") if isinstance(group, Mapping) else None
            weights = group.get("weights") if isinstance(group, Mapping) else None
            if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
                raise CheckpointError(
                    f"{_WHERE}.config_groups.{key}.targets must be a list of names, re:REGEX or Linear"
                )
            if weights is not None and not isinstance(weights, Mapping):
                raise CheckpointError(f"{_WHERE}.config_groups.{key}.weights is not a JSON object")
            self._groups.append((str(key), tuple(targets), weights or {}))
            inputs = group.get("input_activations") if isinstance(group, Mapping) else None
            if isinstance(inputs, Mapping):
                self._inputs[str(key)] = inputs

    def inputs_of(self, module: str) -> Mapping[str, object] | None:
        """`input_activations` of a module, where its group has any."""
        found = self._of(module)
        return None if found is None else self._inputs.get(found[0])

    def strategy_of(self, module: str) -> object:
        """How the scales of a module are shared, where a group says so."""
        try:
            return self.weights_of(module).fields.get("strategy")
        except CheckpointError:
            return None

    def weights_of(self, module: str) -> _Weights:
        """The group of a quantized module: by its name, then by regular expression, then as a Linear."""
        found = self._of(module)
        if found is None:
            raise CheckpointError(f"{_WHERE}.config_groups: no group targets '{module}', whose weight is quantized")
        return _Weights(f"{_WHERE}.config_groups.{found[0]}.weights", found[1])

    def _of(self, module: str) -> tuple[str, Mapping[str, object]] | None:
        """Key and weights of the group that a module is in."""
        for level in (_is_name, _is_expression, _is_class):
            for key, targets, weights in self._groups:
                if any(level(target, module) for target in targets):
                    return key, weights
        return None


def _is_name(target: str, module: str) -> bool:
    return target == module


def _is_expression(target: str, module: str) -> bool:
    try:
        return target.startswith("re:") and re.match(target[3:], module) is not None
    except re.error as failure:
        raise CheckpointError(f"{_WHERE}: target '{target}' is not a regular expression: {failure}") from failure


def _is_class(target: str, module: str) -> bool:
    return target == "Linear"


@dataclass(frozen=True, slots=True)
class _Weights:
    """The `weights` of one group. where: its path in config.json."""

    where: str
    fields: Mapping[str, object]

    def integer_format(self) -> SymmetricInteger | ZeroPointInteger:
        """Our format of these integers. Raises CheckpointError naming the field."""
        bits, kind = self.fields.get("num_bits"), self.fields.get("type", "int")
        if kind != "int":
            raise self._error("type", '"int" for this layout')
        if not isinstance(bits, int) or isinstance(bits, bool) or not 2 <= bits <= 8:
            raise self._error("num_bits", "2 to 8")
        if self.fields.get("actorder") in ("group", True):
            raise self._error("actorder", 'null, "weight" or "static"')
        symmetric = self.fields.get("symmetric", True)
        if not isinstance(symmetric, bool):
            raise self._error("symmetric", "true or false")
        try:
            found = get_format(f"int{bits}_{self._region()}{'' if symmetric else '_asym'}")
        except FormatError:
            raise self._error("group_size", "16, 32, 64, 128 or 256") from None
        assert isinstance(found, SymmetricInteger | ZeroPointInteger)
        return found

    def _region(self) -> str:
        size = self.fields.get("group_size")
        strategy = self.fields.get("strategy")
        if strategy is None:
            # Older files leave it out: a positive group size means groups, -1 a scale a row.
            strategy = "tensor" if size is None else "channel" if size == -1 else "group"
        if strategy == "group":
            return f"g{size}"
        if strategy in ("channel", "tensor"):
            return str(strategy)
        raise self._error("strategy", '"group", "channel" or "tensor"')

    def _error(self, field: str, allowed: str) -> CheckpointError:
        return CheckpointError(
            f"{self.where}.{field} is {self.fields.get(field)!r}; readable is {allowed}; use the original checkpoint"
        )


def _packed(weight: str, described: _Weights, files: Files) -> CompressedWeight:
    number_format = described.integer_format()
    if f"{weight}_g_idx" in files:
        raise CheckpointError(f"tensor '{weight}_g_idx': weights in another column order (actorder) cannot be read yet")
    arrays = {"codes": f"{weight}_packed", "scale": f"{weight}_scale", "shape": f"{weight}_shape"}
    if isinstance(number_format, ZeroPointInteger):
        arrays["zero_point"] = f"{weight}_zero_point"
    check_present(weight, arrays, files)
    rows, columns = _declared_shape(arrays["shape"], files)
    bits = number_format.code_bits
    check_array(arrays["codes"], files, ("I32",), (rows, -(-columns * bits // 32)))
    if "zero_point" in arrays:
        groups = number_format.region.grid(rows, columns)
        check_array(arrays["zero_point"], files, ("I32",), (-(-groups[0] * bits // 32), groups[1]))
    return _checked(weight, number_format, (rows, columns), arrays, files)


def _plain_integer(weight: str, described: _Weights, files: Files) -> CompressedWeight:
    number_format = described.integer_format()
    arrays = {"codes": weight, "scale": f"{weight}_scale"}
    check_present(weight, arrays, files)
    if number_format.code_bits != 8 or not isinstance(number_format, SymmetricInteger):
        raise CheckpointError(
            f"tensor '{weight}' holds {number_format.name} one to a byte; readable so are 8 bits without zero points"
        )
    return _checked(weight, number_format, matrix_shape(weight, files), arrays, files)


def _four_bit_float(weight: str, described: _Weights, files: Files) -> FourBitFloatWeight:
    """MXFP4 or NVFP4, as the size of the groups tells."""
    arrays = {"codes": f"{weight}_packed", "scale": f"{weight}_scale"}
    if described.fields.get("group_size") == NVFP4.group_size:
        arrays["global_scale"] = f"{weight}_global_scale"
    check_present(weight, arrays, files)
    rows, half = matrix_shape(arrays["codes"], files)
    is_nvfp4 = "global_scale" in arrays
    found = FourBitFloatWeight((rows, half * 2), arrays, is_exact=True)
    group = NVFP4.group_size if is_nvfp4 else MXFP4.group_size
    if half * 2 % group:
        raise CheckpointError(
            f"tensor '{arrays['codes']}' has rows of {half * 2}, which groups of {group} do not divide"
        )
    check_array(arrays["codes"], files, ("U8",), (rows, half))
    dtypes = ("F8_E4M3",) if is_nvfp4 else ("U8", "F8_E8M0")
    check_array(arrays["scale"], files, dtypes, (rows, half * 2 // group))
    if not is_nvfp4:
        return found
    check_array(arrays["global_scale"], files, ("F32",), (1,), ())
    scales = files[arrays["scale"]].data(arrays["scale"])
    is_one = float(files[arrays["global_scale"]].float32(arrays["global_scale"]).reshape(-1)[0]) == 1.0
    # ggml's blocks have no place for a second scale, and read no sign and no NaN in the first.
    is_exact = is_one and half * 2 % NVFP4.block_size == 0 and bool((scales < _NAN_SCALE).all())
    return replace(found, is_exact=is_exact)


def _checked(
    weight: str, number_format: ScopedNumber, shape: tuple[int, int], arrays: Mapping[str, str], files: Files
) -> CompressedWeight:
    """With its scales looked at: their shape, and whether ours hold them."""
    rows, columns = shape
    check_columns(weight, number_format, columns)
    grid = number_format.region.grid(rows, columns)
    shapes = _scale_shapes(grid, is_tensor=number_format.region.rows is None)
    check_array(arrays["scale"], files, ("F32", "F16", "BF16"), *shapes)
    return CompressedWeight(weight, number_format, shape, arrays, holds_scales(number_format, arrays["scale"], files))


def _scale_shapes(grid: tuple[int, int], *, is_tensor: bool) -> Iterator[tuple[int, ...]]:
    yield grid
    if grid[1] == 1:
        yield grid[:1]
    if is_tensor:
        yield ()


def _declared_shape(name: str, files: Files) -> tuple[int, int]:
    check_array(name, files, ("I64", "I32"), (2,))
    kind = "<i8" if files[name].tensors[name].dtype == "I64" else "<i4"
    rows, columns = (int(size) for size in np.frombuffer(files[name].data(name).tobytes(), dtype=kind))
    # Sizes that no array could back would overflow what is computed from them.
    if not (0 < rows < 1 << 31 and 0 < columns < 1 << 31):
        raise CheckpointError(f"tensor '{name}' says [{rows}, {columns}], which is no shape of a matrix")
    return rows, columns
