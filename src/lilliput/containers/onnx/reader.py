# SPDX-License-Identifier: Apache-2.0
"""An opened ONNX file: its graph, and its weights by name, as `stored_weights` finds them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from lilliput.arrays import FloatArray
from lilliput.checkpoints.mapped_file import update_digest
from lilliput.containers.onnx.constants import Constants
from lilliput.containers.onnx.graph import Graph
from lilliput.containers.onnx.stored_weights import find_weights
from lilliput.containers.part_writer import decoded_pieces
from lilliput.errors import ContainerError
from lilliput.records import QuantizedTensor

# The graphs in a folder of ours: one, or an encoder's and a decoder's.
MODEL = "model.onnx"
ENCODER, DECODER = "encoder_model.onnx", "decoder_model.onnx"


class OnnxFile:
    """An opened ONNX file and the external files beside it, mapped."""

    def __init__(self, path: Path) -> None:
        """Open a file. Raises ContainerError where it is damaged or something is missing."""
        self.path = path
        self.constants = Constants(path)
        self.weights = find_weights(self.constants)

    @property
    def graph(self) -> Graph:
        """The graph."""
        return self.constants.graph

    def values(self, name: str) -> Iterator[FloatArray]:
        """Float32 values of a weight, some rows at a time; of one that operators read in parts, part after part."""
        for weight in self.weights[name]:
            yield from weight.values(self.constants)

    def value_digest(self, name: str) -> str:
        """sha256 of a weight's float32 values. Raises ContainerError where one is NaN or infinite."""
        return digest_of(self.values(name), name)

    def nbytes(self, name: str) -> int:
        """Stored bytes of a weight."""
        arrays = [array for weight in self.weights[name] for array in weight.arrays]
        return sum(self.constants.find(array).nbytes for array in arrays)

    def shape(self, name: str) -> tuple[int, ...]:
        """[out, in], or the shape of plain floats."""
        parts = [weight.shape(self.constants) for weight in self.weights[name]]
        return (sum(part[0] for part in parts), *parts[0][1:]) if parts[0] else ()

    def kind(self, name: str) -> str:
        """How a weight is stored, in words."""
        return self.weights[name][0].kind(self.constants)

    def close(self) -> None:
        """Let go of the maps."""
        self.constants.close()


def graph_files(folder: Path) -> tuple[Path, ...]:
    """The graphs of a folder of ours; none where it is something else."""
    whole = folder / MODEL
    halves = (folder / ENCODER, folder / DECODER)
    if whole.is_file():
        return (whole,)
    return halves if all(path.is_file() for path in halves) else ()


def value_digest(tensor: QuantizedTensor) -> str:
    """sha256 of a tensor's float32 values. Raises ContainerError where one is NaN or infinite."""
    return digest_of(decoded_pieces(tensor), tensor.name)


def digest_of(pieces: Iterable[FloatArray], name: str) -> str:
    """sha256 of values in order, however they are cut. Raises ContainerError where one is NaN or infinite."""
    digest = hashlib.sha256()
    for values in pieces:
        if not np.isfinite(values).all():
            raise ContainerError(f"tensor '{name}' decodes to {'NaN' if np.isnan(values).any() else 'infinity'}")
        # A zero may carry a sign on one way and none on the other.
        update_digest(digest, np.ascontiguousarray(values + np.float32(0.0)).reshape(-1).view(np.uint8))
    return digest.hexdigest()
