# SPDX-License-Identifier: Apache-2.0
"""A graph of fixed shapes, as `containers.onnx.operations` makes it, to operators of LiteRT.

Shapes are worked out on the way. What is computed from constants alone is computed here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np

from lilliput.arrays import Array
from lilliput.containers.litert.flatbuffer import Scalar
from lilliput.containers.litert.model import BARE_CODES, Model, Operation, Operator, Placed, Tensor, TensorType
from lilliput.containers.onnx.graph import ElementType, Graph, Initializer, Node
from lilliput.errors import UnsupportedModelError

# Pseudo-operators that the storage of weights puts into the graph.
PRODUCT, CODES_TO_FLOATS = "IntegerProduct", "CodesToFloats"
_TYPES = {ElementType.FLOAT: TensorType.FLOAT32, ElementType.INT64: TensorType.INT32, ElementType.INT8: TensorType.INT8}
_NUMPY = {ElementType.FLOAT: "<f4", ElementType.INT64: "<i8", ElementType.INT32: "<i4"}
_SAME_SHAPE = {"Sqrt": Operator.SQRT, "Sigmoid": Operator.LOGISTIC, "Tanh": Operator.TANH, "Relu": Operator.RELU}
_BROADCAST = {"Add": Operator.ADD, "Sub": Operator.SUB, "Mul": Operator.MUL, "Div": Operator.DIV}
_FOLDED: Mapping[str, Callable[..., Array]] = {
    "Neg": lambda x: -x,
    "Add": lambda a, b: a + b,
    "Clip": lambda x, low, high: np.clip(x, low, high),
    "Shape": lambda x: np.array(x.shape, np.int64),
}


@dataclass(slots=True)
class Translator:
    """One run. tensors: name in the graph -> index in the model.  constants: values known here."""

    graph: Graph
    model: Model = field(default_factory=Model)
    tensors: dict[str, int] = field(default_factory=dict)
    constants: dict[str, Array] = field(default_factory=dict)

    def run(self) -> Model:
        """The model. Raises UnsupportedModelError for an operator without a translation."""
        for item in self.graph.initializers.values():
            if isinstance(item.data, bytes):
                self.constants[item.name] = np.frombuffer(item.data, _NUMPY[item.element]).reshape(item.shape)
        for port in self.graph.inputs:
            shape = tuple(int(size) for size in port.shape)
            self.tensors[port.name] = self.model.add_tensor(Tensor(port.name, _TYPES[port.element], shape))
            self.model.inputs.append(self.tensors[port.name])
        for node in self.graph.nodes:
            if not self._folded(node):
                self._translate(node)
        self.model.outputs = [self.tensors[port.name] for port in self.graph.outputs]
        return self.model

    def _folded(self, node: Node) -> bool:
        """Compute a node of constants; whether it was one."""
        if not all(name in self.constants for name in node.inputs):
            return False
        values = [self.constants[name] for name in node.inputs]
        if node.operation in _FOLDED:
            self.constants[node.outputs[0]] = _FOLDED[node.operation](*values)
            return True
        if node.operation == "Concat":
            self.constants[node.outputs[0]] = np.concatenate(values)
            return True
        return False

    def _translate(self, node: Node) -> None:
        operation, out = node.operation, node.outputs[0]
        if operation in _SAME_SHAPE:
            self._emit(_SAME_SHAPE[operation], [node.inputs[0]], out, self._shape(node.inputs[0]))
        elif operation in _BROADCAST:
            shape = np.broadcast_shapes(*(self._shape(name) for name in node.inputs))
            self._emit(_BROADCAST[operation], list(node.inputs), out, shape, {0: Scalar("i8", 0)})
        elif operation == "Gelu":
            is_tanh = node.attributes.get("approximate") == "tanh"
            options = {0: Scalar("bool", is_tanh)}
            self._emit(Operator.GELU, [node.inputs[0]], out, self._shape(node.inputs[0]), options)
        elif operation == "Pow":
            self._emit(Operator.MUL, [node.inputs[0]] * 2, out, self._shape(node.inputs[0]), {0: Scalar("i8", 0)})
        elif operation == "Softmax":
            self._emit(Operator.SOFTMAX, [node.inputs[0]], out, self._shape(node.inputs[0]), {0: Scalar("f32", 1.0)})
        elif operation in ("Reshape", "Unsqueeze", "Identity"):
            self._reshape(node)
        elif operation in ("ReduceMean", "LayerNormalization"):
            self._mean_or_norm(node)
        elif operation in ("Split", "Concat", "Transpose"):
            self._moved(node)
        elif operation in ("Gemm", "MatMul", PRODUCT):
            self._product(node)
        elif operation in ("Gather", "Cast", CODES_TO_FLOATS):
            self._rows(node)
        else:
            raise UnsupportedModelError(f"the LiteRT export has no translation of the operator {operation} yet")

    def _reshape(self, node: Node) -> None:
        shape = list(self._shape(node.inputs[0]))
        if node.operation == "Unsqueeze":
            for axis in sorted(int(axis) for axis in self.constants[node.inputs[1]]):
                shape.insert(axis, 1)
        elif node.operation == "Reshape":
            wanted = [int(size) for size in self.constants[node.inputs[1]]]
            wanted = [shape[place] if size == 0 else size for place, size in enumerate(wanted)]
            known = prod(size for size in wanted if size >= 0)
            shape = [prod(shape) // known if size < 0 else size for size in wanted]
        made = np.array(shape, np.int64)
        inputs = [node.inputs[0], self._constant(made)]
        index = self._emit(Operator.RESHAPE, inputs, node.outputs[0], tuple(shape), {0: made.astype("<i4")})
        self._typed_like(index, node.inputs[0])

    def _mean_or_norm(self, node: Node) -> None:
        x = node.inputs[0]
        shape = self._shape(x)
        if node.operation == "ReduceMean":
            self._mean(x, node.outputs[0], shape)
            return
        none = {0: Scalar("i8", 0)}
        mean, centred, square, variance, root = (f"{node.outputs[0]}.{part}" for part in "mcsvr")
        one = (*shape[:-1], 1)
        self._mean(x, mean, shape)
        self._emit(Operator.SUB, [x, mean], centred, shape, none)
        self._emit(Operator.MUL, [centred, centred], square, shape, none)
        self._mean(square, variance, shape)
        epsilon = self._constant(np.array(node.attributes["epsilon"], np.float32))
        self._emit(Operator.ADD, [variance, epsilon], f"{root}.e", one, none)
        self._emit(Operator.SQRT, [f"{root}.e"], root, one)
        self._emit(Operator.DIV, [centred, root], f"{root}.n", shape, none)
        scaled = node.outputs[0] if len(node.inputs) == 2 else f"{root}.w"
        self._emit(Operator.MUL, [f"{root}.n", node.inputs[1]], scaled, shape, none)
        if len(node.inputs) > 2:
            self._emit(Operator.ADD, [scaled, node.inputs[2]], node.outputs[0], shape, none)

    def _mean(self, x: str, out: str, shape: tuple[int, ...]) -> None:
        axis = self._constant(np.array([len(shape) - 1], np.int64))
        self._emit(Operator.MEAN, [x, axis], out, (*shape[:-1], 1), {0: Scalar("bool", True)})

    def _moved(self, node: Node) -> None:
        shape = self._shape(node.inputs[0])
        if node.operation == "Transpose":
            order = node.attributes["perm"]
            assert isinstance(order, tuple)
            permutation = self._constant(np.array(order, np.int64))
            moved = tuple(shape[axis] for axis in order)
            self._emit(Operator.TRANSPOSE, [node.inputs[0], permutation], node.outputs[0], moved)
            return
        axis = node.attributes["axis"]
        assert isinstance(axis, int)
        axis %= len(shape)
        if node.operation == "Concat":
            total = sum(self._shape(name)[axis] for name in node.inputs)
            options = {0: Scalar("i32", axis), 1: Scalar("i8", 0)}
            joined = (*shape[:axis], total, *shape[axis + 1 :])
            self._emit(Operator.CONCATENATION, list(node.inputs), node.outputs[0], joined, options)
            return
        sizes = self.constants[node.inputs[1]]
        inputs = [node.inputs[0], self._constant(sizes), self._constant(np.array(axis, np.int64))]
        shapes = [(*shape[:axis], int(size), *shape[axis + 1 :]) for size in sizes]
        outputs = tuple(self._made(name, part) for name, part in zip(node.outputs, shapes, strict=True))
        self.model.operations.append(
            Operation(Operator.SPLIT_V, self._indices(inputs), outputs, {0: Scalar("i32", len(sizes))})
        )

    def _product(self, node: Node) -> None:
        left, right = (self._shape(name) for name in node.inputs[:2])
        if node.operation == "MatMul":
            shape = (*np.broadcast_shapes(left[:-2], right[:-2]), left[-2], right[-1])
            options = {0: Scalar("bool", False), 1: Scalar("bool", False)}
            self._emit(Operator.BATCH_MATMUL, list(node.inputs), node.outputs[0], shape, options)
            return
        options = {0: Scalar("i8", 0), 2: Scalar("bool", True)}
        self._emit(Operator.FULLY_CONNECTED, list(node.inputs[:2]), node.outputs[0], (left[0], right[0]), options)

    def _rows(self, node: Node) -> None:
        table = self._shape(node.inputs[0])
        if node.operation in ("Cast", CODES_TO_FLOATS):
            kind = self.model.tensors[self._index(node.inputs[0])].type
            options = {0: Scalar("i8", int(kind)), 1: Scalar("i8", int(TensorType.FLOAT32))}
            self._emit(Operator.CAST, list(node.inputs), node.outputs[0], table, options)
            return
        shape = (*self._shape(node.inputs[1]), *table[1:])
        index = self._emit(Operator.GATHER, list(node.inputs), node.outputs[0], shape, {0: Scalar("i32", 0)})
        self._typed_like(index, node.inputs[0])

    def _emit(
        self,
        operator: Operator,
        inputs: list[str],
        out: str,
        shape: tuple[int, ...],
        options: dict[int, Scalar] | dict[int, Array] | None = None,
    ) -> int:
        made = self._made(out, shape)
        self.model.operations.append(Operation(operator, self._indices(inputs), (made,), dict(options or {})))
        return made

    def _typed_like(self, index: int, name: str) -> None:
        """What moves elements keeps their type."""
        source = self.model.tensors[self._index(name)]
        changed = replace(self.model.tensors[index], type=source.type, grid=source.grid)
        self.model.tensors[index] = changed

    def _made(self, name: str, shape: tuple[int, ...]) -> int:
        self.tensors[name] = self.model.add_tensor(Tensor(name, TensorType.FLOAT32, shape))
        return self.tensors[name]

    def _indices(self, names: list[str]) -> tuple[int, ...]:
        return tuple(self._index(name) for name in names)

    def _index(self, name: str) -> int:
        """The tensor of a name; constants become tensors when the first operator asks."""
        if name not in self.tensors:
            if name in self.constants:
                values = self.constants[name]
                is_whole = values.dtype.kind == "i"
                kind, dtype = (TensorType.INT32, "<i4") if is_whole else (TensorType.FLOAT32, "<f4")
                made = Tensor(name[:60], kind, values.shape, values.astype(dtype))
            else:
                made = _placed_tensor(self.graph.initializers[name])
            self.tensors[name] = self.model.add_tensor(made)
        return self.tensors[name]

    def _constant(self, values: Array) -> str:
        name = f"constant {values.dtype} {values.shape} {values.tobytes().hex()}"
        self.constants.setdefault(name, values)
        return name

    def _shape(self, name: str) -> tuple[int, ...]:
        if name in self.constants:
            return self.constants[name].shape
        return self.model.tensors[self._index(name)].shape


def _placed_tensor(item: Initializer) -> Tensor:
    assert not isinstance(item.data, bytes), item.name
    is_codes = item.element is ElementType.INT8
    place = Placed(item.data.start, item.data.nbytes)
    return Tensor(item.name, _TYPES[item.element], item.shape, place, BARE_CODES if is_codes else None)
