# SPDX-License-Identifier: Apache-2.0
"""bitsandbytes: a Hugging Face folder of NF4, FP4 or int8 weights that transformers loads with that package.

The arrays are described in `checkpoints.bitsandbytes`, which is also the reader. Scales of four bits are stored in
float32, not quantized once more. Scales of int8 are stored as the largest magnitude of a row, 127 steps: a scale that
no float32 becomes when divided by 127 moves to the nearest that one does, by one unit in the last place at most.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lilliput.architectures.architecture import Json
from lilliput.arrays import Array, ByteArray, FloatArray
from lilliput.checkpoints.bitsandbytes import LEVELS, METHOD, STATE, STEPS, is_bitsandbytes, swapped_nibbles
from lilliput.containers.checkpoint_folder import PLAIN, CheckpointFolder, Linear, Stored
from lilliput.containers.gptq import check_one_format
from lilliput.formats import NumberFormat, Planes
from lilliput.formats.fp4_bitsandbytes import BitsAndBytesFP4
from lilliput.formats.nf4 import NF4
from lilliput.records import QuantizedTensor, TensorHeader

_BLOCKS = (64, 128, 256)
FOUR_BITS = NF4 | BitsAndBytesFP4
NESTED_BLOCK = 256
# Longer than any quant_state with its offset.
_STATE_BYTES = 256


class BitsAndBytesPacking:
    """NF4 or FP4 with float32 scales, or int8 with a scale a row; all of one format."""

    name = METHOD
    suffix = ".bitsandbytes"
    has_one_format = True
    holds_text = "it holds NF4, NF4_G128 and NF4_G256, FP4BNB in the same groups, INT8_CHANNEL, and F32, F16, BF16"

    def recognises(self, quantization: object) -> bool:
        """By its method."""
        return is_bitsandbytes(quantization)

    def holds(self, number_format: NumberFormat) -> bool:
        """See `holds_text`."""
        if isinstance(number_format, FOUR_BITS):
            has_wide_scales = number_format.parameters["scale"].dtype == np.float32
            return has_wide_scales and number_format.region.columns in _BLOCKS
        return number_format.name == "int8_channel"

    def check(self, headers: Sequence[TensorHeader]) -> None:
        """One format. Raises ContainerError."""
        check_one_format(self.name, headers)

    def arrays(self, header: TensorHeader, *, has_wide_scales: bool) -> tuple[Stored, ...]:
        """Codes, scales, and what describes them."""
        rows, columns = header.rows, header.columns
        if not isinstance(header.format, FOUR_BITS):
            return (
                Stored(".weight", "I8", (rows, columns), rows * columns),
                Stored(".SCB", "F32", (rows,), rows * 4),
                Stored(".weight_format", "U8", (), 1),
            )
        blocks, state = rows * columns // (header.format.region.columns or 1), _state(header)
        return (
            Stored(".weight", "U8", (rows * columns // 2, 1), rows * columns // 2),
            Stored(".weight.absmax", "F32", (blocks,), blocks * 4),
            Stored(".weight.quant_map", "F32", (16,), 64),
            Stored(f".weight{STATE}{_kind(header.format)}", "U8", (len(state),), len(state)),
        )

    def stored(self, tensor: TensorHeader, planes: Planes, *, has_wide_scales: bool) -> dict[str, Array]:
        """See `checkpoints.bitsandbytes`."""
        codes, scale = planes["codes"], planes["scale"]
        if not isinstance(tensor.format, FOUR_BITS):
            return {
                ".weight": codes ^ np.uint8(0x80),
                ".SCB": _largest_magnitudes(np.asarray(scale)).reshape(-1),
                ".weight_format": np.zeros((), dtype=np.uint8),
            }
        return {
            ".weight": swapped_nibbles(codes).reshape(-1, 1),
            ".weight.absmax": scale.reshape(-1),
            ".weight.quant_map": LEVELS[_base_name(tensor.format)],
            f".weight{STATE}{_kind(tensor.format)}": np.frombuffer(_state(tensor), dtype=np.uint8),
        }

    def settled(self, tensor: QuantizedTensor) -> QuantizedTensor:
        """With scales of int8 that the stored magnitudes give back."""
        if tensor.format.name != "int8_channel":
            return tensor
        scale = np.asarray(tensor.planes["scale"])
        return replace(tensor, planes={**tensor.planes, "scale": _largest_magnitudes(scale) / STEPS})

    def quantization(self, layers: Sequence[Linear]) -> dict[str, Json]:
        """quantization_config as transformers writes it."""
        chosen = next(layer.format for layer in layers if layer.format is not None and layer.format.name not in PLAIN)
        is_four = isinstance(chosen, FOUR_BITS)
        left: list[Json] = [layer.module for layer in layers if layer.format is not chosen]
        return {
            "quant_method": METHOD,
            "_load_in_4bit": is_four,
            "_load_in_8bit": not is_four,
            "load_in_4bit": is_four,
            "load_in_8bit": not is_four,
            "bnb_4bit_quant_type": _kind(chosen) if is_four else "nf4",
            "bnb_4bit_use_double_quant": False,
            "bnb_4bit_compute_dtype": "float32",
            "bnb_4bit_quant_storage": "uint8",
            "llm_int8_threshold": 6.0,
            "llm_int8_skip_modules": left or None,
            "llm_int8_enable_fp32_cpu_offload": False,
            "llm_int8_has_fp16_weight": False,
        }


class DoublePacking(BitsAndBytesPacking):
    """NF4 or FP4 whose scales are quantized once more, to 8 bits in blocks of 256 around their mean (QLoRA, section 3).

    Codes stay those of the exact scales, as bitsandbytes itself has it.
    """

    name = f"{METHOD}-double"
    suffix = ".bitsandbytes-double"
    holds_text = "it holds NF4, NF4_G128 and NF4_G256, FP4BNB in the same groups, and F32, F16, BF16"

    def recognises(self, quantization: object) -> bool:
        """By its method and a field."""
        return isinstance(quantization, Mapping) and bool(
            is_bitsandbytes(quantization) and quantization.get("bnb_4bit_use_double_quant")
        )

    def holds(self, number_format: NumberFormat) -> bool:
        """See `holds_text`."""
        return isinstance(number_format, FOUR_BITS) and super().holds(number_format)

    def arrays(self, header: TensorHeader, *, has_wide_scales: bool) -> tuple[Stored, ...]:
        """Codes, scales on two levels, and what describes them."""
        codes, absmax, levels, _ = super().arrays(header, has_wide_scales=has_wide_scales)
        blocks = absmax.shape[0]
        outer = -(-blocks // NESTED_BLOCK)
        return (
            codes,
            Stored(absmax.part, "U8", (blocks,), blocks),
            levels,
            Stored(".weight.nested_absmax", "F32", (outer,), outer * 4),
            Stored(".weight.nested_quant_map", "F32", (256,), 1024),
            Stored(f".weight{STATE}{_kind(header.format)}", "U8", (_STATE_BYTES,), _STATE_BYTES),
        )

    def stored(self, tensor: TensorHeader, planes: Planes, *, has_wide_scales: bool) -> dict[str, Array]:
        """See `checkpoints.bitsandbytes`."""
        single = super().stored(tensor, planes, has_wide_scales=has_wide_scales)
        nested = _nested(np.asarray(planes["scale"]).reshape(-1))
        fields = json.loads(_state(tensor)) | {
            "nested_blocksize": NESTED_BLOCK, "nested_dtype": "float32", "nested_offset": float(nested.offset),
        }  # fmt: skip
        # Spaces make room for any offset; the size is known before its digits are.
        text = json.dumps(fields).ljust(_STATE_BYTES).encode()
        return single | {
            ".weight.absmax": nested.codes,
            ".weight.nested_absmax": nested.outer,
            ".weight.nested_quant_map": dynamic_map(),
            f".weight{STATE}{_kind(tensor.format)}": np.frombuffer(text, dtype=np.uint8),
        }

    def settled(self, tensor: QuantizedTensor) -> QuantizedTensor:
        """With the scales that the two levels give."""
        if not isinstance(tensor.format, FOUR_BITS):
            return tensor
        scale = np.asarray(tensor.planes["scale"])
        values = _nested(scale.reshape(-1)).values()
        return replace(tensor, planes={**tensor.planes, "scale": values.reshape(scale.shape)})

    def quantization(self, layers: Sequence[Linear]) -> dict[str, Json]:
        """quantization_config as transformers writes it."""
        return super().quantization(layers) | {"bnb_4bit_use_double_quant": True}


class BitsAndBytesDouble(CheckpointFolder):
    """The same with doubly quantized scales."""

    def __init__(self) -> None:
        super().__init__(DoublePacking())


class BitsAndBytes(CheckpointFolder):
    """A folder for transformers with bitsandbytes."""

    def __init__(self) -> None:
        super().__init__(BitsAndBytesPacking())


def _base_name(number_format: NumberFormat) -> str:
    """Our name of the numbers, without their groups."""
    return number_format.name.partition("_")[0]


def _kind(number_format: NumberFormat) -> str:
    """Their name of it."""
    return _base_name(number_format).removesuffix("bnb")


def _state(header: TensorHeader) -> bytes:
    """quant_state of one weight."""
    assert isinstance(header.format, FOUR_BITS)
    fields = {
        "quant_type": _kind(header.format),
        "blocksize": header.format.region.columns,
        "dtype": "float32",
        "shape": [header.rows, header.columns],
    }
    return json.dumps(fields).encode()


def _largest_magnitudes(scale: FloatArray) -> FloatArray:
    """float32 numbers that divided by 127 come nearest to the scales."""
    result: FloatArray = scale.astype(np.float32) * STEPS
    below, above = np.nextafter(result, np.float32(-np.inf)), np.nextafter(result, np.float32(np.inf))
    for other in (below, above):
        is_nearer = np.abs(other / STEPS - scale) < np.abs(result / STEPS - scale)
        result = np.where(is_nearer, other, result)
    return result


@dataclass(frozen=True, slots=True)
class _Nested:
    """Scales on two levels: codes uint8 [n], outer float32 [n / 256] and an offset."""

    codes: ByteArray
    outer: FloatArray
    offset: np.float32

    def values(self) -> FloatArray:
        """float32 [n], as the reader computes them."""
        found: FloatArray = (
            dynamic_map()[self.codes] * np.repeat(self.outer, NESTED_BLOCK)[: self.codes.size] + self.offset
        )
        return found


def _nested(scale: FloatArray) -> _Nested:
    """Scales around their mean, each block of 256 over its largest magnitude, at the nearest of the map's numbers."""
    table = dynamic_map()
    middle = (table[1:] + table[:-1]) * np.float32(0.5)
    offset = np.float32(scale.mean(dtype=np.float64))
    apart = np.pad(scale - offset, (0, -scale.size % NESTED_BLOCK)).reshape(-1, NESTED_BLOCK)
    outer = np.abs(apart).max(axis=1).astype(np.float32)
    codes = np.searchsorted(middle, apart / np.where(outer > 0, outer, np.float32(1))[:, None])
    return _Nested(codes.astype(np.uint8).reshape(-1)[: scale.size], outer, offset)


def dynamic_map() -> FloatArray:
    """float32 [256], ascending: seven decades of both signs, each cut twice as fine as the one below, 0 and 1.

    Source: Dettmers et al., 8-bit Optimizers via Block-wise Quantization (arXiv 2110.02861), dynamic tree quantization.
    """
    numbers = [0.0, 1.0]
    for decade in range(7):
        bounds = np.linspace(0.1, 1.0, (1 << decade) + 1)
        middles = (bounds[1:] + bounds[:-1]) / 2 * 10.0 ** (decade - 6)
        numbers += [*middles, *-middles]
    return np.sort(np.array(numbers)).astype(np.float32)
