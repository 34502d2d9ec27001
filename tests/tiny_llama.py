# SPDX-License-Identifier: Apache-2.0
"""A tiny random Llama as a Hugging Face folder, made without torch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

TEXT = (
    "The lilliputians measured everything: rope, bread, ships and words. Once a year they wrote down what each "
    "had cost, and by how much the small copy differed from the large one. 1234567890 () {} == != \n\n"
)


def write_tiny_llama(
    folder: Path, *, hidden: int = 256, ffn: int = 512, layers: int = 2, heads: int = 4, kv_heads: int = 2,
    vocab: int = 384, is_tied: bool = False, context: int = 512, seed: int = 0,
) -> Path:  # fmt: skip
    """Write config.json, model.safetensors (float32) and tokenizer files; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder, vocab)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
        "intermediate_size": ffn, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "vocab_size": vocab, "max_position_embeddings": context,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": is_tied, "hidden_act": "silu",
        "bos_token_id": 0, "eos_token_id": 0, "torch_dtype": "float32",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tiny_tensors(config, seed), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def tiny_tensors(config: dict, seed: int) -> dict[str, np.ndarray]:
    """Random float32 tensors under Hugging Face names, with a few outlier columns as trained models have."""
    generator = np.random.default_rng(seed)
    hidden, ffn, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    kv_width = hidden // config["num_attention_heads"] * config["num_key_value_heads"]

    def matrix(rows: int, columns: int) -> np.ndarray:
        weight = generator.normal(0.0, 0.08, (rows, columns)).astype(np.float32)
        weight[:, generator.integers(0, columns, 3)] *= 4.0
        return weight

    tensors = {"model.embed_tokens.weight": matrix(vocab, hidden), "model.norm.weight": np.ones(hidden, np.float32)}
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = matrix(vocab, hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for name, rows, columns in (
            ("self_attn.q_proj", hidden, hidden), ("self_attn.k_proj", kv_width, hidden),
            ("self_attn.v_proj", kv_width, hidden), ("self_attn.o_proj", hidden, hidden),
            ("mlp.gate_proj", ffn, hidden), ("mlp.up_proj", ffn, hidden), ("mlp.down_proj", hidden, ffn),
        ):  # fmt: skip
            tensors[f"{prefix}{name}.weight"] = matrix(rows, columns)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{name}.weight"] = generator.uniform(0.5, 1.5, hidden).astype(np.float32)
    return tensors


def write_tokenizer(folder: Path, vocab: int) -> None:
    """A byte-level BPE with GPT-2's split rules."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator([TEXT] * 20, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
        )
    )
