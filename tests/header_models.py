# SPDX-License-Identifier: Apache-2.0
"""Models that are headers alone, for tests of what is decided from headers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lilliput.architectures import llama
from lilliput.architectures.architecture import Architecture, ModelConfig
from lilliput.architectures.program import RopeFrequencies
from lilliput.checkpoints.model_source import Provenance
from lilliput.formats import get_format
from lilliput.records import QuantizedTensor, TensorHeader
from lilliput.text.vocabulary import Vocabulary


@dataclass
class HeaderModel:
    """A ModelSource without data."""

    config: ModelConfig
    headers: Mapping[str, TensorHeader]
    huggingface_names: Mapping[str, str]
    path: Path = Path("folder/a-model")
    container: str = "huggingface"
    architecture: Architecture = llama
    provenance: Provenance = field(default_factory=Provenance)

    @property
    def weight_files(self) -> tuple[Path, ...]:
        raise AssertionError("headers must be enough")

    def source_name(self, name: str) -> str:
        return self.huggingface_names[name]

    def tensor(self, name: str) -> QuantizedTensor:
        raise AssertionError("headers must be enough")

    def vocabulary(self) -> Vocabulary:
        raise AssertionError("headers must be enough")

    def fingerprint(self) -> str:
        return "0" * 64

    def release(self, name: str) -> None:
        pass

    def close(self) -> None:
        pass


def header_model(
    *,
    family: str = "llama",
    vocab_size: int = 1024,
    hidden_size: int = 512,
    ffn_size: int = 1536,
    layers: int = 4,
    heads: int = 8,
    kv_heads: int = 2,
    tied: bool = False,
    stored_format: str = "bf16",
) -> HeaderModel:
    """Headers of a Llama-shaped model of any family; names and roles are those of Llama's table."""
    head_dim = hidden_size // heads
    config = ModelConfig(
        family=family,
        vocab_size=vocab_size,
        context_length=2048,
        hidden_size=hidden_size,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn_size=ffn_size,
        norm_epsilon=1e-5,
        rope=RopeFrequencies(base=10000.0, rotary_dim=head_dim),
        tied=tied,
    )
    entries = [entry for entry in llama.tensor_table(config) if entry.tied_to is None]
    stored = get_format(stored_format)
    headers = {
        entry.name: TensorHeader(entry.name, entry.shape, stored if len(entry.shape) > 1 else get_format("f32"))
        for entry in entries
    }
    names = {entry.name: entry.source.name for entry in entries}
    return HeaderModel(config, headers, names)
