# SPDX-License-Identifier: Apache-2.0
"""A Program, or a stretch of one, as a differentiable torch module.

What each operation means is `architectures.program`'s word; that a family's program is its model is proven elsewhere,
against the model's own code. Buffers are [batch, tokens, width], sequences start at position 0.
Importing this file imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn import functional

from lilliput.architectures.program import (
    Activate,
    Activation,
    Add,
    Attention,
    CrossAttention,
    Embed,
    Experts,
    Glu,
    LayerNorm,
    Linear,
    Operation,
    RelativeBias,
    RmsNorm,
    Rope,
    RopeFrequencies,
    Scale,
    SelectOutputRows,
    Share,
    Softcap,
)
from lilliput.architectures.program_blocks import named_tensors
from lilliput.architectures.relative_bias import distance_buckets
from lilliput.architectures.rope_frequencies import inverse_frequencies
from lilliput.arrays import FloatArray
from lilliput.errors import CalibrationError

_ACTIVATIONS: Mapping[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
    "tanh": torch.tanh,
}


@dataclass(frozen=True, slots=True)
class LinearRun:
    """Linears that read rows of one weight and one buffer: the product is computed once and cut."""

    x: str
    weight: str
    bias: str | None
    parts: tuple[tuple[str, tuple[int, int] | None], ...]


class WeightHolder(torch.nn.Module):
    """One weight, and the bias beside it. Called with x it is a linear layer, so that hooks see inputs and outputs.

    A stack of matrices is called with the number of one as well, for each in turn.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.weight: torch.Tensor
        self.bias: torch.Tensor | None
        for kind in ("weight", "bias"):
            empty = torch.empty(shapes[kind], device="meta") if kind in shapes else None
            self.register_parameter(kind, None if empty is None else torch.nn.Parameter(empty))

    def forward(self, x: torch.Tensor, expert: int | None = None) -> torch.Tensor:
        """The product x @ weight.T + bias."""
        return functional.linear(x, self.weight if expert is None else self.weight[expert], self.bias)


class ProgramModule(torch.nn.Module):
    """A stretch of a program between two places where one buffer is alive.

    Parameters are on the meta device until loaded; they are called as in the file, without `prefix`.
    """

    def __init__(
        self,
        operations: Sequence[Operation],
        shapes: Mapping[str, tuple[int, ...]],
        *,
        prefix: str,
        buffers: tuple[str, str],
    ) -> None:
        """shapes: of every tensor that the operations name.  buffers: alive before, and after."""
        super().__init__()
        self._steps = tuple(joined(operations))
        self._prefix = prefix
        self._first, self._last = buffers
        held: dict[str, dict[str, tuple[int, ...]]] = {}
        for name in named_tensors(operations):
            module, _, kind = name.removeprefix(prefix).rpartition(".")
            held.setdefault(module, {})[kind] = shapes[name]
        for module, kinds in held.items():
            self.add_module(module, WeightHolder(kinds))

    def forward(self, hidden: torch.Tensor, *, rotations: Rotations | None = None) -> torch.Tensor:
        """[batch, tokens, width] -> the same of the buffer that is alive at the end."""
        run = ProgramRun(self._value, self._linear, rotations or {}, expert=self._expert)
        buffers = {self._first: hidden}
        for step in self._steps:
            run.step(step, buffers)
        return buffers[self._last]

    def _holder(self, name: str) -> tuple[torch.nn.Module, str]:
        module, _, kind = name.removeprefix(self._prefix).rpartition(".")
        return self.get_submodule(module), kind

    def _value(self, name: str) -> torch.Tensor:
        holder, kind = self._holder(name)
        value: torch.Tensor = getattr(holder, kind)
        return value

    def _linear(self, run: LinearRun, x: torch.Tensor) -> torch.Tensor:
        holder, _ = self._holder(run.weight)
        output: torch.Tensor = holder(x)
        return output

    def _expert(self, name: str, expert: int, x: torch.Tensor) -> torch.Tensor:
        holder, _ = self._holder(name)
        output: torch.Tensor = holder(x, expert)
        return output


# Cosines and sines [tokens, rotary_dim / 2] by what they belong to.
Rotations = Mapping[RopeFrequencies, tuple[torch.Tensor, torch.Tensor]]


def rotations(
    operations: Iterable[Operation], tokens: int, factors: Callable[[str], FloatArray], device: torch.device
) -> Rotations:
    """Angles of all ropes of a program.  factors: reads the divisors of frequencies that some ropes name."""
    found: dict[RopeFrequencies, tuple[torch.Tensor, torch.Tensor]] = {}
    for operation in operations:
        if isinstance(operation, Rope) and operation.frequencies not in found:
            rope = operation.frequencies
            inverse, magnitude = inverse_frequencies(rope, None if rope.factors is None else factors(rope.factors))
            angles = torch.arange(tokens, dtype=torch.float64)[:, None] * torch.from_numpy(inverse)
            cosine, sine = (magnitude * angles.cos()).float(), (magnitude * angles.sin()).float()
            found[rope] = cosine.to(device), sine.to(device)
    return found


def _no_experts(name: str, _expert: int, _x: torch.Tensor) -> torch.Tensor:
    raise CalibrationError(f"{name}: calibration has no experts in this part of a model")


@dataclass(frozen=True, slots=True)
class ProgramRun:
    """How operations get at numbers.

    value: a tensor by name.  linear: x times a weight, with the bias.  expert: x times one matrix of a stack.
    shared: keys and values that an encoder's program leaves to its decoder's.
    """

    value: Callable[[str], torch.Tensor]
    linear: Callable[[LinearRun, torch.Tensor], torch.Tensor]
    rotations: Rotations
    shared: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    expert: Callable[[str, int, torch.Tensor], torch.Tensor] = _no_experts

    def step(self, step: Operation | LinearRun, buffers: dict[str, torch.Tensor]) -> None:
        """Run one step on the buffers."""
        match step:
            case LinearRun():
                output = self.linear(step, buffers[step.x])
                for out, rows in step.parts:
                    buffers[out] = output if rows is None else output[..., rows[0] : rows[1]]
            case RmsNorm(out, x, weight, epsilon, groups):
                buffers[out] = _rms_norm(buffers[x], self.value(weight), epsilon, groups)
            case LayerNorm(out, x, weight, bias, epsilon):
                shift = None if bias is None else self.value(bias)
                width = buffers[x].shape[-1:]
                buffers[out] = functional.layer_norm(buffers[x].float(), width, self.value(weight), shift, epsilon)
            case Rope(x):
                buffers[x] = _rotated(step, buffers[x], *self.rotations[step.frequencies])
            case Attention(out, q, k, v):
                table = None if step.bias is None else self.value(step.bias.weight)
                buffers[out] = _attended(step, buffers[q], buffers[k], buffers[v], table)
            case Share(k, v, layer):
                self.shared[layer] = buffers[k], buffers[v]
            case CrossAttention(out, q, layer):
                buffers[out] = _attended_across(step, buffers[q], *self.shared[layer])
            case Experts():
                buffers[step.out] = self._mixture(step, buffers[step.x], buffers[step.router])
            case SelectOutputRows(out, x):
                buffers[out] = buffers[x]
            case Embed() | Linear():
                raise CalibrationError(f"calibration has no operation for {type(step).__name__}")
            case _:
                buffers[step.out] = _elementwise(step, buffers)

    def _mixture(self, operation: Experts, x: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Each expert on the tokens that chose it, in the order of the experts."""
        rows = x.reshape(-1, x.shape[-1]).float()
        shares = logits.reshape(len(rows), -1).float().softmax(-1)
        # Sorted stably, so that the lower expert of equal ones comes first.
        chosen = torch.sort(shares, dim=-1, descending=True, stable=True)[1][:, : operation.used]
        share = shares.gather(-1, chosen)
        if operation.normalizes:
            share = share / share.sum(-1, keepdim=True)
        total = torch.zeros_like(rows)
        for expert in range(shares.shape[-1]):
            tokens, rank = torch.where(chosen == expert)
            inputs = rows[tokens]
            gate = self.expert(operation.gate, expert, inputs)
            inner = _ACTIVATIONS[operation.activation](gate) * self.expert(operation.up, expert, inputs)
            output = self.expert(operation.down, expert, inner)
            total = total.index_add(0, tokens, output.to(total.dtype) * share[tokens, rank, None])
        return total.reshape(x.shape)


def embedded(operation: Embed, table: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """What an Embed gives for [batch, tokens] ids."""
    rows = {
        "token": tokens,
        "position": torch.arange(tokens.shape[-1], device=tokens.device).expand_as(tokens) + operation.offset,
        "segment": torch.zeros_like(tokens),
    }[operation.by]
    return functional.embedding(rows, table) * operation.scale


def joined(operations: Sequence[Operation]) -> Iterable[Operation | LinearRun]:
    """Every linear as a LinearRun; neighbours that read rows of one weight and one buffer as a single one."""
    pending: list[Linear] = []

    def run() -> Iterable[LinearRun]:
        if pending:
            first = pending[0]
            yield LinearRun(first.x, first.weight, first.bias, tuple((each.out, each.rows) for each in pending))
            pending.clear()

    for operation in operations:
        if not isinstance(operation, Linear):
            yield from run()
            yield operation
            continue
        if pending and (operation.weight, operation.x) != (pending[0].weight, pending[0].x):
            yield from run()
        pending.append(operation)
    yield from run()


def _rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float, groups: int) -> torch.Tensor:
    parts = x.float().reshape(*x.shape[:-1], groups, -1)
    normed = parts * torch.rsqrt(parts.square().mean(-1, keepdim=True) + epsilon)
    return (normed * weight).reshape(x.shape)


def _rotated(operation: Rope, x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    heads = x.reshape(*x.shape[:-1], operation.heads, operation.head_dim)
    rotary = 2 * cosine.shape[-1]
    cosine, sine = cosine[:, None], sine[:, None]
    moving, still = heads[..., :rotary], heads[..., rotary:]
    if operation.style == "adjacent":
        a, b = moving[..., 0::2], moving[..., 1::2]
        turned = torch.stack((a * cosine - b * sine, a * sine + b * cosine), -1).flatten(-2)
    else:
        a, b = moving.chunk(2, -1)
        turned = torch.cat((a * cosine - b * sine, a * sine + b * cosine), -1)
    return torch.cat((turned, still.to(turned.dtype)), -1).reshape(x.shape)


def _heads(operation: Attention | CrossAttention, x: torch.Tensor, count: int) -> torch.Tensor:
    """[batch, heads, tokens, head_dim], each of `count` heads as often as queries share it."""
    split = x.reshape(*x.shape[:-1], count, -1).transpose(-2, -3)
    return split.repeat_interleave(operation.heads // count, -3)


def _attended_across(operation: CrossAttention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    key, value = _heads(operation, k, operation.kv_heads), _heads(operation, v, operation.kv_heads)
    query = _heads(operation, q, operation.heads)
    result = functional.scaled_dot_product_attention(query, key, value, scale=operation.scale)
    return result.transpose(-2, -3).reshape(*q.shape[:-1], -1)


def _attended(
    operation: Attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, table: torch.Tensor | None
) -> torch.Tensor:
    """table: [buckets, heads] of a relative bias."""
    query = _heads(operation, q, operation.heads)
    key, value = _heads(operation, k, operation.kv_heads), _heads(operation, v, operation.kv_heads)
    query, key = query.to(value.dtype), key.to(value.dtype)
    mask = None if operation.window is None else _visible(operation, q.shape[-2], q.device)
    if table is not None and operation.bias is not None:
        mask = biases(operation, operation.bias, table, q.shape[-2]).to(value.dtype)
    if operation.softcap is None:
        is_causal = operation.causal and mask is None
        result = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=is_causal, scale=operation.scale
        )
    else:
        mask = _visible(operation, q.shape[-2], q.device)
        scores = operation.softcap * torch.tanh(query @ key.mT * (operation.scale / operation.softcap))
        result = scores.float().masked_fill(~mask, -torch.inf).softmax(-1).to(value.dtype) @ value
    return result.transpose(-2, -3).reshape(*q.shape[:-1], -1)


def scores(operation: Attention, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Q k^T of each head, [batch, heads, tokens, tokens]; neither scaled nor masked."""
    return _heads(operation, q, operation.heads) @ _heads(operation, k, operation.kv_heads).mT


def activated(activation: Activation, x: torch.Tensor) -> torch.Tensor:
    """An activation by its name."""
    return _ACTIVATIONS[activation](x)


def biases(operation: Attention, bias: RelativeBias, table: torch.Tensor, tokens: int) -> torch.Tensor:
    """[heads, tokens, tokens] to add to scores; minus infinity where a token does not see another."""
    place = np.arange(tokens, dtype=np.int32)
    buckets = torch.from_numpy(distance_buckets(bias, place[None, :] - place[:, None])).long()
    found = table[buckets.to(table.device)].permute(2, 0, 1).float()
    return found.masked_fill(~_visible(operation, tokens, table.device), -torch.inf)


def _visible(operation: Attention, tokens: int, device: torch.device) -> torch.Tensor:
    """[tokens, tokens], true where a token sees another."""
    place = torch.arange(tokens, device=device)
    age = place[:, None] - place[None, :]
    seen = age < (tokens if operation.window is None else operation.window)
    return seen & (age >= 0) if operation.causal else seen


def _elementwise(operation: Operation, buffers: Mapping[str, torch.Tensor]) -> torch.Tensor:
    match operation:
        case Glu(_, gate, up, activation):
            return _ACTIVATIONS[activation](buffers[gate]) * buffers[up]
        case Activate(_, x, activation):
            return _ACTIVATIONS[activation](buffers[x])
        case Scale(_, x, factor):
            return buffers[x] * factor
        case Softcap(_, x, limit):
            return limit * torch.tanh(buffers[x] / limit)
        case Add(_, a, b):
            return buffers[a] + buffers[b]
    raise CalibrationError(f"calibration has no operation for {type(operation).__name__}")
