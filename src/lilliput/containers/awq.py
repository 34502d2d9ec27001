# SPDX-License-Identifier: Apache-2.0
"""AWQ (gemm): a Hugging Face folder of 4-bit weights that GPTQModel, transformers, vLLM and SGLang read.

The arrays are described in `checkpoints.awq`, which is also the reader. Only the packing is AWQ's: the scaling of
columns that its paper proposes is our transform `awq_scaling`, folded into the weights before they get here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lilliput.architectures.architecture import Json
from lilliput.arrays import Array
from lilliput.checkpoints.awq import METHOD, VERSION, in_words, is_awq
from lilliput.containers.checkpoint_folder import PLAIN, CheckpointFolder, Linear, Stored
from lilliput.containers.gptq import check_one_format, check_words
from lilliput.formats import NumberFormat, Planes
from lilliput.formats.integer_zero_point import ZeroPointInteger
from lilliput.formats.scoped_number import unpack_bits
from lilliput.records import QuantizedTensor, TensorHeader


class AwqPacking:
    """4-bit integers with zero points, all of one group size."""

    name = METHOD
    suffix = ".awq"
    has_one_format = True
    holds_text = "it holds int4 with zero points and a scale a group (INT4_G128_ASYM), and F32, F16, BF16"

    def recognises(self, quantization: object) -> bool:
        """By its method."""
        return is_awq(quantization)

    def holds(self, number_format: NumberFormat) -> bool:
        """See `holds_text`."""
        return (
            isinstance(number_format, ZeroPointInteger)
            and number_format.code_bits == 4
            and number_format.region.is_group
        )

    def check(self, headers: Sequence[TensorHeader]) -> None:
        """One format, sizes that fill whole words. Raises ContainerError."""
        check_one_format(self.name, headers)
        check_words(self.name, headers)

    def arrays(self, header: TensorHeader, *, has_wide_scales: bool) -> tuple[Stored, ...]:
        """Codes, zero points, scales."""
        rows, columns = header.rows, header.columns
        assert isinstance(header.format, ZeroPointInteger)
        groups = header.format.region.grid(rows, columns)[1]
        return (
            Stored(".qweight", "I32", (columns, rows // 8), columns * rows // 2),
            Stored(".qzeros", "I32", (groups, rows // 8), groups * rows // 2),
            Stored(".scales", "F16", (groups, rows), groups * rows * 2),
        )

    def stored(self, tensor: TensorHeader, planes: Planes, *, has_wide_scales: bool) -> dict[str, Array]:
        """See `checkpoints.awq`."""
        return {
            ".qweight": in_words(unpack_bits(planes["codes"], 4, tensor.columns).T),
            ".qzeros": in_words(planes["zero_point"].T),
            ".scales": np.ascontiguousarray(planes["scale"].T),
        }

    def settled(self, tensor: QuantizedTensor) -> QuantizedTensor:
        """As it is."""
        return tensor

    def quantization(self, layers: Sequence[Linear]) -> dict[str, Json]:
        """quantization_config as AutoAWQ writes it."""
        chosen = next(layer.format for layer in layers if layer.format is not None and layer.format.name not in PLAIN)
        assert isinstance(chosen, ZeroPointInteger)
        left: list[Json] = [layer.module for layer in layers if layer.format is not chosen]
        return {
            "quant_method": METHOD,
            "bits": 4,
            "group_size": chosen.region.columns,
            "zero_point": True,
            "version": VERSION,
            "modules_to_not_convert": left or None,
        }


class Awq(CheckpointFolder):
    """A folder for GPTQModel, transformers and vLLM."""

    takes_experts = True

    def __init__(self) -> None:
        super().__init__(AwqPacking())
