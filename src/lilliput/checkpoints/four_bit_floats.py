# SPDX-License-Identifier: Apache-2.0
"""MXFP4 and NVFP4 as checkpoints store them, from and to ggml's blocks: the same codes and scales in another order.

layout   codes uint8 [rows, columns / 2], two a byte, the first in the low nibble; scales uint8 [rows, columns / 32]
         (MXFP4, E8M0) or [rows, columns / 16] (NVFP4, E4M3)
         MXFP4 checkpoints (gpt-oss): `<weight>_blocks` uint8 [..., columns / 32, 16],
         `<weight>_scales` [..., columns / 32]
config   config.json, quantization_config.quant_method mxfp4
source   openai/gpt-oss, OCP Microscaling 1.0; compressed-tensors 0.20
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from lilliput.arrays import Array, ByteArray, FloatArray
from lilliput.checkpoints.packed_weight import Files, check_array, check_present
from lilliput.errors import CheckpointError
from lilliput.formats import Encoded, NumberFormat, Planes, get_format
from lilliput.formats.codebooks import codebook

METHOD = "mxfp4"


def blocks_of(number_format: NumberFormat, codes: ByteArray, scales: ByteArray) -> Planes:
    """Planes of MXFP4 or NVFP4. codes: uint8 [rows, columns / 2].  scales: uint8 [rows, groups]."""
    unpacked = np.stack([codes & np.uint8(15), codes >> np.uint8(4)], axis=-1).reshape(codes.shape[0], -1)
    return number_format.pack(Encoded(unpacked, {"scale_code": scales}))


def codes_and_scales(number_format: NumberFormat, planes: Planes, columns: int) -> tuple[ByteArray, ByteArray]:
    """The inverse of `blocks_of`."""
    encoded = number_format.unpack(planes, columns)
    codes = np.asarray(encoded.codes, dtype=np.uint8)
    return codes[:, ::2] | (codes[:, 1::2] << np.uint8(4)), np.asarray(encoded.parameters["scale_code"], np.uint8)


def four_bit_numbers(codes: ByteArray) -> FloatArray:
    """float32 [rows, columns] of codes uint8 [rows, columns / 2], before any scale."""
    unpacked = np.stack([codes & np.uint8(15), codes >> np.uint8(4)], axis=-1).reshape(codes.shape[0], -1)
    numbers: FloatArray = codebook("e2m1_doubled")[unpacked] * np.float32(0.5)
    return numbers


@dataclass(frozen=True, slots=True)
class BlocksWeight:
    """One weight of an MXFP4 checkpoint."""

    shape: tuple[int, ...]
    arrays: Mapping[str, str]

    @property
    def format(self) -> NumberFormat:
        """MXFP4."""
        return get_format("mxfp4")

    def planes(self, files: Files) -> Planes:
        """Planes of `format`, rows in the checkpoint's order."""
        rows = prod(self.shape[:-1])
        codes, scales = (self._bytes(role, files).reshape(rows, -1) for role in ("codes", "scale"))
        return blocks_of(self.format, codes, scales)

    def _bytes(self, role: str, files: Files) -> Array:
        return files[self.arrays[role]].data(self.arrays[role])


def packed_weights(files: Files) -> dict[str, BlocksWeight]:
    """Weight name of the float checkpoint -> how it lies here. Raises CheckpointError naming the array."""
    found: dict[str, BlocksWeight] = {}
    for name in files:
        if name.endswith("_blocks"):
            weight = name.removesuffix("_blocks")
            arrays = {"codes": name, "scale": f"{weight}_scales"}
            check_present(weight, arrays, files)
            shape = files[name].tensors[name].shape
            if len(shape) < 3 or shape[-1] != 16:
                raise CheckpointError(f"tensor '{name}' has shape {list(shape)}; its last axis must be 16 bytes")
            check_array(name, files, ("U8",), shape)
            check_array(arrays["scale"], files, ("U8", "F8_E8M0"), shape[:-1])
            found[weight] = BlocksWeight((*shape[:-2], shape[-2] * 32), arrays)
    return found
