# SPDX-License-Identifier: Apache-2.0
"""What a file format is to the rest of lilliput: something to open, and something to write and verify."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from lilliput.architectures.architecture import Architecture, Json, ModelConfig
from lilliput.checkpoints.model_source import ModelSource, Provenance
from lilliput.errors import ContainerError
from lilliput.formats import NumberFormat, PlaneSpec
from lilliput.records import QuantizedTensor, Role, TensorHeader
from lilliput.text.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Contents:
    """A model about to be written, its tensors' bytes aside.

    headers: every tensor with bytes of its own, in file order; tied tensors are left out.
    preset: name of the mix ("Q4_K_M") or type, from which containers derive their own label.
    metadata: keys that are about this file rather than the model (`quantize.imatrix.*`, `lilliput.*`).
    sidecars: tensor name -> sidecar name -> dtype and shape, for tensors that have any.
    input_ranges: largest magnitude of what is multiplied with a tensor, where statistics know it.
    output_ranges: smallest and largest value of what operations give, by `encoder_half.place`.
    """

    architecture: Architecture
    config: ModelConfig
    vocabulary: Vocabulary | None
    provenance: Provenance
    headers: tuple[TensorHeader, ...]
    preset: str = ""
    metadata: Mapping[str, Json] = field(default_factory=dict)
    sidecars: Mapping[str, Mapping[str, PlaneSpec]] = field(default_factory=dict)
    input_ranges: Mapping[str, float] = field(default_factory=dict)
    output_ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def weights(self) -> int:
        """Number of weights, tied tensors once."""
        return sum(header.rows * header.columns for header in self.headers)


@dataclass(frozen=True, slots=True)
class Split:
    """How to cut a model into several files; both None means one file.

    max_bytes: tensor bytes in a part.  max_tensors: tensors in a part.
    """

    max_bytes: int | None = None
    max_tensors: int | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """Where one stored array of a tensor goes in its file. start: absolute byte."""

    kind: Literal["planes", "sidecars"]
    name: str
    start: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class PlacedTensor:
    """A tensor's header and the places of its arrays, in file order."""

    header: TensorHeader
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class PartLayout:
    """One file to be: its name, the bytes before the tensors, the tensors' places, its size.

    file_name: with a folder before it where the container is a folder.
    """

    file_name: str
    prefix: bytes
    tensors: tuple[PlacedTensor, ...]
    size: int


@dataclass(frozen=True, slots=True)
class Written:
    """Files as written, and the sha256 of each tensor's arrays as memory held them."""

    paths: tuple[Path, ...]
    digests: Mapping[str, str]


def input_range(header: TensorHeader, contents: Contents) -> float:
    """Largest magnitude of what is multiplied with a tensor. Raises ContainerError where nobody measured it."""
    names = [header.name]
    if contents.config.tied and header.name == "token_embd.weight":
        # Statistics are of the head, which is this tensor.
        names.append("output.weight")
    for name in names:
        if contents.input_ranges.get(name):
            return contents.input_ranges[name]
    raise ContainerError(
        f"tensor '{header.name}': {header.format.name.upper()} needs the range of its inputs; give --statistics FILE "
        "of `lilliput calibrate` (an imatrix has no ranges, and --transform changes them), or keep the tensor in F16"
    )


class Container(Protocol):
    """One file format. Implementations are modules listed in `CONTAINERS`.

    float_roles: what stays as it is where a number format alone is asked for, because no reader takes it quantized.
    """

    name: str
    suffix: str
    float_roles: tuple[Role, ...]

    def recognises(self, path: Path) -> bool:
        """Whether this file looks like one of ours, from its first bytes and name."""

    def open(self, path: Path) -> ModelSource:
        """Open a file. Raises ContainerError or UnsupportedModelError."""

    def holds(self, number_format: NumberFormat) -> bool:
        """Whether tensors of this format can be stored."""

    def layout(self, contents: Contents, file_name: str, split: Split) -> tuple[PartLayout, ...]:
        """Everything but the tensors' bytes, and so the exact size, before any work. Raises ContainerError."""

    def write(self, parts: tuple[PartLayout, ...], tensors: Iterable[QuantizedTensor], folder: Path) -> Written:
        """Write the parts into a folder, taking one tensor at a time, in the order of the headers."""

    def verify(self, written: Written) -> None:
        """Reopen with our own reader, decode every tensor, compare. Raises ContainerError naming the tensor."""
