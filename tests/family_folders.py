# SPDX-License-Identifier: Apache-2.0
"""Tiny random checkpoints of decoder families as their own code saves them, with a tokenizer of their kind."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers
from tiny_tokenizers import byte_level, named, sentencepiece_like, write_folder

from lilliput.architectures.architecture import Json

SIZES: dict[str, Json] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 256, "initializer_range": 0.15, "pad_token_id": None,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Json]] = {
    "gpt2": {"n_inner": 256},
    "opt": {"ffn_dim": 96, "init_std": 0.15},
    "gpt_neox": {},
    "phi": {"num_key_value_heads": 4, "intermediate_size": 256},
    "phi3": {"num_key_value_heads": 2, "original_max_position_embeddings": 256},
    "gptj": {"n_inner": 96, "rotary_dim": 8},
    "gemma": {"num_key_value_heads": 2, "head_dim": 16},
    "granite": {
        "num_key_value_heads": 2, "embedding_multiplier": 12.0, "attention_multiplier": 0.3,
        "residual_multiplier": 0.22, "logits_scaling": 8.0,
    },
    "olmo2": {"num_key_value_heads": 2},
    "stablelm": {"num_key_value_heads": 2},
    "starcoder2": {"num_key_value_heads": 2},
    "gemma2": {"num_key_value_heads": 2, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8},
    "gemma3_text": {
        "num_key_value_heads": 2, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8,
        "sliding_window_pattern": 2, "rope_theta": 1e6, "rope_local_base_freq": 1e4,
    },
    "mixtral": {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {
        "num_key_value_heads": 2, "head_dim": 16, "num_experts": 8, "num_experts_per_tok": 3, "norm_topk_prob": True,
        "moe_intermediate_size": 96,
    },
    "olmoe": {"num_experts": 8, "num_experts_per_tok": 3},
}  # fmt: skip
SENTENCEPIECE = ("phi3", "gemma", "gemma2", "gemma3_text")


def write_family(folder: Path, model_type: str) -> Path:
    """A folder of config.json, weights and tokenizer."""
    is_sentencepiece = model_type in SENTENCEPIECE
    tokenizer = sentencepiece_like(prefix=model_type == "phi3") if is_sentencepiece else byte_level(named("gpt-2"))
    fields = {**SIZES, **FAMILIES[model_type], "vocab_size": tokenizer.get_vocab_size(), "model_type": model_type}
    names = ("<s>", "</s>") if is_sentencepiece else ("<|begin|>", "<|end|>")
    begin, end = (tokenizer.token_to_id(name) for name in names)
    torch.manual_seed(5)
    settings = transformers.AutoConfig.for_model(**json.loads(json.dumps(fields)), bos_token_id=begin, eos_token_id=end)
    model = transformers.AutoModelForCausalLM.from_config(settings, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.copy_(0.5 + torch.rand(parameter.shape))
    model.save_pretrained(folder)
    return write_folder(folder, tokenizer, bos_token=names[0], eos_token=names[1])
