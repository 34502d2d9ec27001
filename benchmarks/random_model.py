# SPDX-License-Identifier: Apache-2.0
"""Write a random model of Llama-3.2-1B's, Qwen2.5-0.5B's or Qwen3-MoE's shape: speed is the same whatever the values.

    python benchmarks/random_model.py random-1b-F16.gguf           # F16, without a tokenizer
    python benchmarks/random_model.py random-1b                    # a Hugging Face folder, BF16, Gulliver's tokenizer
    python benchmarks/random_model.py random-0.5b-F16.gguf --shape qwen2.5-0.5b
    python benchmarks/random_model.py random-moe-F16.gguf --shape qwen3-moe     # 6 blocks of 32 experts; GGUF only
    python benchmarks/random_model.py random-1b-IQ3_S.gguf --codes IQ3_S        # random codes, embeddings in Q8_0
    python benchmarks/random_model.py random-1b-F16.gguf --tokenizer models/ggml-vocab-llama-bpe.gguf   # llama.cpp's

Quantize it with llama-quantize, or with `lilliput quantize`.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import numpy as np

from lilliput.containers.gguf_reader import GgufFile
from lilliput.models import gulliver


@dataclass(frozen=True)
class Shape:
    """Widths of a decoder with tied embeddings."""

    architecture: str
    hf_class: str
    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    rope_theta: float
    has_bias: bool  # of q, k and v
    experts: int = 0  # of `ffn` each; 0: a plain feed-forward layer
    experts_used: int = 0

    @property
    def linears(self) -> tuple[tuple[str, str, int, int], ...]:
        """(name in GGUF, name in a checkpoint, rows, columns) of a block."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return (
            ("attn_q", "self_attn.q_proj", q, self.hidden),
            ("attn_k", "self_attn.k_proj", kv, self.hidden),
            ("attn_v", "self_attn.v_proj", kv, self.hidden),
            ("attn_output", "self_attn.o_proj", self.hidden, q),
            *self.feed_forward,
        )

    @property
    def feed_forward(self) -> tuple[tuple[str, str, int, int], ...]:
        """Its linears; none where experts take their place."""
        if self.experts:
            return ()
        return (
            ("ffn_gate", "mlp.gate_proj", self.ffn, self.hidden),
            ("ffn_up", "mlp.up_proj", self.ffn, self.hidden),
            ("ffn_down", "mlp.down_proj", self.hidden, self.ffn),
        )


SHAPES = {
    "llama-1b": Shape("llama", "LlamaForCausalLM", 2048, 8192, 16, 32, 8, 64, 128256, 500000.0, has_bias=False),
    "qwen2.5-0.5b": Shape("qwen2", "Qwen2ForCausalLM", 896, 4864, 24, 14, 2, 64, 151936, 1000000.0, has_bias=True),
    # To try a benchmark out; all of its tokens are in Gulliver's tokenizer.
    "tiny": Shape("llama", "LlamaForCausalLM", 512, 1024, 2, 8, 2, 64, 4096, 10000.0, has_bias=False),
    # Blocks as in Qwen3-30B-A3B, fewer of them and a quarter of the experts.
    "qwen3-moe": Shape(
        "qwen3moe",
        "Qwen3MoeForCausalLM",
        2048,
        768,
        6,
        32,
        4,
        128,
        32000,
        1000000.0,
        has_bias=False,
        experts=32,
        experts_used=8,
    ),
}
# Types that llama-quantize makes of a model of random weights only in part.
CODES = ("IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_S", "IQ4_XS")
BIASED = ("attn_q", "attn_k", "attn_v")


def metadata(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_context_length(131072)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocabulary)
    if shape.experts:
        writer.add_expert_count(shape.experts)
        writer.add_expert_used_count(shape.experts_used)
        writer.add_expert_feed_forward_length(shape.ffn)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)


def add_tokenizer(writer: gguf.GGUFWriter, source: Path, vocabulary: int) -> None:
    """The tokenizer of another GGUF file, so that opening this one costs what opening a real one does."""
    metadata = GgufFile(source).metadata
    tokens = len(metadata.get("tokenizer.ggml.tokens", ()))
    if tokens != vocabulary:
        raise SystemExit(f"{source}: has {tokens} tokens; a model of this shape has {vocabulary}")
    for key, value in metadata.items():
        if not key.startswith("tokenizer."):
            continue
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_string(key, str(value))


def add_matrix(
    writer: gguf.GGUFWriter,
    random: np.random.Generator,
    name: str,
    dimensions: tuple[int, ...],
    codes: gguf.GGMLQuantizationType | None,
) -> None:
    """One matrix: F16, or of random codes in blocks that begin with an fp16 scale, with embeddings in Q8_0."""
    if codes is not None and name != "token_embd.weight":
        size, n_bytes = gguf.GGML_QUANT_SIZES[codes]
        blocks = random.integers(0, 256, (*dimensions[:-1], dimensions[-1] // size, n_bytes), dtype=np.uint8)
        blocks[..., :2] = np.frombuffer(np.float16(0.002).tobytes(), np.uint8)
        writer.add_tensor(name, blocks.reshape(*dimensions[:-1], -1), raw_dtype=codes)
        return
    values = random.standard_normal(dimensions, dtype=np.float32) / np.float32(np.sqrt(dimensions[-1]))
    if codes is None:
        writer.add_tensor(name, values.astype(np.float16))
    else:
        eight_bits = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quantize(values, eight_bits), raw_dtype=eight_bits)


def tensors(writer: gguf.GGUFWriter, shape: Shape, codes: gguf.GGMLQuantizationType | None) -> None:
    random = np.random.default_rng(0)

    def matrix(name: str, *dimensions: int) -> None:
        add_matrix(writer, random, name, dimensions, codes)

    def experts_of(layer: int) -> None:
        router = random.standard_normal((shape.experts, shape.hidden), dtype=np.float32)
        writer.add_tensor(f"blk.{layer}.ffn_gate_inp.weight", router)
        for part in ("gate", "up"):
            matrix(f"blk.{layer}.ffn_{part}_exps.weight", shape.experts, shape.ffn, shape.hidden)
        matrix(f"blk.{layer}.ffn_down_exps.weight", shape.experts, shape.hidden, shape.ffn)
        for part in ("attn_q_norm", "attn_k_norm"):
            writer.add_tensor(f"blk.{layer}.{part}.weight", np.ones(shape.head_dim, dtype=np.float32))

    if shape.architecture == "llama":
        writer.add_tensor("rope_freqs.weight", np.ones(shape.head_dim // 2, dtype=np.float32))
    matrix("token_embd.weight", shape.vocabulary, shape.hidden)
    for layer in range(shape.layers):
        for part, _, rows, columns in shape.linears:
            matrix(f"blk.{layer}.{part}.weight", rows, columns)
            if shape.has_bias and part in BIASED:
                writer.add_tensor(f"blk.{layer}.{part}.bias", np.zeros(rows, dtype=np.float32))
        if shape.experts:
            experts_of(layer)
        for part in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{part}.weight", np.ones(shape.hidden, dtype=np.float32))
    writer.add_tensor("output_norm.weight", np.ones(shape.hidden, dtype=np.float32))


def write_folder(folder: Path, shape: Shape) -> None:
    """The same shape as a Hugging Face checkpoint. Its tokenizer knows 4,096 of the tokens."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return (torch.randn(rows, columns, generator=generator) * columns**-0.5).to(torch.bfloat16)

    ones = torch.ones(shape.hidden, dtype=torch.bfloat16)
    state = {"model.embed_tokens.weight": matrix(shape.vocabulary, shape.hidden), "model.norm.weight": ones}
    for layer in range(shape.layers):
        block = f"model.layers.{layer}"
        for part, name, rows, columns in shape.linears:
            state[f"{block}.{name}.weight"] = matrix(rows, columns)
            if shape.has_bias and part in BIASED:
                state[f"{block}.{name}.bias"] = torch.zeros(rows, dtype=torch.bfloat16)
        for name in ("input_layernorm", "post_attention_layernorm"):
            state[f"{block}.{name}.weight"] = ones.clone()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": [shape.hf_class],
        "model_type": shape.architecture,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(gulliver() / name, folder / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="llama-1b")
    parser.add_argument("--codes", choices=CODES, help="linears of random codes of this type")
    parser.add_argument("--layers", type=int, help="fewer than the model's, to measure what one costs")
    parser.add_argument("--tokenizer", type=Path, help="a GGUF file whose tokenizer the GGUF file gets")
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    if options.layers:
        shape = replace(shape, layers=options.layers)
    if options.output.suffix != ".gguf":
        if options.tokenizer:
            parser.error(f"{options.output}: folders get Gulliver's tokenizer; name a .gguf file")
        if options.codes:
            parser.error(f"{options.output}: folders hold no {options.codes}; name a .gguf file")
        if shape.experts:
            parser.error(f"{options.output}: folders hold no mixtures of experts; name a .gguf file")
        write_folder(options.output, shape)
        return
    writer = gguf.GGUFWriter(options.output, shape.architecture)
    metadata(writer, shape)
    if options.tokenizer:
        add_tokenizer(writer, options.tokenizer, shape.vocabulary)
    else:
        writer.add_tokenizer_model("none")
    tensors(writer, shape, gguf.GGMLQuantizationType[options.codes] if options.codes else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
