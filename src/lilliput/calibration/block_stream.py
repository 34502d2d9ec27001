# SPDX-License-Identifier: Apache-2.0
"""A model's Program in torch with one block in memory at a time.

A block's tensors are read from the source (any container), used, and dropped again: its module is built on torch's
meta device, which holds shapes and no numbers. torch is imported on first use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

import numpy as np

from lilliput.architectures.architecture import TensorEntry
from lilliput.architectures.program import Embed
from lilliput.architectures.program_blocks import Stretch, program_blocks
from lilliput.arrays import FloatArray, IntArray
from lilliput.calibration.expert_inputs import of_expert
from lilliput.checkpoints.model_source import ModelSource
from lilliput.errors import CalibrationError
from lilliput.records import QuantizedTensor, Role

if TYPE_CHECKING:
    import torch

    from lilliput.calibration.torch_program import LinearRun, ProgramModule, Rotations

Sums = TypeVar("Sums")
# What products inside a block are computed in. bfloat16 takes less than half the time where the processor has it.
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True)
class Watched(Generic[Sums]):
    """Linears that share an input, and the sums of it.  expert: of stacks, whose inputs these are; None for all."""

    entries: tuple[TensorEntry, ...]
    sums: Sums
    expert: int | None = None


def require_torch() -> None:
    """Raise CalibrationError that says what to install where torch is missing."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise CalibrationError(
            f"calibration runs the model with PyTorch, and {error.name} is not installed; "
            "install it with: pip install torch transformers sentencepiece, or give ready statistics (--statistics, "
            "--imatrix)"
        ) from error


class BlockStream:
    """Embedding, blocks and final norm of one model, each readable on its own. Everything is float32.

    source: where tensors come from, by canonical name.  device: a torch device, such as "cpu" or "cuda".
    precision: of `forward`; states between blocks are float32 all the same.
    Raises CalibrationError where torch is missing.
    """

    def __init__(self, source: ModelSource, device: str = "cpu", precision: Precision = "float32") -> None:
        require_torch()
        self.source = source
        self.device = _usable_device(device)
        self._is_short = precision == "bfloat16"
        table = source.architecture.tensor_table(source.config)
        self._table = {entry.name: entry for entry in table if entry.tied_to is None and entry.name in source.headers}
        self._program = source.architecture.program(source.config)
        self._cut = program_blocks(self._program)
        self._blocks = [self._module(part, f"blk.{layer}.") for layer, part in enumerate(self._cut.blocks)]
        self._last = self._module(self._cut.last, "")

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return len(self._blocks)

    def materialized_bytes(self) -> int:
        """Bytes of all parameters that are in memory now."""
        modules = (*self._blocks, self._last)
        return sum(p.nelement() * p.element_size() for m in modules for p in m.parameters() if not p.is_meta)

    def block_bytes(self) -> int:
        """Bytes of the largest block, in float32."""
        return max(sum(p.nelement() * p.element_size() for p in block.parameters()) for block in self._blocks)

    @property
    def embedding(self) -> str:
        """Canonical name of the token embedding."""
        return next(entry.name for entry in self._table.values() if entry.role is Role.TOKEN_EMBEDDING)

    @property
    def output_names(self) -> list[str]:
        """Canonical names of the output head, and of the embedding where that serves as one."""
        entries = self.source.architecture.tensor_table(self.source.config)
        heads = [entry for entry in entries if entry.role is Role.OUTPUT]
        return [name for entry in heads for name in (entry.name, entry.tied_to) if name is not None]

    def embed(self, tokens: IntArray, table: QuantizedTensor | None = None) -> torch.Tensor:
        """[n] token ids of one sequence -> the stream before the first block, [n, hidden_size] on the CPU.

        The token embedding is read row by row: it is never whole in memory.
        table: the embedding to use instead of the source's.  Raises CalibrationError for an id outside the vocabulary.
        """
        import torch

        vocab_size = self.source.config.vocab_size
        if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab_size:
            raise CalibrationError(
                f"tokenizer: gave token id {int(tokens.max())}, but the embedding has {vocab_size} rows; "
                "the tokenizer does not belong to this model"
            )
        distinct, places = np.unique(tokens, return_inverse=True)
        rows = torch.from_numpy(_dequantized_rows(table or self.source.tensor(self.embedding), distinct))

        def value(name: str) -> torch.Tensor:
            return rows if name == self.embedding else self._tensor(name)

        with torch.no_grad():
            return self._embedded(torch.from_numpy(places.astype(np.int64)).reshape(1, -1), value)[0]

    @contextmanager
    def block(self, layer: int) -> Iterator[ProgramModule]:
        """The block with its numbers; they are dropped at the end of the `with`."""
        with self._loaded(f"blk.{layer}.", self._blocks[layer]) as module:
            yield module

    @contextmanager
    def final_norm(self) -> Iterator[ProgramModule]:
        """What is between the last block and the output head."""
        with self._loaded("", self._last) as module:
            yield module

    def linears(self, layer: int) -> Mapping[str, tuple[TensorEntry, ...]]:
        """Name of a linear inside the block -> all entries that read its input; one name per distinct input."""
        prefix = f"blk.{layer}."
        groups: dict[str, list[TensorEntry]] = {}
        for name, entry in self._table.items():
            if name.startswith(prefix) and entry.input_group is not None:
                groups.setdefault(entry.input_group, []).append(entry)
        return {self.module_name(layer, members[0].name): tuple(members) for members in groups.values()}

    @contextmanager
    def watching(
        self,
        block: torch.nn.Module,
        layer: int,
        sums_of: Callable[[str], Sums],
        see: Callable[[Sums, torch.Tensor], None],
        *,
        by_expert: bool = False,
    ) -> Iterator[list[Watched[Sums]]]:
        """Inside the `with`, `see(sums, inputs)` for what enters each group of linears that share an input.

        sums_of: makes the sums of a group, given the name of its first tensor.  inputs: [tokens, width].
        by_expert: each expert of a stack has sums of its own, in order; otherwise its experts are seen as one.
        """
        groups: list[Watched[Sums]] = []
        handles = []
        for module_name, entries in self.linears(layer).items():
            experts = entries[0].shape[0] if len(entries[0].shape) > 2 else None
            module = block.get_submodule(module_name)
            if experts is not None and by_expert:
                each = [sums_of(of_expert(entries[0].name, expert)) for expert in range(experts)]
                groups.extend(Watched(entries, sums, expert) for expert, sums in enumerate(each))
                handles.append(module.register_forward_pre_hook(_seeing_each(each, see)))
                continue
            sums = sums_of(entries[0].name)
            groups.append(Watched(entries, sums))
            hook = _seeing(sums, see) if experts is None else _seeing_all(sums, see, experts)
            handles.append(module.register_forward_pre_hook(hook))
        try:
            yield groups
        finally:
            for handle in handles:
                handle.remove()

    def forward(
        self, block: torch.nn.Module, layer: int, chunk: int, hidden: torch.Tensor, arguments: Mapping[str, object]
    ) -> torch.Tensor:
        """One chunk [tokens, hidden_size] through a block, on the CPU again.

        Raises CalibrationError for NaN or Inf, naming block and chunk.
        """
        import torch

        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._is_short):
            states: torch.Tensor = block(hidden[None].to(self.device), **arguments)
        if not bool(states.isfinite().all()):
            raise CalibrationError(
                f"blk.{layer}: its output holds NaN or Inf in chunk {chunk}; "
                "the model overflows on this text, or its weights are damaged"
            )
        return states[0].float().cpu()

    def replace(self, block: torch.nn.Module, layer: int, tensor: QuantizedTensor) -> None:
        """Give a loaded block the values of `tensor` in place of its own, until it is dropped."""
        import torch

        values = torch.from_numpy(_writeable(tensor.dequantize())).to(self.device)
        block.load_state_dict({self.name_in_block(layer, tensor.name): values}, strict=False, assign=True)

    def name_in_block(self, layer: int, name: str) -> str:
        """What a block's module calls a tensor: `blk.0.ffn_up.weight` -> `ffn_up.weight`."""
        return name.removeprefix(f"blk.{layer}.")

    def module_name(self, layer: int, name: str) -> str:
        """The linear inside a block's module that has this weight."""
        return self.name_in_block(layer, name).removesuffix(".weight")

    def all_values(self) -> dict[str, torch.Tensor]:
        """Every tensor whole, float32, by canonical name: for training."""
        return {name: self._tensor(name) for name in self._table}

    def has(self, name: str) -> bool:
        """Whether the model has a tensor of this name."""
        return name in self._table

    def logits(self, tokens: torch.Tensor, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """[batch, length] token ids -> [batch, length, vocab_size] of the whole model with `tensors` for its own.

        tensors: canonical name -> float32, as `all_values` gives them; differentiable.
        """
        from torch.nn import functional

        from lilliput.calibration import torch_program

        def linear(run: LinearRun, x: torch.Tensor) -> torch.Tensor:
            return functional.linear(x, tensors[run.weight], None if run.bias is None else tensors[run.bias])

        def expert(name: str, number: int, x: torch.Tensor) -> torch.Tensor:
            return functional.linear(x, tensors[name].reshape(self._table[name].shape)[number])

        run = torch_program.ProgramRun(tensors.__getitem__, linear, self._rotations(tokens.shape[1]), expert=expert)
        buffers = {self._cut.stream: self._embedded(tokens, tensors.__getitem__)}
        after = (operation for part in (*self._cut.blocks, self._cut.last) for operation in part.operations)
        for step in torch_program.joined([*after, *self._cut.head]):
            run.step(step, buffers)
        return buffers[self._program.output]

    def block_arguments(self, length: int) -> list[dict[str, object]]:
        """What each block is called with beside hidden states, for one sequence of `length` tokens."""
        return [{"rotations": self._rotations(length)}] * self.layers

    def _rotations(self, length: int) -> Rotations:
        from lilliput.calibration import torch_program

        operations = (operation for part in self._cut.blocks for operation in part.operations)
        return torch_program.rotations(
            operations, length, lambda name: self.source.tensor(name).dequantize().reshape(-1), self.device
        )

    def _module(self, part: Stretch, prefix: str) -> ProgramModule:
        from lilliput.calibration import torch_program

        shapes = {name: entry.shape for name, entry in self._table.items()}
        return torch_program.ProgramModule(part.operations, shapes, prefix=prefix, buffers=(part.reads, part.gives))

    def _embedded(self, tokens: torch.Tensor, value: Callable[[str], torch.Tensor]) -> torch.Tensor:
        """The stream before the first block, [batch, tokens, hidden_size]."""
        from torch.nn import functional

        from lilliput.calibration import torch_program

        def linear(run: LinearRun, x: torch.Tensor) -> torch.Tensor:
            return functional.linear(x, value(run.weight), None if run.bias is None else value(run.bias))

        run = torch_program.ProgramRun(value, linear, {})
        buffers: dict[str, torch.Tensor] = {}
        for step in torch_program.joined(self._cut.first):
            if isinstance(step, Embed):
                buffers[step.out] = torch_program.embedded(step, value(step.weight), tokens)
            else:
                run.step(step, buffers)
        return buffers[self._cut.stream]

    def _tensor(self, name: str) -> torch.Tensor:
        import torch

        return torch.from_numpy(_writeable(self.source.tensor(name).dequantize().reshape(self._table[name].shape)))

    @contextmanager
    def _loaded(self, prefix: str, module: ProgramModule) -> Iterator[ProgramModule]:
        state = {name: self._tensor(prefix + name).to(self.device) for name in module.state_dict()}
        module.load_state_dict(state, assign=True)
        del state
        try:
            yield module
        finally:
            module.to("meta")


def _seeing(sums: Sums, see: Callable[[Sums, torch.Tensor], None]) -> Callable[..., None]:
    def hook(_module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        see(sums, arguments[0].float())

    return hook


def _seeing_each(sums: Sequence[Sums], see: Callable[[Sums, torch.Tensor], None]) -> Callable[..., None]:
    def hook(_module: torch.nn.Module, arguments: tuple[torch.Tensor, int]) -> None:
        see(sums[arguments[1]], arguments[0].float())

    return hook


def _seeing_all(sums: Sums, see: Callable[[Sums, torch.Tensor], None], experts: int) -> Callable[..., None]:
    """Experts are called one after the other; the last one shows what all of them were given."""
    parts: list[torch.Tensor] = []

    def hook(_module: torch.nn.Module, arguments: tuple[torch.Tensor, int]) -> None:
        import torch

        parts.append(arguments[0].float())
        if arguments[1] == experts - 1:
            see(sums, torch.cat(parts))
            parts.clear()

    return hook


def _writeable(values: FloatArray) -> FloatArray:
    # torch warns of arrays that it could write to and must not.
    return values if values.flags.writeable else values.copy()


def _first_clause(error: Exception) -> str:
    """Torch goes on with a list of every kind of device there is."""
    line = str(error).splitlines()[0]
    return "no device of torch's" if line.startswith("Expected one of") else line


def _usable_device(name: str) -> torch.device:
    import torch

    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise CalibrationError(f"device '{name}' cannot be used: {_first_clause(error)}; give cpu or cuda") from error
    return device


def _dequantized_rows(tensor: QuantizedTensor, rows: IntArray) -> FloatArray:
    """Float32 [len(rows), columns], decoding only those rows where every plane has one row per row."""
    if tensor.sidecars or any(plane.shape[:1] != (tensor.rows,) for plane in tensor.planes.values()):
        return tensor.dequantize()[rows]
    planes = {name: np.ascontiguousarray(plane[rows]) for name, plane in tensor.planes.items()}
    return tensor.format.dequantize(planes, tensor.columns).copy()
