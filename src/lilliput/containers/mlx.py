# SPDX-License-Identifier: Apache-2.0
"""MLX: a Hugging Face folder of quantized weights that mlx-lm runs, on Apple's chips and, more slowly, on any CPU.

The arrays are described in `checkpoints.mlx`, which is also the reader.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from lilliput.architectures.architecture import Json
from lilliput.arrays import Array
from lilliput.checkpoints.four_bit_floats import codes_and_scales
from lilliput.checkpoints.mlx import BITS, GROUPS, METHOD, SMALL_FLOATS, is_mlx
from lilliput.containers.checkpoint_folder import PLAIN, CheckpointFolder, Linear, Stored
from lilliput.containers.container import Contents
from lilliput.formats import NumberFormat, Planes
from lilliput.formats.four_bit_float import FourBitFloat
from lilliput.formats.integer_affine import AffineInteger
from lilliput.formats.scoped_number import pack_bits
from lilliput.records import QuantizedTensor, TensorHeader


class MlxPacking:
    """Integers on a line with a minimum a group, MXFP4 and NVFP4; every layer may have a format of its own."""

    name = METHOD
    suffix = ".mlx"
    has_one_format = False
    holds_text = (
        "it holds 2, 3, 4, 5, 6 and 8 bits with a scale and a minimum for 32, 64 or 128 weights (INT4_G64_AFFINE), "
        "MXFP4, NVFP4, and F32, F16, BF16"
    )

    def recognises(self, quantization: object) -> bool:
        """By the fields that only it has."""
        return is_mlx(quantization)

    def holds(self, number_format: NumberFormat) -> bool:
        """See `holds_text`."""
        if isinstance(number_format, AffineInteger):
            is_known = number_format.bits in BITS and number_format.block_size in GROUPS
            return is_known and number_format.has_half_scales
        return isinstance(number_format, FourBitFloat)

    def check(self, headers: Sequence[TensorHeader]) -> None:
        """Nothing: every layer may have a format of its own."""

    def arrays(self, header: TensorHeader, *, has_wide_scales: bool) -> tuple[Stored, ...]:
        """Codes, scales, minimums."""
        number_format = header.format
        bits, group, _ = _described(number_format)
        rows, columns = header.rows, header.columns
        codes = Stored(".weight", "U32", (rows, columns * bits // 32), rows * columns * bits // 8)
        shape, count = (rows, columns // group), rows * (columns // group)
        if isinstance(number_format, FourBitFloat):
            return codes, Stored(".scales", "U8", shape, count)
        kind, nbytes = ("F32", 4 * count) if has_wide_scales else ("F16", 2 * count)
        return codes, Stored(".scales", kind, shape, nbytes), Stored(".biases", kind, shape, nbytes)

    def stored(self, tensor: TensorHeader, planes: Planes, *, has_wide_scales: bool) -> dict[str, Array]:
        """See `checkpoints.mlx`."""
        number_format = tensor.format
        if isinstance(number_format, FourBitFloat):
            codes, scales = codes_and_scales(number_format, planes, tensor.columns)
            return {".weight": codes, ".scales": scales}
        assert isinstance(number_format, AffineInteger)
        encoded = number_format.unpack(planes, tensor.columns)
        kind = "<f4" if has_wide_scales else "<f2"
        return {
            ".weight": pack_bits(encoded.codes, number_format.bits),
            ".scales": np.asarray(encoded.parameters["scale"]).astype(kind),
            ".biases": np.asarray(encoded.parameters["minimum"]).astype(kind),
        }

    def settled(self, tensor: QuantizedTensor) -> QuantizedTensor:
        """As it is."""
        return tensor

    def quantization(self, layers: Sequence[Linear]) -> dict[str, Json]:
        """`quantization` as mlx-lm writes it: of the first format, and of every layer that differs."""
        found: dict[str, Json] = {}
        others: dict[str, Json] = {}
        for layer in layers:
            if layer.format is None or layer.format.name in PLAIN:
                continue
            bits, group, mode = _described(layer.format)
            settings: dict[str, Json] = {"group_size": group, "bits": bits, "mode": mode}
            if not found:
                found = settings
            elif settings != found:
                others[layer.module] = settings
        return {**found, **others}


class Mlx(CheckpointFolder):
    """A folder for mlx-lm."""

    def __init__(self) -> None:
        super().__init__(MlxPacking())

    def _config(self, contents: Contents) -> str:
        """config.json with the description in both places where mlx-lm writes it."""
        config = json.loads(super()._config(contents))
        config["quantization"] = config["quantization_config"]
        return json.dumps(config, indent=2, ensure_ascii=False) + "\n"


def _described(number_format: NumberFormat) -> tuple[int, int, str]:
    """Bits, columns under one scale, mode."""
    if isinstance(number_format, AffineInteger):
        return number_format.bits, number_format.block_size, "affine"
    return 4, SMALL_FLOATS[number_format.name], number_format.name
