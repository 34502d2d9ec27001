# SPDX-License-Identifier: Apache-2.0
"""A .tflite model under construction: tensors, buffers, operators, one subgraph with a signature.

layout   schema.fbs of LiteRT, version 3: Model {version, operator_codes, subgraphs, description, buffers, …,
         signature_defs}.  A Buffer holds its bytes, or says at which byte of the file they lie (offset, size): so
         weights of any size follow the flatbuffer.
source   tflite/schema/schema.fbs of google-ai-edge/LiteRT
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np

from lilliput.arrays import Array
from lilliput.containers.litert.flatbuffer import Scalar, Table, serialize

IDENTIFIER = b"TFL3"


class TensorType(IntEnum):
    """schema.fbs, TensorType."""

    FLOAT32 = 0
    INT32 = 2
    INT16 = 7
    INT8 = 9


class Operator(IntEnum):
    """schema.fbs, BuiltinOperator."""

    ADD = 0
    CONCATENATION = 2
    FULLY_CONNECTED = 9
    LOGISTIC = 14
    MUL = 18
    RELU = 19
    RESHAPE = 22
    SOFTMAX = 25
    TANH = 28
    GATHER = 36
    TRANSPOSE = 39
    MEAN = 40
    SUB = 41
    DIV = 42
    CAST = 53
    SQRT = 75
    RSQRT = 76
    SPLIT_V = 102
    QUANTIZE = 114
    BATCH_MATMUL = 126
    GELU = 150


# Versions of operators that these files need, where it is not 1: int8 weights of FULLY_CONNECTED, ranks above 4.
VERSIONS = {Operator.FULLY_CONNECTED: 3, Operator.GATHER: 2, Operator.BATCH_MATMUL: 1, Operator.TRANSPOSE: 1}
# Operator -> number of its table of options, and whether it must be there.
OPTIONS = {
    Operator.FULLY_CONNECTED: 8, Operator.SOFTMAX: 9, Operator.CONCATENATION: 10, Operator.ADD: 11,
    Operator.RESHAPE: 17, Operator.MUL: 21, Operator.GATHER: 23, Operator.TRANSPOSE: 26, Operator.MEAN: 27,
    Operator.SUB: 28, Operator.DIV: 29, Operator.CAST: 37, Operator.SPLIT_V: 79, Operator.BATCH_MATMUL: 101,
    Operator.GELU: 116,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Placed:
    """Bytes of a tensor behind the flatbuffer. start: counted from there."""

    start: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Grid:
    """value = scale * (code - zero_point).  rows: number of scales, one a row, where there are several.

    Scales that follow from weights are put into the file when those are known.
    """

    scale: float = 1.0
    zero_point: int = 0
    rows: int = 1


# Codes whose scale multiplies what comes out of products, so that they need none of their own.
BARE_CODES = Grid()


@dataclass(frozen=True, slots=True)
class Tensor:
    """data: a constant's values, or where they lie; None for what is computed.  grid: of codes."""

    name: str
    type: TensorType
    shape: tuple[int, ...]
    data: Array | Placed | None = None
    grid: Grid | None = None


@dataclass(frozen=True, slots=True)
class Operation:
    """One operator. inputs, outputs: indices of tensors.  options: slot -> number or vector."""

    operator: Operator
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Mapping[int, Scalar | Array]


@dataclass(slots=True)
class Model:
    """One subgraph. inputs, outputs: indices of tensors."""

    tensors: list[Tensor] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)

    def add_tensor(self, tensor: Tensor) -> int:
        """Append a tensor; returns its index."""
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def to_bytes(self, alignment: int) -> bytes:
        """The flatbuffer, padded so that what follows starts on `alignment` bytes."""
        # Offsets count from the start of the file, so the length has to be known first; numbers have fixed sizes.
        length = len(serialize(self._table(0), IDENTIFIER))
        length += -length % alignment
        made = serialize(self._table(length), IDENTIFIER)
        return made + bytes(length - len(made))

    def _table(self, base: int) -> Table:
        codes = list(dict.fromkeys(item.operator for item in self.operations))
        buffers = [Table({})]
        tensors = [self._tensor_table(tensor, buffers, base) for tensor in self.tensors]
        operators = [self._operation_table(item, codes.index(item.operator)) for item in self.operations]
        subgraph = Table({0: tensors, 1: _indices(self.inputs), 2: _indices(self.outputs), 3: operators, 4: "main"})
        metadata = []
        for name, text in self.metadata.items():
            metadata.append(Table({0: name, 1: Scalar("u32", len(buffers))}))
            buffers.append(Table({0: np.frombuffer(text.encode("utf-8"), np.uint8)}))
        signature = Table(
            {
                0: [self._named(index) for index in self.inputs],
                1: [self._named(index) for index in self.outputs],
                2: "serving_default",
                4: Scalar("u32", 0),
            }
        )
        return Table(
            {
                0: Scalar("u32", 3),
                1: [_code_table(code) for code in codes],
                2: [subgraph],
                3: "lilliput",
                4: buffers,
                6: metadata,
                7: [signature],
            }
        )

    def _tensor_table(self, tensor: Tensor, buffers: list[Table], base: int) -> Table:
        fields: dict[int, Scalar | Table | str | Array] = {
            0: _indices(tensor.shape),
            1: Scalar("i8", int(tensor.type)),
            2: Scalar("u32", 0),
            3: tensor.name,
            8: Scalar("bool", True),
        }
        if tensor.grid is not None:
            count = tensor.grid.rows
            scales = np.full(count, tensor.grid.scale, "<f4")
            fields[4] = Table({2: scales, 3: np.full(count, tensor.grid.zero_point, "<i8")})
        if tensor.data is not None:
            fields[2] = Scalar("u32", len(buffers))
            if isinstance(tensor.data, Placed):
                start = Scalar("u64", base + tensor.data.start)
                buffers.append(Table({1: start, 2: Scalar("u64", tensor.data.nbytes)}))
            else:
                buffers.append(Table({0: np.frombuffer(np.ascontiguousarray(tensor.data).tobytes(), np.uint8)}))
        return Table(fields)

    def _operation_table(self, item: Operation, code: int) -> Table:
        fields: dict[int, Scalar | Table | Array] = {
            0: Scalar("u32", code),
            1: _indices(item.inputs),
            2: _indices(item.outputs),
        }
        if item.operator in OPTIONS:
            fields[3] = Scalar("u8", OPTIONS[item.operator])
            fields[4] = Table(item.options)
        return Table(fields)

    def _named(self, index: int) -> Table:
        return Table({0: self.tensors[index].name, 1: Scalar("u32", index)})


def _code_table(code: Operator) -> Table:
    # The old field of one byte is read by old runtimes, and holds 127 for operators beyond it.
    old = Scalar("i8", min(int(code), 127))
    return Table({0: old, 2: Scalar("i32", VERSIONS.get(code, 1)), 3: Scalar("i32", int(code))})


def _indices(values: object) -> Array:
    return np.asarray(values, dtype="<i4").reshape(-1)
