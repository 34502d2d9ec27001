# SPDX-License-Identifier: Apache-2.0
"""Quantized checkpoints: which method config.json names, and the reader of its arrays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lilliput.checkpoints import awq, bitsandbytes, compressed_tensors, eight_bit_floats, four_bit_floats, gptq, mlx
from lilliput.checkpoints.packed_weight import Files, PackedWeight
from lilliput.checkpoints.shards import read_json
from lilliput.errors import CheckpointError

# Methods beside compressed-tensors, which has kinds of its own.
METHODS = (gptq.METHOD, awq.METHOD, bitsandbytes.METHOD, four_bit_floats.METHOD, eight_bit_floats.METHOD, mlx.METHOD)


# What config.json said of it came in a file of its own before 2024; its method, where the file names none.
OLD_FILES = {"quantize_config.json": gptq.METHOD, "quant_config.json": awq.METHOD}


def described_quantization(folder: Path, config: Mapping[str, object]) -> object:
    """quantization_config of config.json, or what an older file beside it says; None for plain floats.

    Raises CheckpointError for an older file that is no JSON object.
    """
    if mlx.is_mlx(config.get("quantization")):
        described: Mapping[str, object] = config["quantization"]  # type: ignore[assignment]
        return {**described, "quant_method": mlx.METHOD}
    found = config.get("quantization_config")
    if found is not None:
        return found
    for name, method in OLD_FILES.items():
        if (folder / name).is_file():
            return {"quant_method": method, **read_json(folder / name)}
    return None


def check_quantization(quantization: object) -> None:
    """Refuse a pre-quantized checkpoint that cannot be read. Raises CheckpointError naming its method."""
    if quantization is None:
        return
    if not isinstance(quantization, Mapping):
        raise CheckpointError("config.json: quantization_config is not a JSON object")
    method = str(quantization.get("quant_method", "unknown"))
    kind = str(quantization.get("format", ""))
    if method in METHODS:
        return
    if compressed_tensors.is_compressed_tensors(quantization) and kind in compressed_tensors.READABLE:
        return
    spelled = f"{method} ({kind})" if kind else method
    raise CheckpointError(
        f"config.json: weights are already quantized with {spelled}, which cannot be read yet; readable are "
        f"{', '.join(METHODS)} and compressed-tensors ({', '.join(compressed_tensors.READABLE)}); "
        "use the original checkpoint"
    )


def packed_weights(quantization: object, files: Files) -> Mapping[str, PackedWeight]:
    """Weight name of the float checkpoint -> how it lies here; empty for checkpoints in plain floats.

    Raises CheckpointError naming the field of quantization_config, or the array, that cannot be read.
    """
    if not isinstance(quantization, Mapping):
        return {}
    match quantization.get("quant_method"):
        case compressed_tensors.METHOD:
            return compressed_tensors.packed_weights(quantization, files)
        case gptq.METHOD:
            return gptq.packed_weights(quantization, files)
        case awq.METHOD:
            return awq.packed_weights(quantization, files)
        case bitsandbytes.METHOD:
            return bitsandbytes.packed_weights(files)
        case mlx.METHOD:
            return mlx.packed_weights(quantization, files)
        case four_bit_floats.METHOD:
            return four_bit_floats.packed_weights(files)
        case eight_bit_floats.METHOD:
            return eight_bit_floats.packed_weights(quantization, files)
        case _:
            return {}
