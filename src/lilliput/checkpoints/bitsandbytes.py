# SPDX-License-Identifier: Apache-2.0
"""Weights of a bitsandbytes checkpoint as our own formats: NF4, FP4 and int8 with the same codes and scales.

layout   4 bits: `<weight>` uint8 [out * in / 2, 1], two codes a byte, the first in the high nibble, in blocks of
         `blocksize` weights that run on over rows; `<weight>.absmax` float32 [blocks];
         `<weight>.quant_map` float32 [16];
         `<weight>.quant_state.bitsandbytes__nf4` (or `__fp4`) uint8: JSON with quant_type, blocksize, dtype, shape
         double quantized: absmax uint8, `<weight>.nested_absmax` float32, `<weight>.nested_quant_map` float32 [256],
         and nested_blocksize, nested_offset in the JSON: absmax = map[code] * nested_absmax + offset
         8 bits: `<weight>` int8 [out, in]; `<module>.SCB` float32 [out]; `<module>.weight_format` uint8, 0 = plain
value    4 bits: absmax * quant_map[code];  8 bits: SCB / 127 * code
config   config.json, quantization_config: load_in_4bit or load_in_8bit
source   the arrays that bitsandbytes 0.50 and transformers 5.23 read and write
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lilliput.arrays import Array, ByteArray, FloatArray
from lilliput.checkpoints.packed_weight import (
    Files,
    PackedWeight,
    as_floats,
    as_stored,
    check_array,
    check_present,
    matrix_shape,
    region_of_groups,
)
from lilliput.errors import CheckpointError
from lilliput.formats import NumberFormat, Planes, get_format
from lilliput.formats.fp4_bitsandbytes import BitsAndBytesFP4, fp4_numbers
from lilliput.formats.nf4 import NF4, nf4_levels

METHOD = "bitsandbytes"
STATE = ".quant_state.bitsandbytes__"
# SCB is the largest magnitude of a row, which code 127 stands for.
STEPS = np.float32(127)
_LARGEST_BLOCK = 1 << 16
# Of our formats by name.
LEVELS = {"nf4": nf4_levels(), "fp4bnb": fp4_numbers()}


def is_bitsandbytes(quantization: object) -> bool:
    """Whether config.json's quantization_config is one of this kind."""
    return isinstance(quantization, Mapping) and quantization.get("quant_method") == METHOD


def swapped_nibbles(data: ByteArray) -> ByteArray:
    """High nibble first from low nibble first, and back."""
    return (data << np.uint8(4)) | (data >> np.uint8(4))


@dataclass(frozen=True, slots=True)
class FourBitWeight:
    """One weight in 4 bits.

    block: weights under one absmax, running on over rows.  nested: its second level, offset and block; None for one.
    number_format: of the codes where blocks lie within rows and the levels are known, else None, and it is F32.
    """

    name: str
    shape: tuple[int, int]
    arrays: Mapping[str, str]
    block: int
    nested: tuple[float, int] | None
    number_format: NF4 | BitsAndBytesFP4 | None

    @property
    def format(self) -> NumberFormat:
        """What the weight is in memory."""
        return self.number_format or get_format("f32")

    def planes(self, files: Files) -> Planes:
        """Planes of `format`, rows in the checkpoint's order."""
        rows, columns = self.shape
        packed = swapped_nibbles(files[self.arrays["codes"]].data(self.arrays["codes"]))
        absmax = self._absmax(files)
        if self.number_format is not None:
            group = self.number_format.region.columns or 1
            scale = np.repeat(absmax, self.block // group)[: rows * columns // group]
            planes: dict[str, Array] = {"codes": packed.reshape(rows, -1), "scale": scale.reshape(rows, -1)}
            return as_stored(self.number_format, planes, self.shape)
        levels = files[self.arrays["levels"]].float32(self.arrays["levels"])
        codes = np.stack([packed & np.uint8(15), packed >> np.uint8(4)], axis=-1).reshape(-1)[: rows * columns]
        return as_floats((levels[codes] * np.repeat(absmax, self.block)[: codes.size]).reshape(rows, columns))

    def _absmax(self, files: Files) -> FloatArray:
        name = self.arrays["scale"]
        if self.nested is None:
            return files[name].float32(name).reshape(-1)
        offset, block = self.nested
        table, outer = (files[self.arrays[role]].float32(self.arrays[role]) for role in ("nested_map", "nested_scale"))
        codes = files[name].data(name)
        return table[codes] * np.repeat(outer, block)[: codes.size] + np.float32(offset)


@dataclass(frozen=True, slots=True)
class EightBitWeight:
    """One weight in int8 with a scale a row."""

    name: str
    shape: tuple[int, int]
    arrays: Mapping[str, str]

    @property
    def format(self) -> NumberFormat:
        """int8_channel."""
        return get_format("int8_channel")

    def planes(self, files: Files) -> Planes:
        """Planes of `format`, rows in the checkpoint's order."""
        codes = files[self.arrays["codes"]].data(self.arrays["codes"]) ^ np.uint8(0x80)
        scale = files[self.arrays["scale"]].float32(self.arrays["scale"]) / STEPS
        return {"codes": codes.reshape(self.shape), "scale": scale.reshape(-1, 1)}


def packed_weights(files: Files) -> dict[str, PackedWeight]:
    """Weight name of the float checkpoint -> how it lies here. Raises CheckpointError naming the array."""
    found: dict[str, PackedWeight] = {}
    for name in files:
        weight, mark, _ = name.rpartition(STATE)
        if mark:
            found[weight] = _four_bits(weight, name, files)
        elif name.endswith(".SCB"):
            weight = f"{name.removesuffix('.SCB')}.weight"
            found[weight] = _eight_bits(weight, name, files)
    return found


def _eight_bits(weight: str, scale: str, files: Files) -> EightBitWeight:
    arrays = {"codes": weight, "scale": scale}
    check_present(weight, arrays, files)
    rows, columns = matrix_shape(weight, files)
    check_array(weight, files, ("I8",), (rows, columns))
    check_array(scale, files, ("F32",), (rows,), (rows, 1))
    order = f"{weight}_format"
    if order in files:
        arrays["order"] = order
        if files[order].data(order).any():
            raise CheckpointError(f"tensor '{order}' is not 0: int8 rows in another order; save it again on this CPU")
    return EightBitWeight(weight, (rows, columns), arrays)


def _four_bits(weight: str, state_name: str, files: Files) -> FourBitWeight:
    state = _state(state_name, files)
    shape, block = state.get("shape"), state.get("blocksize")
    if not isinstance(shape, list) or len(shape) != 2 or not all(isinstance(n, int) and 0 < n < 1 << 31 for n in shape):
        raise CheckpointError(f"tensor '{state_name}' says shape {shape!r}, which is no shape of a matrix")
    if not isinstance(block, int) or isinstance(block, bool) or not 2 <= block <= _LARGEST_BLOCK:
        raise CheckpointError(f"tensor '{state_name}' says blocks of {block!r}; 2 to {_LARGEST_BLOCK} is possible")
    rows, columns = shape
    arrays = {"codes": weight, "scale": f"{weight}.absmax", "levels": f"{weight}.quant_map", "state": state_name}
    nested = _nested(weight, state, state_name)
    if nested is not None:
        arrays |= {"nested_scale": f"{weight}.nested_absmax", "nested_map": f"{weight}.nested_quant_map"}
    check_present(weight, arrays, files)
    bytes_of_codes, blocks = -(-rows * columns // 2), -(-rows * columns // block)
    check_array(weight, files, ("U8",), (bytes_of_codes, 1), (1, bytes_of_codes), (bytes_of_codes,))
    check_array(arrays["scale"], files, ("F32",) if nested is None else ("U8",), (blocks,))
    check_array(arrays["levels"], files, ("F32",), (16,))
    if nested is not None:
        check_array(arrays["nested_scale"], files, ("F32",), (-(-blocks // nested[1]),))
        check_array(arrays["nested_map"], files, ("F32",), (256,))
    levels = files[arrays["levels"]].float32(arrays["levels"])
    kind = next((kind for kind, known in LEVELS.items() if np.array_equal(levels, known)), None)
    number_format = None if kind is None else _in_groups(kind, block, columns)
    return FourBitWeight(weight, (rows, columns), arrays, block, nested, number_format)


def _nested(weight: str, state: Mapping[str, object], state_name: str) -> tuple[float, int] | None:
    """Offset and block of doubly quantized scales."""
    if "nested_blocksize" not in state:
        return None
    offset, block = state.get("nested_offset"), state["nested_blocksize"]
    if not isinstance(offset, int | float) or not math.isfinite(offset):
        raise CheckpointError(f"tensor '{state_name}' says nested_offset {offset!r}, which is no number")
    if not isinstance(block, int) or isinstance(block, bool) or not 1 <= block <= _LARGEST_BLOCK:
        raise CheckpointError(f"tensor '{state_name}' says nested_blocksize {block!r} of '{weight}'")
    return float(offset), block


def _in_groups(kind: str, block: int, columns: int) -> NF4 | BitsAndBytesFP4 | None:
    """The format in groups that no block's border cuts; None where blocks and rows share no such size."""
    fixed = region_of_groups(math.gcd(block, columns), columns)
    if fixed is None or not fixed[0].is_group:
        return None
    found = get_format(f"{kind}_{fixed[0].name}" if fixed[0].columns != 64 else kind)
    assert isinstance(found, NF4 | BitsAndBytesFP4)
    return found


def _state(name: str, files: Files) -> Mapping[str, object]:
    if files[name].tensors[name].dtype != "U8":
        raise CheckpointError(f"tensor '{name}' is {files[name].tensors[name].dtype}; it must be text in bytes")
    try:
        state = json.loads(files[name].data(name).tobytes().decode("utf-8"))
    except (ValueError, RecursionError) as failure:
        raise CheckpointError(f"tensor '{name}' is not valid JSON: {failure}") from failure
    if not isinstance(state, dict):
        raise CheckpointError(f"tensor '{name}' is not a JSON object")
    return state
