# SPDX-License-Identifier: Apache-2.0
"""The forward pass of a decoder, read off its layout and config."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from lilliput.architectures.architecture import ModelConfig
from lilliput.architectures.layout import EMBEDDING, OUTPUT, Layout, has_bias
from lilliput.architectures.program import (
    Activate,
    Add,
    Attention,
    Embed,
    Experts,
    Glu,
    KvState,
    LayerNorm,
    Linear,
    Operation,
    Program,
    RmsNorm,
    Rope,
    Scale,
    SelectOutputRows,
    Softcap,
)


def program(config: ModelConfig, layout: Layout) -> Program:
    """The forward pass. Rows whose logits nobody asked for are dropped once the last attention has seen them all."""
    builder = _Builder(config, layout)
    builder.embed()
    for layer in range(config.layers):
        builder.block(layer)
    builder.head()
    states = tuple(KvState(layer, config.kv_heads, config.head_dim) for layer in range(config.layers))
    return Program(builder.buffers, states, tuple(builder.operations), "logits")


@dataclass(slots=True)
class _Builder:
    """Operations so far, and the width of each buffer that they write."""

    config: ModelConfig
    layout: Layout
    stream: str = "residual"
    buffers: dict[str, int] = field(default_factory=dict)
    operations: list[Operation] = field(default_factory=list)

    def embed(self) -> None:
        """Tokens, and positions where these are learned."""
        config, outer = self.config, self.layout.outer
        is_scaled = self.layout.embedding_scale == "root_of_width"
        scale = math.sqrt(config.hidden_size) if is_scaled else config.embedding_scale
        table_width = config.embedding_size or config.hidden_size
        is_projected = table_width != config.hidden_size
        first = "embedded" if is_projected else "residual"
        self._emit(Embed(first, EMBEDDING, scale), table_width)
        if is_projected:
            self._emit(Linear("residual", first, "token_embd_proj.weight"), config.hidden_size)
        if "position_embd" in outer:
            offset = self.layout.position_offset
            self._emit(Embed("positions", "position_embd.weight", by="position", offset=offset), config.hidden_size)
            self._emit(Add("residual", "residual", "positions"), config.hidden_size)

    def block(self, layer: int) -> None:
        """One block, in the order that the family's residual has."""
        match self.config.residual:
            case "sequential":
                self._attention(layer, self._norm("normed", "residual", layer, "attn_norm"))
                self._add_branch(layer, "attention_output", "post_attention_norm")
                self._ffn(layer, self._norm("normed", self.stream, layer, "ffn_norm"))
                self._add_branch(layer, "ffn_output", "post_ffw_norm")
            case "parallel":
                normed = self._norm("normed", "residual", layer, "attn_norm")
                self._attention(layer, normed)
                if self.layout.has("ffn_norm"):
                    normed = self._norm("ffn_input", self.stream, layer, "ffn_norm")
                elif self._is_last(layer):
                    normed = self._select("selected_normed", normed)
                self._ffn(layer, normed)
                self._add_branch(layer, "attention_output", None)
                self._add_branch(layer, "ffn_output", None)
            case "norm_after":
                self._attention(layer, "residual")
                self._norm_of_sum(layer, "attention_output", "attn_norm")
                self._ffn(layer, self.stream)
                self._norm_of_sum(layer, "ffn_output", "ffn_norm")

    def head(self) -> None:
        """Last norm and logits."""
        config = self.config
        x = self.stream
        if config.has_output_norm:
            x = self._apply_norm("normed", x, "output_norm", config.hidden_size)
        if config.embedding_size not in (None, config.hidden_size):
            self._emit(Linear("projected", x, "output_proj.weight"), config.embedding_size or 0)
            x = "projected"
        weight = EMBEDDING if config.tied else OUTPUT
        self._emit(Linear("logits", x, weight, "output.bias" if config.head_bias else None), config.vocab_size)
        if config.logit_divisor != 1.0:
            self._emit(Scale("logits", "logits", 1.0 / config.logit_divisor), config.vocab_size)
        if config.output_softcap is not None:
            self._emit(Softcap("logits", "logits", config.output_softcap), config.vocab_size)

    def _attention(self, layer: int, x: str) -> None:
        config, layout = self.config, self.layout
        heads = {"q": config.heads, "k": config.kv_heads, "v": config.kv_heads}
        normed_heads = [part for part in ("q", "k") if layout.has(f"attn_{part}_norm")]
        start = 0
        for part, count in heads.items():
            width = count * config.head_dim
            out = f"{part}_projected" if part in normed_heads else part
            if layout.has("attn_qkv"):
                self._linear(out, x, layer, "attn_qkv", rows=(start, start + width))
            else:
                self._linear(out, x, layer, f"attn_{part}", width=width)
            start += width
        for part in ("q", "k"):
            if part in normed_heads:
                self._head_norm(layer, part, heads[part])
            self._rotate(layer, part, heads[part])
        self._emit(self._attend(layer), config.heads * config.head_dim)
        attention = "attention"
        if self._is_last(layer):
            self.stream = self._select("selected", self.stream)
            attention = self._select("selected_attention", attention)
        self._linear("attention_output", attention, layer, "attn_output", width=config.hidden_size)

    def _head_norm(self, layer: int, part: str, heads: int) -> None:
        weight, epsilon = f"blk.{layer}.attn_{part}_norm.weight", self.config.norm_epsilon
        groups = 1 if self.layout.norms_whole_projections else heads
        norm = RmsNorm(part, f"{part}_projected", weight, epsilon, groups=groups)
        self._emit(norm, heads * self.config.head_dim)

    def _rotate(self, layer: int, part: str, heads: int) -> None:
        config, style = self.config, self.layout.rope
        rope = config.window_rope if config.is_windowed(layer) and config.window_rope is not None else config.rope
        if style is None or (config.rope_layers is not None and layer not in config.rope_layers):
            return
        self.operations.append(Rope(part, heads, config.head_dim, rope, style))

    def _attend(self, layer: int) -> Attention:
        config = self.config
        scale = 1.0 / math.sqrt(config.head_dim) if config.attention_scale is None else config.attention_scale
        return Attention(
            out="attention",
            q="q",
            k="k",
            v="v",
            layer=layer,
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            scale=scale / (layer + 1) if config.divides_scores_by_layer else scale,
            window=config.sliding_window if config.is_windowed(layer) else None,
            softcap=config.attention_softcap,
        )

    def _ffn(self, layer: int, x: str) -> None:
        config, layout, ffn = self.config, self.layout, self.config.ffn_size
        if layout.experts is not None:
            self._experts(layer, x)
            return
        if layout.fuses_gate:
            self._linear("gate", x, layer, "ffn_up", rows=(0, ffn))
            self._linear("up", x, layer, "ffn_up", rows=(ffn, 2 * ffn))
        else:
            if layout.has("ffn_gate"):
                self._linear("gate", x, layer, "ffn_gate", width=ffn)
            self._linear("up", x, layer, "ffn_up", width=ffn)
        if "gate" in self.buffers:
            self._emit(Glu("activated", "gate", "up", config.activation), ffn)
        else:
            self._emit(Activate("activated", "up", config.activation), ffn)
        self._linear("ffn_output", "activated", layer, "ffn_down", width=config.hidden_size)

    def _experts(self, layer: int, x: str) -> None:
        config, block = self.config, f"blk.{layer}"
        self._emit(Linear("router", x, f"{block}.ffn_gate_inp.weight"), config.experts)
        gate, up, down = (f"{block}.ffn_{part}_exps.weight" for part in ("gate", "up", "down"))
        mixture = Experts(
            out="ffn_output",
            x=x,
            router="router",
            gate=gate,
            up=up,
            down=down,
            activation=config.activation,
            used=config.used_experts,
            normalizes=config.normalizes_experts,
        )
        self._emit(mixture, config.hidden_size)

    def _linear(
        self, out: str, x: str, layer: int, part: str, *, width: int = 0, rows: tuple[int, int] | None = None
    ) -> None:
        name = f"blk.{layer}.{part}"
        bias = f"{name}.bias" if has_bias(self.config, part) else None
        self._emit(Linear(out, x, f"{name}.weight", bias, rows), width if rows is None else rows[1] - rows[0])

    def _norm(self, out: str, x: str, layer: int, part: str) -> str:
        """The buffer that holds x after this norm; x itself where the family has none."""
        if not self.layout.has(part):
            return x
        return self._apply_norm(out, x, f"blk.{layer}.{part}", self.config.hidden_size)

    def _apply_norm(self, out: str, x: str, name: str, width: int) -> str:
        weight, epsilon = f"{name}.weight", self.config.norm_epsilon
        if self.layout.norm == "rms":
            self._emit(RmsNorm(out, x, weight, epsilon), width)
        else:
            self._emit(LayerNorm(out, x, weight, f"{name}.bias", epsilon), width)
        return out

    def _norm_of_sum(self, layer: int, branch: str, part: str) -> None:
        self._emit(Add("sum", self.stream, branch), self.config.hidden_size)
        self._norm(self.stream, "sum", layer, part)

    def _add_branch(self, layer: int, branch: str, post_norm: str | None) -> None:
        """Add what a branch gives to the stream, through its own norm where the family has one."""
        if post_norm is not None and self.layout.has(post_norm):
            branch = self._norm(f"{branch}_normed", branch, layer, post_norm)
        if self.config.branch_scale != 1.0:
            self._emit(Scale(branch, branch, self.config.branch_scale), self.config.hidden_size)
        self._emit(Add(self.stream, self.stream, branch), self.config.hidden_size)

    def _is_last(self, layer: int) -> bool:
        return layer == self.config.layers - 1

    def _select(self, out: str, x: str) -> str:
        self._emit(SelectOutputRows(out, x), self.buffers[x])
        return out

    def _emit(self, operation: Operation, width: int) -> None:
        out = getattr(operation, "out", None)
        assert isinstance(out, str), operation
        assert self.buffers.get(out, width) == width, operation
        self.buffers[out] = width
        self.operations.append(operation)
