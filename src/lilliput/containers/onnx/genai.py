# SPDX-License-Identifier: Apache-2.0
"""genai_config.json: how onnxruntime-genai drives the graph."""

from __future__ import annotations

import json
from pathlib import Path

from lilliput.architectures.architecture import Json
from lilliput.containers.container import Contents


def genai_config(contents: Contents) -> dict[str, Json]:
    """Names of inputs and outputs, sizes, tokens to stop at, and how to sample where nobody says it.

    Sampling comes from the source's generation_config.json where there is one.
    """
    config, source = contents.config, contents.provenance.huggingface_config
    generation = _generation_config(contents.provenance.side_files)
    vocabulary = contents.vocabulary
    bos = source.get("bos_token_id", vocabulary.bos_token_id if vocabulary else None)
    eos = generation.get("eos_token_id", source.get("eos_token_id", vocabulary.eos_token_id if vocabulary else None))
    first_eos = eos[0] if isinstance(eos, list) and eos else eos
    pad = source.get("pad_token_id")
    inputs: dict[str, Json] = {name: name for name in ("input_ids", "attention_mask", "position_ids")}
    inputs |= {"past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value"}
    decoder: dict[str, Json] = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": "model.onnx",
        "head_size": config.head_dim,
        "hidden_size": config.hidden_size,
        "inputs": inputs,
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.layers,
        "num_key_value_heads": config.kv_heads,
    }
    model: dict[str, Json] = {
        "bos_token_id": bos if bos is not None else first_eos,
        "context_length": config.context_length,
        "decoder": decoder,
        "eos_token_id": eos,
        "pad_token_id": pad if pad is not None else first_eos,
        # The runtime's name for any decoder with such inputs.
        "type": "decoder",
        "vocab_size": config.vocab_size,
    }
    search: dict[str, Json] = {
        "do_sample": bool(generation.get("do_sample", False)),
        "max_length": config.context_length,
        "min_length": 0,
        "num_beams": 1,
        "num_return_sequences": 1,
        "past_present_share_buffer": True,
        "repetition_penalty": generation.get("repetition_penalty", 1.0),
        "temperature": generation.get("temperature", 1.0),
        "top_k": generation.get("top_k", 50),
        "top_p": generation.get("top_p", 1.0),
    }
    return {"model": model, "search": search}


def _generation_config(side_files: tuple[Path, ...]) -> dict[str, Json]:
    for path in side_files:
        if path.name == "generation_config.json":
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                return {}
            return found if isinstance(found, dict) else {}
    return {}
