# SPDX-License-Identifier: Apache-2.0
"""What a Hugging Face folder has beside weights, for a model that came without one: config.json, tokenizer, texts.

Either the original's own files, or ones rebuilt from what a GGUF or our own layout says of the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lilliput.architectures import architecture_for_huggingface, is_known
from lilliput.architectures.architecture import Json, ModelConfig
from lilliput.architectures.huggingface_config import huggingface_fields
from lilliput.architectures.rope_scaling import ROPE_FACTORS_TENSOR, llama3_factors
from lilliput.checkpoints.model_card import read_provenance
from lilliput.checkpoints.model_source import ModelSource, Provenance
from lilliput.checkpoints.shards import read_json
from lilliput.containers.side_files import PREFIX
from lilliput.errors import CheckpointError, ContainerError, TokenizerError, UnsupportedModelError
from lilliput.text.tokenizer_files import tokenizer_files

# transformers' class of each model type that `huggingface_fields` writes.
CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
}
# Published models scale by 8 (Llama 3.1) or 32 (3.2); the rest of the recipe is one for all.
LLAMA3_FACTORS = (8.0, 32.0, 16.0, 4.0, 2.0)


@dataclass(frozen=True, slots=True)
class FolderFiles:
    """config: of the model, with the rope scaling that config.json spells.  notes: for the user."""

    provenance: Provenance
    config: ModelConfig
    notes: tuple[str, ...] = ()


def folder_files(source: ModelSource, base: str | Path | None, work: Path) -> FolderFiles:
    """What a folder made from `source` gets.

    base: Hugging Face folder or id of the original; only its description is read.  work: where rebuilt files are put.
    Raises ContainerError where no config.json can say what the model is, CheckpointError for an unreadable base.
    """
    if base is not None:
        described = _description(base)
        provenance = replace(
            source.provenance,
            huggingface_config=described.huggingface_config,
            side_files=described.side_files,
            general={**described.general, **source.provenance.general},
        )
        # Not the source's family, which may be what its file calls the model: Mixtral is Llama to GGUF.
        config = described.huggingface_config
        family = architecture_for_huggingface(config) if is_known(config) else source.architecture
        theirs = family.config_from_huggingface(config)
        return FolderFiles(provenance, _with_rope(source, [theirs.rope_llama3] if theirs.rope_llama3 else []))
    if source.provenance.huggingface_config:
        return FolderFiles(source.provenance, source.config)
    return _rebuilt(source, work)


def _description(base: str | Path) -> Provenance:
    folder, repository = Path(base), None
    if not folder.is_dir():
        from lilliput.checkpoints.hub import download_description

        folder, repository = download_description(str(base)), str(base)
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"--base {base}: no config.json there; give a Hugging Face folder or id")
    config: Mapping[str, Json] = read_json(folder / "config.json")  # type: ignore[assignment]
    return read_provenance(folder, config, repository)


def _rebuilt(source: ModelSource, work: Path) -> FolderFiles:
    try:
        fields = huggingface_fields(source.config)
    except UnsupportedModelError as failure:
        raise ContainerError(f"{failure}; give its folder or id with --base") from failure
    config = _with_rope(source, list(_llama3_candidates()))
    if config.rope_llama3 is not None:
        fields["rope_parameters"] = _llama3_fields(config)
    if config.rope_layers is not None:
        rotated = set(config.rope_layers)
        fields["no_rope_layers"] = [int(layer in rotated) for layer in range(config.layers)]
    fields |= {"architectures": [CLASSES[str(fields["model_type"])]], "dtype": "float32"}
    notes = ["config.json was rebuilt from the file's own metadata; --base FOLDER_OR_ID takes the original's files"]
    files: dict[str, str] = {}
    try:
        vocabulary = source.vocabulary()
        files = tokenizer_files(vocabulary)
        fields |= {"bos_token_id": vocabulary.bos_token_id, "eos_token_id": vocabulary.eos_token_id}
    except TokenizerError as failure:
        notes.append(f"the folder gets no tokenizer files: {failure}; give --base FOLDER_OR_ID")
    for key, value in source.provenance.extra.items():
        name = key.removeprefix(PREFIX)
        if name != key and isinstance(value, str) and Path(name).name == name:
            files[name] = value
    for name, text in files.items():
        (work / name).write_text(text, encoding="utf-8")
    side_files = tuple(work / name for name in files)
    provenance = replace(source.provenance, huggingface_config=fields, side_files=side_files)
    return FolderFiles(provenance, config, tuple(notes))


def _with_rope(source: ModelSource, candidates: list[Mapping[str, float]]) -> ModelConfig:
    """The config with the llama3 scaling that the file's tensor of factors was computed from; none where all are 1.

    Raises ContainerError where it was computed from none of the candidates.
    """
    if ROPE_FACTORS_TENSOR not in source.headers or source.config.rope_llama3 is not None:
        return source.config
    rope = source.config.rope
    factors = source.tensor(ROPE_FACTORS_TENSOR).dequantize()
    if (factors == 1.0).all():
        return replace(source.config, rope=replace(rope, factors=None))
    for llama3 in candidates:
        if np.array_equal(np.asarray(llama3_factors(rope.base, rope.rotary_dim, llama3), np.float32), factors):
            return replace(source.config, rope_llama3=llama3)
    raise ContainerError(
        f"{source.path.name}: its rope scaling is stored as a tensor that no known llama3 scaling gives; give the "
        "original's folder or id with --base"
    )


def _llama3_candidates() -> Iterator[Mapping[str, float]]:
    for factor in LLAMA3_FACTORS:
        yield {"factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_context": 8192.0}


def _llama3_fields(config: ModelConfig) -> dict[str, Json]:
    assert config.rope_llama3 is not None
    llama3 = config.rope_llama3
    return {
        "rope_type": "llama3",
        "rope_theta": config.rope.base,
        "factor": llama3["factor"],
        "low_freq_factor": llama3["low_freq_factor"],
        "high_freq_factor": llama3["high_freq_factor"],
        "original_max_position_embeddings": int(llama3["original_context"]),
    }
