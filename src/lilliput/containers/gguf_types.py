# SPDX-License-Identifier: Apache-2.0
"""GGUF's numbers for value types and tensor types (ggml docs/gguf.md, "File Structure"; ggml.h, enum ggml_type)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from lilliput.errors import ContainerError
from lilliput.formats import FORMATS, NumberFormat

MAGIC = b"GGUF"
VERSION = 3
READABLE_VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
QUANTIZATION_VERSION = 2
MAX_AXES = 4
# ggml keeps tensor names in 64 bytes with their terminator.
MAX_NAME_BYTES = 63


class ValueType(IntEnum):
    """Types of metadata values."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


# numpy dtype of every value type of fixed size.
NUMPY_TYPES = {
    ValueType.UINT8: "u1",
    ValueType.INT8: "i1",
    ValueType.UINT16: "<u2",
    ValueType.INT16: "<i2",
    ValueType.UINT32: "<u4",
    ValueType.INT32: "<i4",
    ValueType.FLOAT32: "<f4",
    ValueType.BOOL: "?",
    ValueType.UINT64: "<u8",
    ValueType.INT64: "<i8",
    ValueType.FLOAT64: "<f8",
}


@dataclass(frozen=True, slots=True)
class TensorType:
    """One ggml type. block_size: weights in a block of block_bytes bytes."""

    number: int
    name: str
    block_size: int
    block_bytes: int


TENSOR_TYPES: dict[int, TensorType] = {
    row[0]: TensorType(*row)
    for row in (
        (0, "f32", 1, 4),
        (1, "f16", 1, 2),
        (2, "q4_0", 32, 18),
        (3, "q4_1", 32, 20),
        (6, "q5_0", 32, 22),
        (7, "q5_1", 32, 24),
        (8, "q8_0", 32, 34),
        (9, "q8_1", 32, 36),
        (10, "q2_k", 256, 84),
        (11, "q3_k", 256, 110),
        (12, "q4_k", 256, 144),
        (13, "q5_k", 256, 176),
        (14, "q6_k", 256, 210),
        (15, "q8_k", 256, 292),
        (16, "iq2_xxs", 256, 66),
        (17, "iq2_xs", 256, 74),
        (18, "iq3_xxs", 256, 98),
        (19, "iq1_s", 256, 50),
        (20, "iq4_nl", 32, 18),
        (21, "iq3_s", 256, 110),
        (22, "iq2_s", 256, 82),
        (23, "iq4_xs", 256, 136),
        (24, "i8", 1, 1),
        (25, "i16", 1, 2),
        (26, "i32", 1, 4),
        (27, "i64", 1, 8),
        (28, "f64", 1, 8),
        (29, "iq1_m", 256, 56),
        (30, "bf16", 1, 2),
        (34, "tq1_0", 256, 54),
        (35, "tq2_0", 256, 66),
        (39, "mxfp4", 32, 17),
        (40, "nvfp4", 64, 36),
        (41, "q1_0", 128, 18),
        (42, "q2_0", 64, 18),
    )
}
BY_NAME: dict[str, TensorType] = {tensor_type.name: tensor_type for tensor_type in TENSOR_TYPES.values()}
# Types that once had these numbers; files that use them must be made anew.
REMOVED_TYPES = {4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8"} | {
    36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
}
# `general.file_type` by preset name (llama.h, enum llama_ftype).
FILE_TYPES = {
    "F32": 0,
    "F16": 1,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q8_0": 7,
    "Q5_0": 8,
    "Q5_1": 9,
    "Q2_K": 10,
    "Q3_K_S": 11,
    "Q3_K_M": 12,
    "Q3_K_L": 13,
    "Q4_K_S": 14,
    "Q4_K_M": 15,
    "Q5_K_S": 16,
    "Q5_K_M": 17,
    "Q6_K": 18,
    "IQ2_XXS": 19,
    "IQ2_XS": 20,
    "Q2_K_S": 21,
    "IQ3_XS": 22,
    "IQ3_XXS": 23,
    "IQ1_S": 24,
    "IQ4_NL": 25,
    "IQ3_S": 26,
    "IQ3_M": 27,
    "IQ2_S": 28,
    "IQ2_M": 29,
    "IQ4_XS": 30,
    "IQ1_M": 31,
    "BF16": 32,
    "TQ1_0": 36,
    "TQ2_0": 37,
    "MXFP4_MOE": 38,
    "NVFP4": 39,
    "Q1_0": 40,
    "Q2_0": 41,
}
# Names of a whole file that are no preset of llama.h, and the nearest that is.
_ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M", "MXFP4": "MXFP4_MOE"}
GUESSED_FILE_TYPE = 1024


def file_type_number(name: str) -> int:
    """`general.file_type` of a preset or type name; "guessed" for a mix that has no number."""
    upper = name.upper()
    return FILE_TYPES.get(_ALIASES.get(upper, upper), GUESSED_FILE_TYPE)


def format_of(tensor: str, tensor_type: TensorType) -> NumberFormat:
    """The number format of a ggml type. Raises ContainerError naming tensor and type when there is none."""
    number_format = FORMATS.get(tensor_type.name)
    if number_format is None:
        raise ContainerError(
            f"tensor '{tensor}' has type {tensor_type.name.upper()}, which is no storage format for weights here; "
            f"readable: {', '.join(name.upper() for name in BY_NAME if name in FORMATS)}"
        )
    return number_format


def holds(number_format: NumberFormat) -> bool:
    """Whether GGUF has a tensor type for this format, with the same bytes."""
    tensor_type = BY_NAME.get(number_format.name)
    if tensor_type is None or tensor_type.block_size != number_format.block_size:
        return False
    planes = number_format.stored_planes(1, number_format.block_size)
    return len(planes) == 1 and number_format.stored_bytes(1, number_format.block_size) == tensor_type.block_bytes
