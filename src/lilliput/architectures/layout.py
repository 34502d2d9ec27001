# SPDX-License-Identifier: Apache-2.0
"""What the blocks of a decoder family are made of, and the tensor table that follows from it.

A family states a `Layout`: GGUF's names of its parts beside the names that its Hugging Face checkpoint has for them.
Which parts are there says what a block computes (`decoder_program`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from lilliput.architectures.architecture import ModelConfig, TensorEntry
from lilliput.architectures.prediction_heads import head_entries
from lilliput.architectures.program import Activation
from lilliput.architectures.rope_scaling import llama3_factors
from lilliput.architectures.sources import (
    Computed,
    FirstOf,
    InterleavedHeads,
    Named,
    PermutedHeads,
    Rows,
    Shifted,
    Source,
    Stacked,
    Transposed,
)
from lilliput.records import Role

EMBEDDING = "token_embd.weight"
OUTPUT = "output.weight"
RopeStyle = Literal["adjacent", "halves"]

_ATTENTION_INPUTS = ("attn_q", "attn_k", "attn_v", "attn_qkv")
_ROLES: Mapping[str, Role] = {
    "attn_q": Role.ATTENTION_Q,
    "attn_k": Role.ATTENTION_K,
    "attn_v": Role.ATTENTION_V,
    "attn_qkv": Role.ATTENTION_QKV,
    "attn_output": Role.ATTENTION_OUTPUT,
    "ffn_gate": Role.FFN_GATE,
    "ffn_up": Role.FFN_UP,
    "ffn_down": Role.FFN_DOWN,
}


@dataclass(frozen=True, slots=True)
class ExpertNames:
    """What checkpoints call the parts of a mixture of experts, within a block.

    router: module, whatever version wrote it.  gate, up, down: module of one expert, with {} for its number.
    transformers 5 joins them in memory, and may save them so: `experts.gate_up_proj` and `experts.down_proj` of mlp.
    """

    router: tuple[str, ...]
    gate: str
    up: str
    down: str


@dataclass(frozen=True, slots=True)
class Layout:
    """Facts of a decoder family.

    outer: token_embd, position_embd, token_embd_proj, output_norm, output_proj -> module of the checkpoint.
    block: what comes before the modules of a block, with {} for its number.
    parts: in file order, attn_norm, attn_q, attn_k, attn_v or attn_qkv, attn_q_norm, attn_k_norm, attn_output,
    post_attention_norm, ffn_norm, ffn_gate, ffn_up, ffn_down, post_ffw_norm -> module within the block.
    head_names: modules that an output head of its own may be; the first that a checkpoint has.
    optional_prefix: what checkpoints saved without a head leave out of every name.
    experts: names of what takes the place of ffn_gate, ffn_up and ffn_down, which `parts` then lacks.
    norm: root mean square, or mean and variance with weight and bias.  rope: None where positions are learned.
    keeps_pairs: with adjacent rope, rows lie so in the checkpoint too.
    norms_whole_projections: attn_q_norm and attn_k_norm are over all heads together.
    position_offset: row of the first position.  norm_shift: what the checkpoint's norms leave out (1 in Gemma).
    is_transposed: linears lie as [in, out].  interleaves_heads: rows of attn_qkv lie head by head.
    fuses_gate: ffn_up holds the rows of the gate before its own.  embedding_scale: of the tokens' vectors.
    activations: of the ffn, the family's own first.  rotates_whole_heads: no checkpoint rotates a part of each head.
    """

    outer: Mapping[str, str]
    block: str
    parts: Mapping[str, str]
    head_names: tuple[str, ...] = ("lm_head",)
    optional_prefix: str = ""
    experts: ExpertNames | None = None
    norm: Literal["rms", "layer"] = "rms"
    rope: RopeStyle | None = None
    keeps_pairs: bool = False
    norms_whole_projections: bool = False
    position_offset: int = 0
    norm_shift: float = 0.0
    is_transposed: bool = False
    interleaves_heads: bool = False
    fuses_gate: bool = False
    embedding_scale: Literal["none", "root_of_width"] = "none"
    activations: tuple[Activation, ...] = ("silu",)
    rotates_whole_heads: bool = True

    def has(self, part: str) -> bool:
        """Whether blocks have this part."""
        return part in self.parts


# Where Llama and those after it agree.
STANDARD_OUTER: Mapping[str, str] = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
}
STANDARD_PARTS: Mapping[str, str] = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
WITHOUT_FFN: Mapping[str, str] = {
    part: name for part, name in STANDARD_PARTS.items() if part not in ("ffn_gate", "ffn_up", "ffn_down")
}
ADJACENT = Layout(STANDARD_OUTER, "model.layers.{}", STANDARD_PARTS, rope="adjacent")
HALVES = Layout(STANDARD_OUTER, "model.layers.{}", STANDARD_PARTS, rope="halves")


def with_qk_norm(parts: Mapping[str, str]) -> dict[str, str]:
    """The same with a norm over each head of q and k, as Qwen3 and Gemma 3 call them."""
    items = list(parts.items())
    place = 1 + next(index for index, (part, _) in enumerate(items) if part == "attn_v")
    norms = [("attn_q_norm", "self_attn.q_norm"), ("attn_k_norm", "self_attn.k_norm")]
    return dict([*items[:place], *norms, *items[place:]])


def tensor_table(config: ModelConfig, layout: Layout) -> tuple[TensorEntry, ...]:
    """Every tensor in file order. With adjacent rope, q and k rows are permuted from transformers' halves."""
    own = (_with_bare_names(entry, layout.optional_prefix) for entry in _Table(config, layout).entries())
    return (*own, *head_entries(config))


def _with_bare_names(entry: TensorEntry, prefix: str) -> TensorEntry:
    """The same, also found in checkpoints that leave the prefix out."""
    if not prefix or not isinstance(entry.source, Named | Transposed) or not entry.source.name.startswith(prefix):
        return entry
    bare = replace(entry.source, name=entry.source.name.removeprefix(prefix))
    return replace(entry, source=FirstOf((entry.source, bare)))


@dataclass(frozen=True, slots=True)
class _Table:
    config: ModelConfig
    layout: Layout
    widths: Mapping[str, int] = field(init=False)

    def __post_init__(self) -> None:
        config = self.config
        q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
        gates = 2 if self.layout.fuses_gate else 1
        widths = {
            "attn_q": q, "attn_k": kv, "attn_v": kv, "attn_qkv": q + 2 * kv, "attn_output": config.hidden_size,
            "ffn_gate": config.ffn_size, "ffn_up": gates * config.ffn_size, "ffn_down": config.hidden_size,
        }  # fmt: skip
        object.__setattr__(self, "widths", widths)

    def entries(self) -> Iterator[TensorEntry]:
        config, outer = self.config, self.layout.outer
        yield from self._rope_factors()
        table_width = config.embedding_size or config.hidden_size
        vocabulary = (config.vocab_size, table_width)
        yield TensorEntry(EMBEDDING, Named(f"{outer['token_embd']}.weight"), vocabulary, Role.TOKEN_EMBEDDING)
        if "position_embd" in outer:
            rows = config.context_length + self.layout.position_offset
            name = Named(f"{outer['position_embd']}.weight")
            yield TensorEntry("position_embd.weight", name, (rows, config.hidden_size), Role.POSITION_EMBEDDING)
        if table_width != config.hidden_size:
            yield self._projection("token_embd_proj", (config.hidden_size, table_width))
        for layer in range(config.layers):
            for part in self.layout.parts:
                yield from self._part(layer, part)
            if self.layout.experts is not None:
                yield from self._experts(layer, self.layout.experts)
        if config.has_output_norm:
            yield from self._norm("output_norm", outer["output_norm"], config.hidden_size)
        if table_width != config.hidden_size:
            yield self._projection("output_proj", (table_width, config.hidden_size))
        source: Source = Named(f"{outer['token_embd']}.weight")
        source = source if config.tied else self._head("weight")
        tied_to = EMBEDDING if config.tied else None
        yield TensorEntry(OUTPUT, source, vocabulary, Role.OUTPUT, "output", tied_to=tied_to)
        if config.head_bias:
            yield TensorEntry("output.bias", self._head("bias"), (config.vocab_size,), Role.BIAS)

    def _head(self, kind: str) -> Source:
        names = self.layout.head_names
        return Named(f"{names[0]}.{kind}") if len(names) == 1 else FirstOf(tuple(Named(f"{n}.{kind}") for n in names))

    def _rope_factors(self) -> Iterator[TensorEntry]:
        rope = self.config.rope
        if rope.factors is None:
            return
        source: Source = Named(rope.factors)
        if self.config.rope_llama3 is not None:
            source = Computed(llama3_factors(rope.base, rope.rotary_dim, self.config.rope_llama3))
        yield TensorEntry(rope.factors, source, (rope.rotary_dim // 2,), Role.ROPE)

    def _projection(self, name: str, shape: tuple[int, int]) -> TensorEntry:
        return TensorEntry(f"{name}.weight", Named(f"{self.layout.outer[name]}.weight"), shape, Role.OTHER)

    def _part(self, layer: int, part: str) -> Iterator[TensorEntry]:
        name = f"blk.{layer}.{part}"
        theirs = f"{self.layout.block.format(layer)}.{self.layout.parts[part]}"
        if part.endswith("norm"):
            yield from self._norm(name, theirs, self._norm_width(part))
            return
        yield TensorEntry(
            f"{name}.weight",
            self._linear_source(part, f"{theirs}.weight"),
            (self.widths[part], self._columns(part)),
            _ROLES[part],
            input_group=self._input_group(layer, part),
            runtime_group=_runtime_group(layer, part),
        )
        if has_bias(self.config, part):
            source = self._linear_source(part, f"{theirs}.bias")
            source = Named(source.name) if isinstance(source, Transposed) else source
            yield TensorEntry(f"{name}.bias", source, (self.widths[part],), Role.BIAS)

    def _experts(self, layer: int, names: ExpertNames) -> Iterator[TensorEntry]:
        config, ours, theirs = self.config, f"blk.{layer}", self.layout.block.format(layer)
        experts, hidden, ffn = config.experts, config.hidden_size, config.ffn_size
        router = FirstOf(tuple(Named(f"{theirs}.{name}.weight") for name in names.router))
        yield TensorEntry(f"{ours}.ffn_gate_inp.weight", router, (experts, hidden), Role.ROUTER)
        gate_up, down = f"{theirs}.mlp.experts.gate_up_proj", f"{theirs}.mlp.experts.down_proj"
        for part, name, joined, rows, columns in (
            ("ffn_gate", names.gate, Rows(gate_up, 0, ffn, 2 * ffn), ffn, hidden),
            ("ffn_up", names.up, Rows(gate_up, ffn, 2 * ffn, 2 * ffn), ffn, hidden),
            ("ffn_down", names.down, Named(down), hidden, ffn),
        ):
            apart = Stacked(tuple(f"{theirs}.{name.format(expert)}.weight" for expert in range(experts)))
            yield TensorEntry(
                f"{ours}.{part}_exps.weight",
                FirstOf((apart, joined)),
                (experts, rows, columns),
                _ROLES[part],
                input_group=f"{ours}.{'ffn_down_exps' if part == 'ffn_down' else 'ffn_exps'}_input",
            )

    def _norm(self, name: str, theirs: str, width: int) -> Iterator[TensorEntry]:
        shift = self.layout.norm_shift
        source = Shifted(f"{theirs}.weight", shift) if shift else Named(f"{theirs}.weight")
        yield TensorEntry(f"{name}.weight", source, (width,), Role.NORM)
        if self.layout.norm == "layer":
            yield TensorEntry(f"{name}.bias", Named(f"{theirs}.bias"), (width,), Role.BIAS)

    def _norm_width(self, part: str) -> int:
        if part not in ("attn_q_norm", "attn_k_norm"):
            return self.config.hidden_size
        is_whole = self.layout.norms_whole_projections
        return self.widths[part.removesuffix("_norm")] if is_whole else self.config.head_dim

    def _linear_source(self, part: str, theirs: str) -> Named | PermutedHeads | InterleavedHeads | Transposed:
        config, layout = self.config, self.layout
        if layout.rope == "adjacent" and not layout.keeps_pairs and part in ("attn_q", "attn_k"):
            return PermutedHeads(theirs, config.heads if part == "attn_q" else config.kv_heads)
        if layout.interleaves_heads and part == "attn_qkv":
            return InterleavedHeads(theirs, config.heads)
        return Transposed(theirs) if layout.is_transposed else Named(theirs)

    def _columns(self, part: str) -> int:
        if part == "attn_output":
            return self.config.heads * self.config.head_dim
        return self.config.ffn_size if part == "ffn_down" else self.config.hidden_size

    def _input_group(self, layer: int, part: str) -> str:
        block = f"blk.{layer}"
        if part in _ATTENTION_INPUTS:
            return f"{block}.attn_input"
        if part in ("ffn_gate", "ffn_up"):
            # Phi's ffn reads what attention reads.
            shares = self.config.residual == "parallel" and not self.layout.has("ffn_norm")
            return f"{block}.attn_input" if shares else f"{block}.ffn_input"
        return f"{block}.{part}_input"


def has_bias(config: ModelConfig, part: str) -> bool:
    """Whether a linear of a block has a bias."""
    if part in _ATTENTION_INPUTS:
        return config.attention_bias
    return config.output_bias if part == "attn_output" else config.ffn_bias


def _runtime_group(layer: int, part: str) -> str | None:
    if part in ("attn_q", "attn_k", "attn_v"):
        return f"blk.{layer}.qkv"
    return f"blk.{layer}.gate_up" if part in ("ffn_gate", "ffn_up") else None
