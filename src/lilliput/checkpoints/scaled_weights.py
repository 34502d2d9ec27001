# SPDX-License-Identifier: Apache-2.0
"""FP8 checkpoints: 8-bit floats with a scale per tensor, per row, or per 128 x 128 block, as exact float32.

`weight_scale_inv` (DeepSeek-V3, arXiv 2412.19437 section 3.3; Qwen3-FP8) and `weight_scale` (compressed-tensors
float-quantized) both multiply, whatever the first one's name says.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lilliput.arrays import FloatArray
from lilliput.errors import CheckpointError

FP8 = ("F8_E4M3", "F8_E5M2")
# Not read as tensors: ranges of inputs (`static_inputs` has those of compressed-tensors), of outputs and of caches.
IGNORED_SUFFIXES = ("input_scale", "output_scale", "k_scale", "v_scale", "input_zero_point")


def block_shape(quantization: object) -> tuple[int, int]:
    """Rows and columns that share one `weight_scale_inv`, from config.json's quantization_config."""
    if isinstance(quantization, Mapping):
        found = quantization.get("weight_block_size")
        if isinstance(found, list) and len(found) == 2 and all(isinstance(size, int) and size > 0 for size in found):
            return int(found[0]), int(found[1])
    return 128, 128


def apply_scale(name: str, weight: FloatArray, scale: FloatArray, block: tuple[int, int]) -> FloatArray:
    """Multiply by the scale.

    weight: [out, in].  scale: one value, [out, 1], or one per block, ragged blocks at the edges.
    Raises CheckpointError naming the tensor when the shapes do not belong together.
    """
    rows, columns = weight.shape
    if scale.size == 1:
        return weight * np.float32(scale.reshape(-1)[0])
    if scale.shape in ((rows, 1), (rows,)):
        return weight * scale.reshape(rows, 1)
    if scale.shape == (-(-rows // block[0]), -(-columns // block[1])):
        result = weight.copy()
        for index, row_scale in enumerate(scale):
            part = slice(index * block[0], (index + 1) * block[0])
            result[part] *= np.repeat(row_scale, block[1])[:columns]
        return result
    raise CheckpointError(
        f"tensor '{name}' [{rows}, {columns}] has a scale of shape {list(scale.shape)}; "
        f"one value, [{rows}, 1] or one per {block[0]} x {block[1]} block is readable"
    )
