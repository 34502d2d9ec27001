# SPDX-License-Identifier: Apache-2.0
"""FP8 checkpoints as our own formats: E4M3 with a float32 scale per tensor, row, or block of 128 x 128.

layout   `<weight>` F8_E4M3 [out, in]; `<weight>_scale_inv` (DeepSeek-V3, Qwen3-FP8) or `<weight>_scale`, which both
         multiply, whatever the first one's name says: one value, [out, 1], or [ceil(out / 128), ceil(in / 128)]
config   config.json, quantization_config: quant_method fp8, weight_block_size
source   DeepSeek-V3 (arXiv 2412.19437, section 3.3); compressed-tensors 0.20

Scales of other shapes, E5M2, and rows that do not divide into blocks are left to `scaled_weights`: exact float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lilliput.checkpoints.packed_weight import Files, as_stored, matrix_shape
from lilliput.formats import Planes, get_format
from lilliput.formats.eight_bit_float import EightBitFloat

METHOD = "fp8"
SCALE_SUFFIXES = ("_scale_inv", "_scale")
BLOCK = 128


@dataclass(frozen=True, slots=True)
class EightBitFloatWeight:
    """One weight."""

    shape: tuple[int, int]
    arrays: Mapping[str, str]
    format: EightBitFloat

    def planes(self, files: Files) -> Planes:
        """Planes of `format`, rows in the checkpoint's order."""
        codes = files[self.arrays["codes"]].data(self.arrays["codes"]).reshape(self.shape)
        scale = files[self.arrays["scale"]].float32(self.arrays["scale"])
        grid = self.format.region.grid(*self.shape)
        return as_stored(self.format, {"codes": codes, "scale": scale.reshape(grid)}, self.shape)


def packed_weights(quantization: Mapping[str, object], files: Files) -> dict[str, EightBitFloatWeight]:
    """Weight name -> how it lies here, for every E4M3 weight whose scale is of a known shape."""
    block = quantization.get("weight_block_size")
    has_blocks = block in (None, [BLOCK, BLOCK])
    found: dict[str, EightBitFloatWeight] = {}
    for name, file in files.items():
        if file.tensors[name].dtype == "F8_E4M3" and name.endswith(".weight"):
            weight = eight_bit_float(name, files, has_blocks=has_blocks, is_surely_blocks=block == [BLOCK, BLOCK])
            found |= {name: weight} if weight is not None else {}
    return found


def eight_bit_float(
    weight: str, files: Files, *, has_blocks: bool = True, is_surely_blocks: bool = False
) -> EightBitFloatWeight | None:
    """How one weight lies here; None where its scales are of another shape.

    has_blocks: whether blocks of 128 x 128 are possible.  is_surely_blocks: what a single scale of a small matrix is.
    """
    scale = next((weight + suffix for suffix in SCALE_SUFFIXES if weight + suffix in files), None)
    if scale is None or files[scale].tensors[scale].dtype not in ("F32", "F16", "BF16"):
        return None
    rows, columns = matrix_shape(weight, files)
    shape = files[scale].tensors[scale].shape
    regions = _regions(shape, rows, columns)
    wanted = ("block128", "tensor", "channel") if is_surely_blocks else ("tensor", "channel", "block128")
    region = next((name for name in wanted if name in regions and (has_blocks or name != "block128")), None)
    if region is None:
        return None
    number_format = get_format(f"fp8_e4m3_{region}")
    assert isinstance(number_format, EightBitFloat)
    return EightBitFloatWeight((rows, columns), {"codes": weight, "scale": scale}, number_format)


def _regions(shape: tuple[int, ...], rows: int, columns: int) -> set[str]:
    """Every region that a scale of this shape may belong to."""
    found = {"tensor"} if shape in ((), (1,), (1, 1)) else set()
    if shape in ((rows,), (rows, 1)):
        found.add("channel")
    if columns % BLOCK == 0 and shape == (-(-rows // BLOCK), columns // BLOCK):
        found.add("block128")
    return found
