# SPDX-License-Identifier: Apache-2.0
"""Tiny random models of every family, straight from their tensor tables: no files, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from reference_program import ProgramSource, float_tensor, run_program

from lilliput.architectures import ARCHITECTURES, architecture_for_huggingface
from lilliput.architectures.architecture import Architecture, Json, ModelConfig
from lilliput.architectures.sources import Computed
from lilliput.checkpoints.model_source import ModelSource, Provenance
from lilliput.records import QuantizedTensor, Role, TensorHeader
from lilliput.text.vocabulary import Vocabulary

SIZES: dict[str, Json] = {
    "vocab_size": 70, "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 64, "pad_token_id": None,
    "ffn_dim": 160, "n_inner": 160, "rotary_dim": 16,
}  # fmt: skip
# Beside the families' own defaults: what may stand in the way of a rewrite.
VARIANTS: dict[str, dict[str, Json]] = {
    "llama-tied": {"model_type": "llama", "tie_word_embeddings": True},
    "llama-all-heads": {"model_type": "llama", "num_key_value_heads": 4, "num_attention_heads": 4},
    "llama-biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "qwen3-biases": {"model_type": "qwen3", "attention_bias": True},
}
EXPERT_MODELS = ("mixtral", "qwen3_moe")
EXPERTS: dict[str, Json] = {"num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
CONFIGS: dict[str, dict[str, Json]] = {
    **{
        name: {"model_type": name, **(EXPERTS if name in EXPERT_MODELS else {})}
        for family in ARCHITECTURES
        for name in family.huggingface_types
        if not hasattr(family, "encoder_program")
        and family.config_from_huggingface({**SIZES, "model_type": name}).task == "next_token"
    },
    **VARIANTS,
}


@dataclass
class RandomModel:
    """A ModelSource in memory."""

    architecture: Architecture
    config: ModelConfig
    tensors: Mapping[str, QuantizedTensor]
    path: Path = Path("folder/random")
    container: str = "huggingface"
    provenance: Provenance = field(default_factory=Provenance)
    weight_files: tuple[Path, ...] = ()

    @property
    def headers(self) -> dict[str, TensorHeader]:
        return {name: TensorHeader(name, tensor.shape, tensor.format) for name, tensor in self.tensors.items()}

    def source_name(self, name: str) -> str:
        return name

    def tensor(self, name: str) -> QuantizedTensor:
        return self.tensors[name]

    def release(self, name: str) -> None:
        pass

    def vocabulary(self) -> Vocabulary:
        raise AssertionError("not needed")

    def fingerprint(self) -> str:
        return "0" * 64

    def close(self) -> None:
        pass


def random_model(config_fields: Mapping[str, Json], *, seed: int = 0) -> RandomModel:
    """Weights of unit gain, norms and biases far from neutral, a few outlier columns."""
    fields = {**SIZES, **config_fields}
    architecture = architecture_for_huggingface(fields)
    config = architecture.config_from_huggingface(fields)
    generator = np.random.default_rng(seed)
    tensors = {}
    for entry in architecture.tensor_table(config):
        if entry.tied_to is not None:
            continue
        if isinstance(entry.source, Computed):
            values = np.array(entry.source.values, dtype=np.float32).reshape(entry.shape)
        elif entry.role is Role.NORM:
            values = generator.uniform(0.3, 2.0, entry.shape).astype(np.float32)
        else:
            values = generator.normal(0.0, entry.shape[-1] ** -0.5, entry.shape).astype(np.float32)
            values[..., generator.integers(0, entry.shape[-1], 2)] *= 4.0
        tensors[entry.name] = float_tensor(entry.name, values)
    return RandomModel(architecture, config, tensors)


def exact_logits(source: ModelSource, tokens: list[int]) -> NDArray[np.floating]:
    """[tokens, vocab] in float64, from whatever the source's tensors hold."""
    names = (entry.name for entry in source.architecture.tensor_table(source.config))
    tensors = {name: source.tensor(name) for name in names if name in source.headers}
    program = source.architecture.program(source.config)
    return run_program(ProgramSource(program, tensors), tokens, range(len(tokens)))


def with_tensor(model: RandomModel, name: str, values: NDArray[np.float32]) -> RandomModel:
    """The same with other values for one tensor."""
    return replace(model, tensors={**model.tensors, name: float_tensor(name, values)})
