# SPDX-License-Identifier: Apache-2.0
"""Weights of an MLX checkpoint (Apple's framework; mlx-lm) as our own formats: the same codes, scales and minimums.

layout   a linear layer or embedding `<module>` has, in place of the float `<module>.weight` [out, in]:
         weight  uint32 [out, in * bits / 32]: rows of little-endian bit strings
         scales, biases  float [out, in / group_size];  mxfp4 and nvfp4: scales uint8 (E8M0, E4M3) and no biases
value    scale * code + bias;  mxfp4, nvfp4: scale * E2M1 number
config   config.json, quantization: group_size, bits, mode (affine where absent), and the same by module for layers
         that differ; quantization_config repeats it, without a quant_method
source   the arrays that mlx 0.32 and mlx-lm 0.32 read and write
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lilliput.checkpoints.four_bit_floats import blocks_of
from lilliput.checkpoints.packed_weight import Files, check_array, check_columns, check_present, matrix_shape
from lilliput.errors import CheckpointError
from lilliput.formats import Encoded, NumberFormat, Planes, find_format, get_format
from lilliput.formats.scoped_number import unpack_bits

METHOD = "mlx"
BITS = (2, 3, 4, 5, 6, 8)
GROUPS = (32, 64, 128)
# Mode -> columns under one scale.
SMALL_FLOATS = {"mxfp4": 32, "nvfp4": 16}
_WHERE = "config.json: quantization"


def is_mlx(described: object) -> bool:
    """Whether config.json's `quantization` is one of this kind."""
    return isinstance(described, Mapping) and "group_size" in described and "bits" in described


@dataclass(frozen=True, slots=True)
class MlxWeight:
    """One weight as it lies in the files."""

    number_format: NumberFormat
    shape: tuple[int, int]
    arrays: Mapping[str, str]

    @property
    def format(self) -> NumberFormat:
        """An affine integer, MXFP4 or NVFP4."""
        return self.number_format

    def planes(self, files: Files) -> Planes:
        """Planes of `format`, rows in the checkpoint's order."""
        rows, columns = self.shape
        packed = files[self.arrays["codes"]].data(self.arrays["codes"]).reshape(rows, -1)
        if "minimum" not in self.arrays:
            scales = files[self.arrays["scale"]].data(self.arrays["scale"]).reshape(rows, -1)
            return blocks_of(self.format, np.asarray(packed), np.asarray(scales))
        bits = packed.shape[1] * 8 // columns
        parameters = {role: files[self.arrays[role]].float32(self.arrays[role]) for role in ("scale", "minimum")}
        return self.format.pack(Encoded(unpack_bits(np.ascontiguousarray(packed), bits, columns), parameters))


def packed_weights(described: Mapping[str, object], files: Files) -> dict[str, MlxWeight]:
    """Weight name of the float checkpoint -> how it lies here.

    Raises CheckpointError naming the field of `quantization`, or the array, that cannot be read.
    """
    modules = [name.removesuffix(".scales") for name in files if name.endswith(".scales")]
    return {f"{module}.weight": _weight(module, _settings(described, module), files) for module in modules}


def _settings(described: Mapping[str, object], module: str) -> Mapping[str, object]:
    own = described.get(module)
    return {**described, **own} if isinstance(own, Mapping) else described


def _weight(module: str, settings: Mapping[str, object], files: Files) -> MlxWeight:
    mode = str(settings.get("mode", "affine"))
    arrays = {"codes": f"{module}.weight", "scale": f"{module}.scales"}
    if mode == "affine":
        arrays["minimum"] = f"{module}.biases"
    elif mode not in SMALL_FLOATS:
        raise CheckpointError(f"{_WHERE}.mode is '{mode}'; readable are affine, {', '.join(SMALL_FLOATS)}")
    elif f"{module}.global_scale" in files:
        raise CheckpointError(f"tensor '{module}.global_scale': a second scale of a matrix cannot be read")
    check_present(f"{module}.weight", arrays, files)
    rows, groups = matrix_shape(arrays["scale"], files)
    size, bits = settings.get("group_size"), settings.get("bits")
    size = SMALL_FLOATS.get(mode, size)
    bits = 4 if mode in SMALL_FLOATS else bits
    if not isinstance(size, int) or not isinstance(bits, int) or bits not in BITS or size < 1:
        raise CheckpointError(f"{_WHERE}: group_size {size!r} and bits {bits!r} of '{module}' are not what mlx writes")
    columns = groups * size
    check_array(arrays["codes"], files, ("U32",), (rows, columns * bits // 32))
    check_array(arrays["scale"], files, ("F16", "BF16", "F32") if mode == "affine" else ("U8",), (rows, groups))
    if mode != "affine":
        return MlxWeight(get_format(mode), (rows, columns), arrays)
    check_array(arrays["minimum"], files, ("F16", "BF16", "F32"), (rows, groups))
    is_half = all(_are_halves(arrays[role], files) for role in ("scale", "minimum"))
    number_format = find_format(f"int{bits}_g{size}_affine{'' if is_half else '_f32'}")
    if number_format is None:
        raise CheckpointError(f"{_WHERE}.group_size is {size}; readable are {', '.join(map(str, GROUPS))}")
    check_columns(f"{module}.weight", number_format, columns)
    return MlxWeight(number_format, (rows, columns), arrays)


def _are_halves(name: str, files: Files) -> bool:
    """Whether all numbers are fp16 ones. Reads them only where their type leaves it open."""
    if files[name].tensors[name].dtype == "F16":
        return True
    values = files[name].float32(name)
    with np.errstate(over="ignore", under="ignore"):
        return bool(np.array_equal(values.astype(np.float16).astype(np.float32), values))
