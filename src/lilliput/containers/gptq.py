# SPDX-License-Identifier: Apache-2.0
"""GPTQ: a Hugging Face folder that GPTQModel, transformers, vLLM and SGLang read.

The arrays are described in `checkpoints.gptq`, which is also the reader. Zero points are stored as "gptq" (v1) for
symmetric weights, which every runtime reads, and as "gptq_v2" for others, since v1 has no place for a zero point of 0.
Formats named …_ordered have their groups in the order of importance: then desc_act is true and g_idx says which group
a column is in; otherwise g_idx counts up.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lilliput.architectures.architecture import Json
from lilliput.arrays import Array
from lilliput.checkpoints.gptq import BITS, METHOD, V1, V2, is_gptq
from lilliput.containers.checkpoint_folder import PLAIN, CheckpointFolder, Linear, Stored
from lilliput.errors import ContainerError
from lilliput.formats import NumberFormat, Planes
from lilliput.formats.integer import SymmetricInteger
from lilliput.formats.integer_zero_point import ZeroPointInteger
from lilliput.formats.ordered_groups import COLUMN_GROUP, OrderedGroups
from lilliput.formats.scoped_number import pack_bits
from lilliput.records import QuantizedTensor, TensorHeader


class GptqPacking:
    """Integers with or without zero points, all of one format."""

    name = METHOD
    suffix = ".gptq"
    has_one_format = True
    holds_text = (
        "it holds int2, int3, int4 and int8 with a scale a group or row, with zero points or without (INT4_G128, "
        "INT4_G128_ASYM, INT8_CHANNEL), groups in order of importance (INT4_G128_ORDERED), and F32, F16, BF16"
    )

    def recognises(self, quantization: object) -> bool:
        """By its method."""
        return is_gptq(quantization)

    def holds(self, number_format: NumberFormat) -> bool:
        """See `holds_text`."""
        if isinstance(number_format, OrderedGroups):
            number_format = number_format.base
        return (
            isinstance(number_format, SymmetricInteger | ZeroPointInteger)
            and number_format.code_bits in BITS
            and number_format.region.rows == 1
            and not number_format.name.endswith("_f32")
        )

    def check(self, headers: Sequence[TensorHeader]) -> None:
        """One format, sizes that fill whole words. Raises ContainerError."""
        check_one_format(self.name, headers)
        check_words(self.name, headers)

    def arrays(self, header: TensorHeader, *, has_wide_scales: bool) -> tuple[Stored, ...]:
        """Codes, zero points, scales, group of each column."""
        number_format = _integers(header.format)
        rows, columns, bits = header.rows, header.columns, number_format.code_bits
        groups = number_format.region.grid(rows, columns)[1]
        # Scales of rows are float32 here; readers convert them to the type that they compute in.
        dtype, size = ("F16", 2) if number_format.region.is_group else ("F32", 4)
        return (
            Stored(".qweight", "I32", (columns * bits // 32, rows), columns * bits // 8 * rows),
            Stored(".qzeros", "I32", (groups, rows * bits // 32), groups * rows * bits // 8),
            Stored(".scales", dtype, (groups, rows), groups * rows * size),
            Stored(".g_idx", "I32", (columns,), columns * 4),
        )

    def stored(self, tensor: TensorHeader, planes: Planes, *, has_wide_scales: bool) -> dict[str, Array]:
        """See `checkpoints.gptq`."""
        number_format = _integers(tensor.format)
        bits, region = number_format.code_bits, number_format.region
        words = np.ascontiguousarray(planes["codes"]).view("<i4")
        if isinstance(number_format, ZeroPointInteger):
            zero_point = np.ascontiguousarray(planes["zero_point"].T)
        else:
            # v1 stores one less.
            middle = (1 << (bits - 1)) - 1
            zero_point = np.full(planes["scale"].T.shape, middle, dtype=np.uint8)
        group = region.columns or tensor.columns
        if isinstance(tensor.format, OrderedGroups):
            group_of = np.asarray(planes[COLUMN_GROUP]).reshape(-1)
        else:
            group_of = np.arange(tensor.columns) // group
        return {
            ".qweight": np.ascontiguousarray(words.T),
            ".qzeros": pack_bits(zero_point, bits).view("<i4"),
            ".scales": np.ascontiguousarray(planes["scale"].T),
            ".g_idx": group_of.astype("<i4"),
        }

    def settled(self, tensor: QuantizedTensor) -> QuantizedTensor:
        """As it is; groups in an order that is the columns' own are groups of columns to the reader."""
        if not isinstance(tensor.format, OrderedGroups) or not tensor.format.is_in_columns_order(tensor.planes):
            return tensor
        planes = {name: array for name, array in tensor.planes.items() if name != COLUMN_GROUP}
        return replace(tensor, format=tensor.format.base, planes=planes)

    def quantization(self, layers: Sequence[Linear]) -> dict[str, Json]:
        """quantization_config as GPTQModel writes it."""
        chosen = next(layer.format for layer in layers if layer.format is not None and layer.format.name not in PLAIN)
        number_format = _integers(chosen)
        is_symmetric = isinstance(number_format, SymmetricInteger)
        config: dict[str, Json] = {
            "quant_method": METHOD,
            "bits": number_format.code_bits,
            "group_size": number_format.region.columns or -1,
            "sym": is_symmetric,
            "desc_act": isinstance(chosen, OrderedGroups),
            "static_groups": False,
            "true_sequential": True,
            "damp_percent": 0.01,
            "checkpoint_format": V1 if is_symmetric else V2,
            "lm_head": any(layer.module == "lm_head" and layer.format is chosen for layer in layers),
            "pack_dtype": "int32",
        }
        left = [layer.module for layer in layers if layer.format is not chosen and layer.module != "lm_head"]
        if left:
            # transformers asks for what is quantized, GPTQModel and vLLM for what is not.
            quantized: list[Json] = [layer.module for layer in layers if layer.format is chosen]
            config["modules_in_block_to_quantize"] = [quantized]
            config["dynamic"] = {f"-:^{re.escape(module)}$": {} for module in left}
        return config


class Gptq(CheckpointFolder):
    """A folder for GPTQModel, transformers and vLLM."""

    takes_experts = True

    def __init__(self) -> None:
        super().__init__(GptqPacking())


def _integers(number_format: NumberFormat) -> SymmetricInteger | ZeroPointInteger:
    """What codes, scales and zero points are of."""
    found = number_format.base if isinstance(number_format, OrderedGroups) else number_format
    assert isinstance(found, SymmetricInteger | ZeroPointInteger)
    return found


def check_one_format(name: str, headers: Sequence[TensorHeader]) -> None:
    """Raise ContainerError where quantized tensors differ in format: the config has one for all."""
    first = headers[0]
    for header in headers:
        if header.format.name != first.format.name:
            raise ContainerError(
                f"tensors '{first.name}' ({first.format.name.upper()}) and '{header.name}' "
                f"({header.format.name.upper()}): a {name} folder has one quantized format for all layers; "
                "keep the others in F16, or write compressed-tensors, which mixes formats"
            )


def check_words(name: str, headers: Sequence[TensorHeader]) -> None:
    """Raise ContainerError where rows or columns do not fill words of 32 bits."""
    for header in headers:
        if header.rows % 32 or header.columns % 32:
            raise ContainerError(
                f"tensor '{header.name}' [{header.rows}, {header.columns}]: {name} packs outputs and inputs in words "
                "that need multiples of 32; keep this tensor in F16"
            )
