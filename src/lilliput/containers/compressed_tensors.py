# SPDX-License-Identifier: Apache-2.0
"""compressed-tensors: a Hugging Face folder of quantized weights that transformers, vLLM and SGLang read.

The arrays are described in `checkpoints.compressed_tensors`, which is also the reader.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from lilliput.activations import IntegerInputs, StaticFormat
from lilliput.architectures.architecture import Json
from lilliput.arrays import Array, ByteArray
from lilliput.checkpoints.compressed_tensors import (
    FLOAT,
    INTEGER,
    METHOD,
    MIXED,
    MXFP4_PACKED,
    NVFP4_PACKED,
    PACKED,
    is_compressed_tensors,
    packed_codes,
    packed_zero_points,
)
from lilliput.checkpoints.four_bit_floats import codes_and_scales
from lilliput.containers.checkpoint_folder import CheckpointFolder, Linear, Stored
from lilliput.containers.container import Contents, input_range
from lilliput.formats import Encoded, NumberFormat, Planes
from lilliput.formats.eight_bit_float import EightBitFloat
from lilliput.formats.four_bit_float import FourBitFloat
from lilliput.formats.integer import SymmetricInteger
from lilliput.formats.integer_zero_point import ZeroPointInteger
from lilliput.formats.scoped_number import ScopedNumber
from lilliput.records import QuantizedTensor, TensorHeader

_REGIONS = ("tensor", "channel", "g16", "g32", "g64", "g128", "g256")


class CompressedTensorsPacking:
    """Integers with or without zero points, FP8, MXFP4 and NVFP4."""

    name = METHOD
    suffix = ".compressed-tensors"
    has_one_format = False
    holds_text = (
        "it holds int2 to int8 with one scale a tensor, row or group (INT4_G128, INT8_CHANNEL), with zero points a row "
        "or group (INT4_G128_ASYM), FP8_E4M3_CHANNEL, FP8_E4M3_TENSOR, FP8_E4M3_BLOCK128, "
        "MXFP4, NVFP4, and F32, F16, BF16"
    )

    def recognises(self, quantization: object) -> bool:
        """By its method."""
        return is_compressed_tensors(quantization)

    def holds(self, number_format: NumberFormat) -> bool:
        """See `holds_text`."""
        if isinstance(number_format, EightBitFloat):
            return number_format.name in ("fp8_e4m3_channel", "fp8_e4m3_tensor", "fp8_e4m3_block128")
        if isinstance(number_format, FourBitFloat):
            return True
        if isinstance(number_format, ZeroPointInteger):
            # Their packed zero points have an axis of groups, which a scale of the whole matrix lacks.
            return number_format.region.name in _REGIONS[1:]
        is_known = isinstance(number_format, SymmetricInteger) and number_format.region.name in _REGIONS
        return is_known and not number_format.name.endswith("_f32")

    def check(self, headers: Sequence[TensorHeader]) -> None:
        """Nothing: every layer may have a format of its own."""

    def arrays(self, header: TensorHeader, *, has_wide_scales: bool) -> tuple[Stored, ...]:
        """Codes, scales, zero points, shape."""
        number_format = header.format
        if isinstance(number_format, FourBitFloat):
            return _four_bit_arrays(number_format, header)
        assert isinstance(number_format, ScopedNumber)
        rows, columns = header.rows, header.columns
        grid = number_format.region.grid(rows, columns)
        is_half = number_format.region.is_group and not has_wide_scales
        scale_shape = grid if number_format.region.rows is not None else (1,)
        nbytes = grid[0] * grid[1] * (2 if is_half else 4)
        scales = Stored(".weight_scale", "F16" if is_half else "F32", scale_shape, nbytes)
        if isinstance(number_format, EightBitFloat):
            return Stored(".weight", "F8_E4M3", header.shape, rows * columns), scales
        bits = number_format.code_bits
        words = -(-columns * bits // 32)
        packed = [Stored(".weight_packed", "I32", (rows, words), rows * words * 4), scales]
        if isinstance(number_format, ZeroPointInteger):
            shape = (-(-grid[0] * bits // 32), grid[1])
            packed.append(Stored(".weight_zero_point", "I32", shape, shape[0] * shape[1] * 4))
        return *packed, Stored(".weight_shape", "I64", (2,), 16)

    def stored(self, tensor: TensorHeader, planes: Planes, *, has_wide_scales: bool) -> dict[str, Array]:
        """See `checkpoints.compressed_tensors`."""
        number_format = tensor.format
        if isinstance(number_format, FourBitFloat):
            codes, scales = codes_and_scales(number_format, planes, tensor.columns)
            if number_format.name == "nvfp4":
                scales = _magnitudes(scales)
            both = {".weight_packed": codes, ".weight_scale": scales}
            return both | ({".weight_global_scale": np.ones(1, "<f4")} if number_format.name == "nvfp4" else {})
        assert isinstance(number_format, ScopedNumber)
        scale = planes["scale"].astype("<f4") if has_wide_scales else planes["scale"]
        if isinstance(number_format, EightBitFloat):
            return {".weight": planes["codes"], ".weight_scale": scale}
        stored = {".weight_packed": packed_codes(planes["codes"]), ".weight_scale": scale}
        if "zero_point" in planes:
            stored[".weight_zero_point"] = packed_zero_points(planes["zero_point"], number_format.code_bits)
        return stored | {".weight_shape": np.array(tensor.shape, dtype="<i8")}

    def settled(self, tensor: QuantizedTensor) -> QuantizedTensor:
        """As it is, but for NVFP4's scales with a sign or NaN, which ggml reads as magnitude and zero."""
        if tensor.format.name != "nvfp4":
            return tensor
        encoded = tensor.format.unpack(tensor.planes, tensor.columns)
        scales = _magnitudes(np.asarray(encoded.parameters["scale_code"]))
        return replace(tensor, planes=tensor.format.pack(Encoded(encoded.codes, {"scale_code": scales})))

    def quantization(self, layers: Sequence[Linear]) -> dict[str, Json]:
        """quantization_config: a group for each format, and which linear layers are of none."""
        quantized: dict[tuple[str, bool], tuple[ScopedNumber | FourBitFloat, list[Json]]] = {}
        ignored: list[Json] = []
        for layer in layers:
            if isinstance(layer.format, ScopedNumber | FourBitFloat):
                key = layer.format.name, _is_symmetric(layer.inputs)
                quantized.setdefault(key, (layer.format, []))[1].append(layer.module)
            else:
                ignored.append(layer.module)
        is_plain = len(quantized) == 1 and not any(layer.is_assumed for layer in layers)
        groups: dict[str, Json] = {}
        for number, ((_, is_symmetric), (number_format, modules)) in enumerate(quantized.items()):
            weights = _weights(number_format)
            groups[f"group_{number}"] = {
                # One group is spelled as everybody spells it; several are told apart by exact names.
                "targets": ["Linear"] if is_plain else modules,
                "weights": weights,
                "input_activations": self.input_activations(weights, is_symmetric=is_symmetric),
                "output_activations": None,
                "format": self.kind(number_format),
            }
        kinds = {self.kind(number_format) for number_format, _ in quantized.values()}
        return {
            "quant_method": METHOD,
            "format": kinds.pop() if len(kinds) == 1 else MIXED,
            "quantization_status": "compressed",
            "config_groups": groups,
            "ignore": ignored,
            "kv_cache_scheme": None,
            "global_compression_ratio": None,
        }

    def input_activations(self, weights: Mapping[str, Json], *, is_symmetric: bool) -> dict[str, Json] | None:
        """How a group's inputs are rounded, given its weights: not at all."""
        return None

    def kind(self, number_format: ScopedNumber | FourBitFloat) -> str:
        """What compressed-tensors calls the layout of a group."""
        if isinstance(number_format, FourBitFloat):
            return MXFP4_PACKED if number_format.name == "mxfp4" else NVFP4_PACKED
        return FLOAT if isinstance(number_format, EightBitFloat) else PACKED


class EightBitInputsPacking(CompressedTensorsPacking):
    """W8A8: 8-bit weights whose readers round inputs to 8 bits too, with a scale a token found as they run.

    Weights of int8 lie one to a byte (int-quantized), as kernels that multiply integers want them.
    """

    name = f"{METHOD}-w8a8"
    suffix = ".w8a8"
    holds_text = "it holds INT8_CHANNEL, FP8_E4M3_CHANNEL, FP8_E4M3_TENSOR, and F32, F16, BF16"

    def recognises(self, quantization: object) -> bool:
        """By its method, and inputs that are described."""
        if not isinstance(quantization, Mapping) or not is_compressed_tensors(quantization):
            return False
        groups = quantization.get("config_groups")
        described = groups.values() if isinstance(groups, Mapping) else ()
        return any(isinstance(group, Mapping) and group.get("input_activations") for group in described)

    def holds(self, number_format: NumberFormat) -> bool:
        """See `holds_text`."""
        return number_format.name in ("int8_channel", "fp8_e4m3_channel", "fp8_e4m3_tensor")

    def arrays(self, header: TensorHeader, *, has_wide_scales: bool) -> tuple[Stored, ...]:
        """Codes and scales."""
        if isinstance(header.format, EightBitFloat):
            return super().arrays(header, has_wide_scales=has_wide_scales)
        rows, columns = header.rows, header.columns
        scales = Stored(".weight_scale", "F32", (rows, 1), rows * 4)
        return Stored(".weight", "I8", (rows, columns), rows * columns), scales

    def stored(self, tensor: TensorHeader, planes: Planes, *, has_wide_scales: bool) -> dict[str, Array]:
        """See `checkpoints.compressed_tensors`."""
        if isinstance(tensor.format, EightBitFloat):
            return super().stored(tensor, planes, has_wide_scales=has_wide_scales)
        return {".weight": planes["codes"] ^ np.uint8(0x80), ".weight_scale": planes["scale"]}

    def input_activations(self, weights: Mapping[str, Json], *, is_symmetric: bool) -> dict[str, Json] | None:
        """In the type of the weights, a scale a token found as they come."""
        return {**weights, "strategy": "token", "symmetric": True, "dynamic": True, "observer": None}

    def kind(self, number_format: ScopedNumber | FourBitFloat) -> str:
        """Codes one to a byte."""
        return FLOAT if isinstance(number_format, EightBitFloat) else INTEGER


class StaticInputsPacking(EightBitInputsPacking):
    """W8A8 with one scale for all inputs of a layer, chosen beforehand: `input_scale` beside the weight.

    With a zero point too where the model brings one along.
    """

    name = f"{METHOD}-w8a8-static"
    suffix = ".w8a8-static"
    holds_text = (
        f"{EightBitInputsPacking.holds_text}; each layer needs the range of its inputs, from --statistics or "
        "--activations"
    )

    def recognises(self, quantization: object) -> bool:
        """By inputs that are described as not dynamic."""
        if not super().recognises(quantization) or not isinstance(quantization, Mapping):
            return False
        groups = quantization["config_groups"].values()
        inputs = [group.get("input_activations") for group in groups if isinstance(group, Mapping)]
        return any(isinstance(item, Mapping) and item.get("dynamic") is False for item in inputs)

    def input_activations(self, weights: Mapping[str, Json], *, is_symmetric: bool) -> dict[str, Json] | None:
        """One scale for all inputs of a layer."""
        return {**weights, "strategy": "tensor", "symmetric": is_symmetric, "dynamic": False, "observer": "minmax"}


class StaticEightBitInputs(CheckpointFolder):
    """A compressed-tensors folder whose readers compute in 8 bits, with scales of inputs from calibration."""

    takes_unknown = True
    uses_ranges = True
    holds_ranges = True

    def __init__(self) -> None:
        super().__init__(StaticInputsPacking())

    def input_scale(self, header: TensorHeader, contents: Contents) -> float | None:
        """The largest input that calibration saw is the last code. Raises ContainerError where it saw none."""
        last = 448.0 if isinstance(header.format, EightBitFloat) else 127.0
        return input_range(header, contents) / last


class EightBitInputs(CheckpointFolder):
    """A compressed-tensors folder whose readers compute in 8 bits."""

    takes_unknown = True

    def __init__(self) -> None:
        super().__init__(EightBitInputsPacking())


class CompressedTensors(CheckpointFolder):
    """A folder: shards with an index, config.json with its quantization_config, side files."""

    takes_unknown = True
    takes_experts = True

    def __init__(self) -> None:
        super().__init__(CompressedTensorsPacking())


def _is_symmetric(inputs: StaticFormat | None) -> bool:
    return not isinstance(inputs, IntegerInputs) or inputs.is_symmetric


def _magnitudes(scales: ByteArray) -> ByteArray:
    """E4M3 scales without sign; NaN is 0."""
    magnitude = scales & np.uint8(0x7F)
    return np.where(magnitude == 0x7F, np.uint8(0), magnitude)


def _four_bit_arrays(number_format: FourBitFloat, header: TensorHeader) -> tuple[Stored, ...]:
    rows, columns = header.rows, header.columns
    groups = columns // number_format.group_size
    codes = Stored(".weight_packed", "U8", (rows, columns // 2), rows * columns // 2)
    if number_format.name == "mxfp4":
        return codes, Stored(".weight_scale", "U8", (rows, groups), rows * groups)
    scales = Stored(".weight_scale", "F8_E4M3", (rows, groups), rows * groups)
    return codes, scales, Stored(".weight_global_scale", "F32", (1,), 4)


def _weights(number_format: ScopedNumber | FourBitFloat) -> dict[str, Json]:
    """The `weights` of one group."""
    fields: dict[str, Json] = {
        "symmetric": not isinstance(number_format, ZeroPointInteger),
        "block_structure": None,
        "dynamic": False,
        "actorder": None,
        "observer": "minmax",
        "observer_kwargs": {},
    }
    if isinstance(number_format, FourBitFloat):
        strategy = "group" if number_format.name == "mxfp4" else "tensor_group"
        size: Json = number_format.group_size
        return {"num_bits": 4, "type": "float", "strategy": strategy, "group_size": size, **fields}
    region = number_format.region
    if region.rows not in (None, 1):
        fields |= {"strategy": "block", "group_size": None, "block_structure": [region.rows, region.columns]}
    else:
        strategy = "group" if region.is_group else region.name
        fields |= {"strategy": strategy, "group_size": region.columns if region.is_group else None}
    kind = "float" if isinstance(number_format, EightBitFloat) else "int"
    return {"num_bits": number_format.code_bits, "type": kind, **fields}
