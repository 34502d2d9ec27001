# SPDX-License-Identifier: Apache-2.0
"""T5 and BART of transformers as two ONNX graphs: the encoder, and one step of the decoder.

    encoder.onnx   ids [1, tokens] -> cross_k{i}, cross_v{i} [1, heads, tokens, head_dim] of every decoder block
    decoder.onnx   token [1, 1], position [1], cross_*, past_{k,v}{i} [1, heads, past, head_dim]
                   -> logits [1, 1, vocabulary], present_{k,v}{i}

So what cross attention reads is computed once a text, and each step computes one token.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BartForConditionalGeneration, T5ForConditionalGeneration

Model = BartForConditionalGeneration | T5ForConditionalGeneration


def heads_of(x: Tensor, heads: int) -> Tensor:
    """[1, tokens, heads * head_dim] -> [1, heads, tokens, head_dim]."""
    return x.view(1, -1, heads, x.shape[2] // heads).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Softmax attention of scaled queries; heads side by side again."""
    scores = q @ k.transpose(2, 3)
    weights = torch.softmax(scores if bias is None else scores + bias, -1)
    return (weights @ v).transpose(1, 2).reshape(1, -1, q.shape[1] * q.shape[3])


class Encoder(nn.Module):
    """The encoder, and keys and values of it for each block of the decoder."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.encoder = model.get_encoder()
        self.is_t5 = isinstance(model, T5ForConditionalGeneration)
        self.heads = model.config.num_heads if self.is_t5 else model.config.decoder_attention_heads
        blocks = model.decoder.block if self.is_t5 else model.model.decoder.layers
        readers = [block.layer[1].EncDecAttention if self.is_t5 else block.encoder_attn for block in blocks]
        names = ("k", "v") if self.is_t5 else ("k_proj", "v_proj")
        self.parts = nn.ModuleList([getattr(reader, name) for reader in readers for name in names])

    def forward(self, ids: Tensor) -> tuple[Tensor, ...]:
        """Keys and values, block by block."""
        hidden = self.encoder(input_ids=ids).last_hidden_state
        return tuple(heads_of(part(hidden), self.heads) for part in self.parts)


class BartStep(nn.Module):
    """One token of BART's decoder."""

    def __init__(self, model: BartForConditionalGeneration) -> None:
        super().__init__()
        self.model = model.model.decoder
        self.head, self.bias = model.lm_head, model.final_logits_bias
        self.heads = model.config.decoder_attention_heads
        self.scale = (model.config.d_model // self.heads) ** -0.5
        self.embedding_scale = model.config.d_model**0.5 if model.config.scale_embedding else 1.0

    def forward(self, token: Tensor, position: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """Logits, then keys and values with the token's own."""
        model = self.model
        x = model.embed_tokens.weight[token] * self.embedding_scale + model.embed_positions.weight[position + 2]
        x = model.layernorm_embedding(x)
        cross, past = states[: len(states) // 2], states[len(states) // 2 :]
        present = []
        for i, block in enumerate(model.layers):
            own, other = block.self_attn, block.encoder_attn
            k = torch.cat([past[2 * i], heads_of(own.k_proj(x), self.heads)], 2)
            v = torch.cat([past[2 * i + 1], heads_of(own.v_proj(x), self.heads)], 2)
            present += [k, v]
            q = heads_of(own.q_proj(x) * self.scale, self.heads)
            x = block.self_attn_layer_norm(x + own.out_proj(attend(q, k, v)))
            q = heads_of(other.q_proj(x) * self.scale, self.heads)
            found = other.out_proj(attend(q, cross[2 * i], cross[2 * i + 1]))
            x = block.encoder_attn_layer_norm(x + found)
            x = block.final_layer_norm(x + block.fc2(nn.functional.gelu(block.fc1(x))))
        return (self.head(x) + self.bias, *present)


class T5Step(nn.Module):
    """One token of T5's decoder. Biases by distance are a table, so that a step only looks them up."""

    def __init__(self, model: T5ForConditionalGeneration, longest: int = 512) -> None:
        super().__init__()
        self.model, self.head = model.decoder, model.lm_head
        self.heads = model.config.num_heads
        self.scale = model.config.d_model**-0.5 if model.config.tie_word_embeddings else 1.0
        attention = model.decoder.block[0].layer[0].SelfAttention
        with torch.no_grad():
            # [heads, distance back]
            last = attention.compute_bias(longest, longest)[0, :, -1].flip(-1)
        self.register_buffer("by_distance", last.contiguous())

    def forward(self, token: Tensor, position: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """Logits, then keys and values with the token's own."""
        x = self.model.embed_tokens.weight[token]
        cross, past = states[: len(states) // 2], states[len(states) // 2 :]
        bias = self.by_distance[:, position - torch.arange(past[0].shape[2] + 1)][None, :, None]
        present = []
        for i, block in enumerate(self.model.block):
            own, other = block.layer[0].SelfAttention, block.layer[1].EncDecAttention
            normed = block.layer[0].layer_norm(x)
            k = torch.cat([past[2 * i], heads_of(own.k(normed), self.heads)], 2)
            v = torch.cat([past[2 * i + 1], heads_of(own.v(normed), self.heads)], 2)
            present += [k, v]
            x = x + own.o(attend(heads_of(own.q(normed), self.heads), k, v, bias))
            q = heads_of(other.q(block.layer[1].layer_norm(x)), self.heads)
            x = x + other.o(attend(q, cross[2 * i], cross[2 * i + 1]))
            x = x + block.layer[2].DenseReluDense(block.layer[2].layer_norm(x))
        return (self.head(self.model.final_layer_norm(x) * self.scale), *present)


def export(model: Model, folder: Path, tokens: int) -> None:
    """Write both graphs; the text's length is fixed, the answer's is free."""
    is_t5 = isinstance(model, T5ForConditionalGeneration)
    step = T5Step(model) if is_t5 else BartStep(model)
    blocks = len(model.decoder.block) if is_t5 else len(model.model.decoder.layers)
    ids = torch.zeros((1, tokens), dtype=torch.int64)
    encoder = Encoder(model)
    _check(model, step, encoder)
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        cross = encoder(ids)
    cross = tuple(part.clone() for part in cross)
    memory = _names("cross", blocks)
    _export(encoder, (ids,), folder / "encoder.onnx", ["ids"], memory)
    past = tuple(part[:, :, :3].contiguous() for part in cross)
    pasts = _names("past", blocks)
    inputs = (torch.zeros((1, 1), dtype=torch.int64), torch.tensor([3]), *cross, *past)
    results = ["logits", *_names("present", blocks)]
    _export(step, inputs, folder / "decoder.onnx", ["token", "position", *memory, *pasts], results, free=pasts)


def _names(kind: str, blocks: int) -> list[str]:
    return [f"{kind}_{part}{block}" for block, part in product(range(blocks), "kv")]


def _export(
    module: nn.Module, inputs: Sequence[Tensor], path: Path, names: list[str], results: list[str],
    free: Sequence[str] = (),
) -> None:  # fmt: skip
    axes = {name: {2: "past"} for name in free}
    torch.onnx.export(
        module, tuple(inputs), str(path), input_names=names, output_names=results, dynamic_axes=axes, dynamo=False,
        opset_version=17,
    )  # fmt: skip


def _check(model: Model, step: nn.Module, encoder: nn.Module) -> None:
    """Three steps give transformers' logits: float32 sums in another order, of values near 1."""
    ids = torch.arange(5, 21)[None]
    tokens = torch.tensor([[0, 7, 9]])
    with torch.inference_mode():
        theirs = model(input_ids=ids, decoder_input_ids=tokens).logits.numpy()
        cross = encoder(ids)
        past = tuple(part[:, :, :0] for part in cross)
        for position in range(3):
            logits, *past = step(tokens[:, position : position + 1], torch.tensor([position]), *cross, *past)
            assert np.allclose(logits.numpy()[0, 0], theirs[0, position], atol=1e-3 * np.abs(theirs).max())
