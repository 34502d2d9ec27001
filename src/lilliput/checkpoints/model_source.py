# SPDX-License-Identifier: Apache-2.0
"""An opened model, whatever it travelled in: the one interface between files and everything else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from lilliput.architectures.architecture import Architecture, Json, ModelConfig
from lilliput.records import QuantizedTensor, TensorHeader
from lilliput.text.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Provenance:
    """What must never be lost on the way: names, licence, origin, side files.

    general: GGUF's `general.*` keys without the prefix (name, license, base_model.0.name …), as far as known.
    extra: container metadata outside the architecture, tokenizer and general keys that must be carried over.
    side_files: files beside the weights that a copy of the model must keep (generation_config.json, LICENSE, *.py …).
    huggingface_config: config.json as its folder has it; empty for models that come from no such folder.
    """

    general: Mapping[str, Json] = field(default_factory=dict)
    extra: Mapping[str, Json] = field(default_factory=dict)
    side_files: tuple[Path, ...] = ()
    huggingface_config: Mapping[str, Json] = field(default_factory=dict)


class ModelSource(Protocol):
    """Lazy, memory-mapped tensors under canonical names, with config, tokenizer and provenance."""

    path: Path
    container: str  # "huggingface", "gguf", "lilliput"
    architecture: Architecture
    config: ModelConfig
    provenance: Provenance

    @property
    def headers(self) -> Mapping[str, TensorHeader]:
        """Canonical name -> header, in file order; tied tensors appear once. Reads headers only."""

    @property
    def weight_files(self) -> tuple[Path, ...]:
        """The files that hold the tensors: all shards of a folder, all parts of a split."""

    def source_name(self, name: str) -> str:
        """How this source itself spells a canonical tensor name (Hugging Face name for a folder)."""

    def tensor(self, name: str) -> QuantizedTensor:
        """One tensor, memory-mapped where its source expression allows it. Raises ContainerError / CheckpointError."""

    def release(self, name: str) -> None:
        """Give the memory of a tensor's mapped pages back to the system; it stays readable, from disk."""

    def vocabulary(self) -> Vocabulary:
        """The tokenizer. Raises TokenizerError."""

    def fingerprint(self) -> str:
        """sha256 hex over config, tensor headers, file sizes and content; equal models give equal fingerprints."""

    def close(self) -> None:
        """Release the maps."""
