# SPDX-License-Identifier: Apache-2.0
"""Finished steps of a long run, so that a killed one continues where it was and ends in the same bytes.

layout   a folder beside the output, `<output>.work/`. One safetensors file a step, `<step>.safetensors`: the planes of
         its tensors as `<tensor>.<plane>`, and as metadata the run's key, a digest of the hidden states it left
         (`states`) and, per tensor, its ledger entry (JSON).
         `stream.0`, `stream.1`: hidden states float32 [chunks, chunk_size, hidden_size] before and after a block, by
         turns. `float.0`, `float.1`: the same of the float model, where both are followed.
promise  a step's file appears whole or not at all, and after everything it rests on. A folder of another key (another
         model, text, recipe or version) is never continued: it is emptied.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

import numpy as np
from safetensors.numpy import save_file

from lilliput.arrays import Array, FloatArray
from lilliput.calibration.mapped_file import mapped_floats
from lilliput.checkpoints.safetensors_reader import SafetensorsFile
from lilliput.containers.part_writer import disk_error
from lilliput.errors import LilliputError, PublishError
from lilliput.pipeline.quantize_tensors import Done
from lilliput.recipes.ledger import LedgerEntry
from lilliput.records import QuantizedTensor, TensorPlan


class WorkFolder:
    """Steps of one run. key: hash of everything that decides their content.

    Used in a `with`: a run that fails after its first step keeps the folder for the next one; `discard` removes it when
    all is published.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        self.key = key
        self._files: list[SafetensorsFile] = []
        try:
            if self._written_key() not in (None, key):
                shutil.rmtree(path)
            path.mkdir(parents=True, exist_ok=True)
            (path / "key").write_text(key, encoding="ascii")
        except OSError as failure:
            raise disk_error(path.name, failure) from failure

    def __enter__(self) -> WorkFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files:
            file.close()
        if error is not None and not any(self.path.glob("*.safetensors")):
            self.discard()  # nothing worth keeping

    def discard(self) -> None:
        """Everything is published: the folder goes."""
        shutil.rmtree(self.path, ignore_errors=True)

    @staticmethod
    def discard_finished(path: Path, key: str) -> None:
        """Remove what a run of that key left when it was killed after it had published all."""
        with suppress(OSError):
            if (path / "key").read_text(encoding="ascii") == key:
                shutil.rmtree(path, ignore_errors=True)

    def finished(self, step: str, rows: Iterable[TensorPlan]) -> Done | None:
        """Tensors and ledger entries of a finished step, mapped from disk; None where it is still to be done."""
        path = self._step(step)
        if not path.is_file():
            return None
        try:
            file = SafetensorsFile(path)
        except LilliputError:
            return None  # cut short by a full disk or a damaged one: done again
        self._files.append(file)
        if file.metadata.get("key") != self.key:
            return None
        return {row.name: _read(file, row) for row in rows}

    def left(self, step: str, *states: FloatArray) -> bool:
        """Whether `states` are the hidden states that this finished step left behind.

        They are not where a later step has written over them, or a power cut came before they were on disk.
        """
        with closing(SafetensorsFile(self._step(step))) as file:
            return file.metadata.get("states") == _digest(*states)

    def finish(self, step: str, done: Done, *states: FloatArray) -> None:
        """Write a step's tensors. states: the hidden states it leaves to the next one. Raises PublishError."""
        arrays: dict[str, Array] = {}
        metadata = {"key": self.key}
        if states:
            metadata["states"] = _digest(*states)
        for name, (tensor, entry) in done.items():
            arrays |= {f"{name}.{plane}": np.ascontiguousarray(array) for plane, array in tensor.planes.items()}
            metadata[name] = json.dumps(asdict(entry))
        part = self._step(f"{step}.partial")
        try:
            save_file(arrays, part, metadata=metadata)
            with part.open("rb") as written:
                os.fsync(written.fileno())
            part.replace(self._step(step))
        except OSError as failure:
            raise disk_error(part.name, failure) from failure

    def stream(self, index: int, shape: tuple[int, int, int], name: str = "stream") -> FloatArray:
        """The hidden states before (even) or after (odd) a block, mapped and writable. Raises PublishError."""
        path = self.path / f"{name}.{index % 2}"
        try:
            return mapped_floats(path, shape)
        except OSError as failure:
            size = 4 * int(np.prod(shape, dtype=np.int64))
            raise PublishError(
                f"{path}: no room for {size} bytes of hidden states ({failure.strerror}); use fewer calibration tokens "
                "or write to a larger disk"
            ) from failure

    def _step(self, name: str) -> Path:
        return self.path / f"{name}.safetensors"

    def _written_key(self) -> str | None:
        try:
            return (self.path / "key").read_text(encoding="ascii")
        except FileNotFoundError:
            return None


def work_path(output: Path) -> Path:
    """`model.gguf` -> `model.gguf.work`, beside it."""
    return output.with_name(output.name + ".work")


def _digest(*states: FloatArray) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for array in states:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _read(file: SafetensorsFile, row: TensorPlan) -> tuple[QuantizedTensor, LedgerEntry]:
    specs = row.format.stored_planes(int(np.prod(row.shape[:-1])), row.shape[-1])
    planes = {
        plane: file.data(f"{row.name}.{plane}").view(spec.dtype).reshape(spec.shape) for plane, spec in specs.items()
    }
    content = json.loads(file.metadata[row.name])
    entry = LedgerEntry(**{**content, "shape": tuple(content["shape"])})
    return QuantizedTensor(row.name, row.shape, row.format, planes), entry
