# SPDX-License-Identifier: Apache-2.0
"""Tiny models with real bytes, and their files, for tests of checkpoints and containers."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from stored_planes import finite_planes

from lilliput.architectures import llama
from lilliput.architectures.architecture import Json
from lilliput.architectures.sources import Named, PermutedHeads
from lilliput.checkpoints.model_source import Provenance
from lilliput.containers.container import Contents
from lilliput.formats import NumberFormat, get_format
from lilliput.records import QuantizedTensor, TensorHeader
from lilliput.text.vocabulary import Vocabulary

CONFIG: dict[str, Json] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
VOCABULARY = Vocabulary(
    model="llama",
    pre="default",
    tokens=tuple(["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(61)]),
    token_types=(2, 3, 3) + (6,) * 61,
    scores=tuple(-float(token) for token in range(64)),
    bos_token_id=1,
    eos_token_id=2,
    unknown_token_id=0,
    add_bos_token=True,
    chat_template="{{ messages }}",
)


def random_tensor(name: str, shape: tuple[int, ...], number_format: NumberFormat, seed: int) -> QuantizedTensor:
    header = TensorHeader(name, shape, number_format)
    return QuantizedTensor(name, shape, number_format, finite_planes(number_format, header.rows, header.columns, seed))


def tiny_model(
    number_format: NumberFormat | None = None, **changes: Json
) -> tuple[Contents, dict[str, QuantizedTensor]]:
    """A Llama of 2 layers whose matrices are in `number_format` (f32) and whose vectors are f32."""
    config = llama.config_from_huggingface({**CONFIG, **changes})
    matrix = number_format or get_format("f32")
    tensors = {
        entry.name: random_tensor(entry.name, entry.shape, matrix if len(entry.shape) > 1 else get_format("f32"), seed)
        for seed, entry in enumerate(llama.tensor_table(config))
        if entry.tied_to is None
    }
    headers = tuple(TensorHeader(tensor.name, tensor.shape, tensor.format) for tensor in tensors.values())
    provenance = Provenance(
        {"name": "Tiny Model", "license": "mit", "tags": ["a", "b"]}, {"quantize.imatrix.file": "x"}
    )
    return Contents(llama, config, VOCABULARY, provenance, headers), tensors


def write_safetensors(path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]], **metadata: str) -> None:
    """A safetensors file from raw bytes: name -> (dtype, shape, data)."""
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    position = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + len(data)]}
        position += len(data)
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + b"".join(data for _, _, data in tensors.values()))


def source_tensors(dtype: str = "F32", **changes: Json) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Random tensors of the tiny model under their Hugging Face names."""
    config = llama.config_from_huggingface({**CONFIG, **changes})
    size = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "F8_E4M3": 1}[dtype]
    found: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    generator = np.random.default_rng(7)
    for entry in llama.tensor_table(config):
        if entry.tied_to is None and isinstance(entry.source, Named | PermutedHeads):
            count = int(np.prod(entry.shape))
            if dtype == "F32":
                data = generator.standard_normal(count, dtype=np.float32).tobytes()
            else:
                # Exponents near one in every float dtype: no NaN, no infinity.
                data = np.full((count, size), 0x38, dtype=np.uint8)
                data[:, 0] = generator.integers(0, 120, count, dtype=np.uint8)
                data = data.tobytes()
            found[entry.source.name] = (dtype, entry.shape, data)
    return found


def write_folder(folder: Path, dtype: str = "F32", shards: int = 1, **changes: Json) -> Path:
    """A Hugging Face folder with one or several shards, no tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    tensors = source_tensors(dtype, **changes)
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors, format="pt")
        return folder
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for number, part in enumerate(_cut(names, shards), 1):
        shard = f"model-{number:05d}-of-{shards:05d}.safetensors"
        write_safetensors(folder / shard, {name: tensors[name] for name in part}, format="pt")
        weight_map |= dict.fromkeys(part, shard)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def _cut(names: list[str], parts: int) -> Iterator[list[str]]:
    step = -(-len(names) // parts)
    for start in range(0, len(names), step):
        yield names[start : start + step]
