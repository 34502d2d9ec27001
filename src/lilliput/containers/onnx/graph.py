# SPDX-License-Identifier: Apache-2.0
"""An ONNX graph: built operation by operation, written as a file of its own, read back.

layout   ModelProto (onnx.proto3): ir_version 1, producer 2 and 3, graph 7, opset_import 8, metadata_props 14.
         GraphProto: node 1, name 2, initializer 5, input 11, output 12.  Large initializers name an external file,
         with offset and length, in external_data 13 of TensorProto.
source   onnx/onnx.proto3 and docs/ExternalData.md of the ONNX project
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from math import prod

import numpy as np

from lilliput.arrays import Array
from lilliput.containers.onnx import protobuf
from lilliput.errors import ContainerError

# What is written: ONNX Runtime reads IR up to 13 (1.31), and older ones of all tools read 10.
IR_VERSION = 10
OPSET = 21
MICROSOFT = "com.microsoft"
Attribute = int | float | str | tuple[int, ...]
Dimension = int | str
_EXTERNAL = 1


class ElementType(IntEnum):
    """TensorProto.DataType."""

    FLOAT = 1
    UINT8 = 2
    INT8 = 3
    INT32 = 6
    INT64 = 7
    BOOL = 9
    FLOAT16 = 10
    DOUBLE = 11
    BFLOAT16 = 16
    FLOAT8E4M3FN = 17
    UINT4 = 21
    INT4 = 22

    @property
    def bits(self) -> int:
        """Of one element."""
        return _BITS[self]


_BITS = {
    ElementType.FLOAT: 32, ElementType.UINT8: 8, ElementType.INT8: 8, ElementType.INT32: 32, ElementType.INT64: 64,
    ElementType.BOOL: 8, ElementType.FLOAT16: 16, ElementType.DOUBLE: 64, ElementType.BFLOAT16: 16,
    ElementType.FLOAT8E4M3FN: 8, ElementType.UINT4: 4, ElementType.INT4: 4,
}  # fmt: skip
_OF_NUMPY = {
    "float32": ElementType.FLOAT, "uint8": ElementType.UINT8, "int8": ElementType.INT8, "int32": ElementType.INT32,
    "int64": ElementType.INT64, "bool": ElementType.BOOL, "float16": ElementType.FLOAT16, "float64": ElementType.DOUBLE,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class External:
    """Where an initializer lies. file: name beside the model."""

    file: str
    start: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Initializer:
    """A constant of the graph. data: its bytes, or the place of them."""

    name: str
    element: ElementType
    shape: tuple[int, ...]
    data: bytes | External

    @property
    def nbytes(self) -> int:
        """Bytes that its shape needs; 4-bit elements lie two to a byte."""
        return -(-prod(self.shape) * self.element.bits // 8)


@dataclass(frozen=True, slots=True)
class Node:
    """One operation. name: of a graph that was read; ours are numbered when they are written."""

    operation: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    domain: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output. shape: numbers, or names of what is known at run time."""

    name: str
    element: ElementType
    shape: tuple[Dimension, ...]


@dataclass(slots=True)
class Graph:
    """A graph under construction, or as read."""

    nodes: list[Node] = field(default_factory=list)
    initializers: dict[str, Initializer] = field(default_factory=dict)
    inputs: list[Port] = field(default_factory=list)
    outputs: list[Port] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)
    ir_version: int = IR_VERSION
    opsets: dict[str, int] = field(default_factory=lambda: {"": OPSET})
    _fresh: int = 0

    def add(
        self, operation: str, *inputs: str, attributes: Mapping[str, Attribute] | None = None, domain: str = ""
    ) -> str:
        """Append an operation with one output; returns the output's name."""
        return self.add_many(operation, inputs, 1, attributes=attributes, domain=domain)[0]

    def add_many(
        self,
        operation: str,
        inputs: Sequence[str],
        outputs: int | Sequence[str],
        *,
        attributes: Mapping[str, Attribute] | None = None,
        domain: str = "",
    ) -> tuple[str, ...]:
        """Append an operation; returns the names of its outputs, made up where only their number is given."""
        names = tuple(self.fresh(operation) for _ in range(outputs)) if isinstance(outputs, int) else tuple(outputs)
        if domain:
            self.opsets.setdefault(domain, 1)
        self.nodes.append(Node(operation, tuple(inputs), names, dict(attributes or {}), domain))
        return names

    def fresh(self, stem: str) -> str:
        """A name that nothing has yet."""
        self._fresh += 1
        return f"{stem.lower()}_{self._fresh}"

    def constant(self, values: Array | Sequence[int] | int | float, dtype: str = "int64") -> str:
        """A small constant inside the file; equal ones are one."""
        array = np.ascontiguousarray(values, dtype=np.dtype(dtype).newbyteorder("<"))
        shape = np.asarray(values).shape
        name = f"constant_{dtype}_{'x'.join(map(str, shape))}_{array.tobytes().hex()}"
        if len(name) > 80:
            name = self.fresh("constant")
        self.initializers[name] = Initializer(name, _OF_NUMPY[dtype], shape, array.tobytes())
        return name

    def to_bytes(self) -> bytes:
        """The file."""
        graph = b"".join(protobuf.data(1, _node_bytes(node, index)) for index, node in enumerate(self.nodes))
        graph += protobuf.text(2, "lilliput")
        graph += b"".join(protobuf.data(5, _initializer_bytes(item)) for item in self.initializers.values())
        graph += b"".join(protobuf.data(11, _port_bytes(port)) for port in self.inputs)
        graph += b"".join(protobuf.data(12, _port_bytes(port)) for port in self.outputs)
        opsets = (protobuf.text(1, domain) + protobuf.integer(2, version) for domain, version in self.opsets.items())
        return b"".join(
            [
                protobuf.integer(1, self.ir_version),
                protobuf.text(2, "lilliput"),
                protobuf.data(7, graph),
                *(protobuf.data(8, opset) for opset in opsets),
                *(protobuf.data(14, protobuf.text(1, key) + protobuf.text(2, value))
                  for key, value in self.metadata.items()),
            ]
        )  # fmt: skip


def read_graph(content: bytes) -> Graph:
    """The graph of an ONNX file. Raises ContainerError where the file is damaged."""
    graph = Graph(opsets={})
    has_graph = False
    for item in protobuf.fields(content):
        match item.number:
            case 1:
                graph.ir_version = item.integer
            case 7:
                has_graph = True
                _read_graph_fields(graph, item.bytes)
            case 8:
                domain, version = _pair(item.bytes)
                graph.opsets[domain] = int(version)
            case 14:
                key, value = _pair(item.bytes)
                graph.metadata[key] = value
            case _:
                pass
    if not has_graph:
        raise ContainerError("this is no ONNX file: it holds no graph")
    return graph


def _node_bytes(node: Node, index: int) -> bytes:
    parts = [protobuf.text(1, name) for name in node.inputs]
    parts += [protobuf.text(2, name) for name in node.outputs]
    parts += [protobuf.text(3, f"{node.operation}_{index}"), protobuf.text(4, node.operation)]
    parts += [protobuf.data(5, _attribute_bytes(name, value)) for name, value in node.attributes.items()]
    if node.domain:
        parts.append(protobuf.text(7, node.domain))
    return b"".join(parts)


def _attribute_bytes(name: str, value: Attribute) -> bytes:
    match value:
        case float():
            content, kind = protobuf.real(2, value), 1
        case int():
            content, kind = protobuf.integer(3, value), 2
        case str():
            content, kind = protobuf.text(4, value), 3
        case _:
            content, kind = protobuf.integers(8, value), 7
    return protobuf.text(1, name) + content + protobuf.integer(20, kind)


def _initializer_bytes(item: Initializer) -> bytes:
    head = protobuf.integers(1, item.shape) + protobuf.integer(2, item.element) + protobuf.text(8, item.name)
    if isinstance(item.data, bytes):
        return head + protobuf.data(9, item.data)
    place = {"location": item.data.file, "offset": str(item.data.start), "length": str(item.data.nbytes)}
    entries = (protobuf.text(1, key) + protobuf.text(2, value) for key, value in place.items())
    return head + b"".join(protobuf.data(13, entry) for entry in entries) + protobuf.integer(14, _EXTERNAL)


def _port_bytes(port: Port) -> bytes:
    shape = b"".join(
        protobuf.data(1, protobuf.integer(1, size) if isinstance(size, int) else protobuf.text(2, size))
        for size in port.shape
    )
    tensor = protobuf.integer(1, port.element) + protobuf.data(2, shape)
    return protobuf.text(1, port.name) + protobuf.data(2, protobuf.data(1, tensor))


def _read_graph_fields(graph: Graph, content: bytes) -> None:
    for item in protobuf.fields(content):
        match item.number:
            case 1:
                graph.nodes.append(_read_node(item.bytes))
            case 5:
                initializer = _read_initializer(item.bytes)
                graph.initializers[initializer.name] = initializer
            case 11:
                graph.inputs.append(_read_port(item.bytes))
            case 12:
                graph.outputs.append(_read_port(item.bytes))
            case _:
                pass


def _read_node(content: bytes) -> Node:
    inputs, outputs, attributes = [], [], {}
    operation = domain = called = ""
    for item in protobuf.fields(content):
        match item.number:
            case 1:
                inputs.append(item.text)
            case 2:
                outputs.append(item.text)
            case 3:
                called = item.text
            case 4:
                operation = item.text
            case 5:
                name, value = _read_attribute(item.bytes)
                attributes[name] = value
            case 7:
                domain = item.text
            case _:
                pass
    return Node(operation, tuple(inputs), tuple(outputs), attributes, domain, called)


def _read_attribute(content: bytes) -> tuple[str, Attribute]:
    """Numbers, text and lists of integers; what else there is reads as an empty list."""
    name = ""
    value: Attribute = ()
    several: list[int] = []
    for item in protobuf.fields(content):
        match item.number:
            case 1:
                name = item.text
            case 2:
                value = item.real
            case 3:
                value = item.integer
            case 4:
                value = item.text
            case 8:
                several.extend(item.integers)
            case _:
                pass
    return name, tuple(several) if several else value


def _read_initializer(content: bytes) -> Initializer:
    name, element, raw = "", 0, b""
    shape: list[int] = []
    external: dict[str, str] = {}
    numbers: list[int] = []
    for item in protobuf.fields(content):
        match item.number:
            case 1:
                shape.extend(item.integers)
            case 2:
                element = item.integer
            case 4 | 10:
                # float_data and double_data: as the file has them, little endian.
                raw += item.bytes
            case 5 | 7:
                numbers.extend(item.integers)
            case 8:
                name = item.text
            case 9:
                raw = item.bytes
            case 13:
                key, value = _pair(item.bytes)
                external[key] = value
            case _:
                pass
    if element not in _BITS:
        raise ContainerError(f"ONNX constant '{name}' is of element type {element}, which is not read here")
    if any(size < 0 for size in shape):
        raise ContainerError(f"damaged ONNX file: constant '{name}' has shape {shape}")
    raw = raw or _number_bytes(numbers, element)
    data = _place(name, external) if external else raw
    found = Initializer(name, ElementType(element), tuple(shape), data)
    size = data.nbytes if isinstance(data, External) else len(data)
    if size != found.nbytes:
        raise ContainerError(f"ONNX constant '{name}' has {size} bytes, its shape {shape} needs {found.nbytes}")
    return found


def _number_bytes(numbers: Sequence[int], element: int) -> bytes:
    """int32_data or int64_data in the width of the element, low bits first."""
    if element in (ElementType.INT4, ElementType.UINT4):
        # Two to a number here as in raw bytes.
        return bytes(number & 0xFF for number in numbers)
    width = _BITS[ElementType(element)] // 8
    return b"".join((number & ((1 << 8 * width) - 1)).to_bytes(width, "little") for number in numbers)


def _place(name: str, external: Mapping[str, str]) -> External:
    """Where external bytes lie; only a plain name beside the model is followed."""
    file = external.get("location", "")
    if not file or "/" in file or "\\" in file or file in (".", ".."):
        raise ContainerError(f"ONNX constant '{name}' lies in '{file}'; only files beside the model are opened")
    try:
        start, nbytes = int(external.get("offset", "0")), int(external["length"])
    except (KeyError, ValueError) as failure:
        raise ContainerError(f"damaged ONNX file: constant '{name}' has no offset or length") from failure
    if start < 0 or nbytes < 0:
        raise ContainerError(f"damaged ONNX file: constant '{name}' lies at {start}, {nbytes} bytes")
    return External(file, start, nbytes)


def _read_port(content: bytes) -> Port:
    name, element = "", ElementType.FLOAT
    shape: list[Dimension] = []
    for item in protobuf.fields(content):
        if item.number == 1:
            name = item.text
        elif item.number == 2:
            for kind in protobuf.fields(item.bytes):
                if kind.number == 1:
                    element, shape = _read_tensor_type(kind.bytes)
    return Port(name, element, tuple(shape))


def _read_tensor_type(content: bytes) -> tuple[ElementType, list[Dimension]]:
    element = ElementType.FLOAT
    shape: list[Dimension] = []
    for item in protobuf.fields(content):
        if item.number == 1:
            if item.integer not in _BITS:
                raise ContainerError(f"an ONNX input or output of element type {item.integer} is not read here")
            element = ElementType(item.integer)
        elif item.number == 2:
            for dimension in protobuf.fields(item.bytes):
                parts = protobuf.fields(dimension.bytes)
                shape.extend(part.integer if part.number == 1 else part.text for part in parts)
    return element, shape


def _pair(content: bytes) -> tuple[str, str]:
    """Fields 1 and 2: key and value, or domain and version."""
    found = {1: "", 2: ""}
    for item in protobuf.fields(content):
        if item.number in found:
            found[item.number] = str(item.integer) if isinstance(item.value, int) else item.text
    return found[1], found[2]
