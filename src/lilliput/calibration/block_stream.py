# SPDX-License-Identifier: Apache-2.0
"""A model's own `transformers` code with one decoder block in memory at a time.

The model is built on torch's meta device, which holds shapes and no numbers. A block's tensors are read from the
source (any container), used, and dropped again. torch and transformers are imported on first use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np

from lilliput.architectures.architecture import TensorEntry
from lilliput.architectures.sources import Named, PermutedHeads
from lilliput.arrays import FloatArray, IntArray
from lilliput.calibration.transformers_config import transformers_config
from lilliput.checkpoints.model_source import ModelSource
from lilliput.errors import CalibrationError
from lilliput.records import QuantizedTensor, Role

if TYPE_CHECKING:
    import torch

Sums = TypeVar("Sums")
# What products inside a block are computed in. bfloat16 takes less than half the time where the processor has it.
Precision = Literal["float32", "bfloat16"]
EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm."


def require_torch() -> None:
    """Raise CalibrationError that names the extra to install where torch or transformers is missing."""
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise CalibrationError(
            f"calibration runs the model with PyTorch and transformers, and {error.name} is not installed; "
            "install them with: pip install 'lilliput[quantize]', or give ready statistics (--statistics, --imatrix)"
        ) from error


class BlockStream:
    """Embedding, blocks and final norm of one model, each readable on its own. Everything is float32.

    source: where tensors come from, by canonical name.  device: a torch device, such as "cpu" or "cuda".
    precision: of `forward`; states between blocks are float32 all the same.
    Raises CalibrationError where the tools are missing.
    """

    def __init__(self, source: ModelSource, device: str = "cpu", precision: Precision = "float32") -> None:
        require_torch()
        import torch
        from transformers import AutoModelForCausalLM

        self.source = source
        self.device = _usable_device(device)
        self._is_short = precision == "bfloat16"
        self._table = {
            entry.source.name: entry
            for entry in source.architecture.tensor_table(source.config)
            if isinstance(entry.source, Named | PermutedHeads) and entry.tied_to is None
        }
        settings = transformers_config(source)
        with torch.device("meta"):
            self._model: torch.nn.Module = AutoModelForCausalLM.from_config(
                settings, dtype=torch.float32, attn_implementation="sdpa"
            )
        self._model.eval()
        self._decoder: torch.nn.Module = self._model.get_submodule("model")
        self._give_rope_its_numbers(settings)

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return self.source.config.layers

    def materialized_bytes(self) -> int:
        """Bytes of all parameters that are in memory now."""
        return sum(p.nelement() * p.element_size() for p in self._model.parameters() if not p.is_meta)

    def block_bytes(self) -> int:
        """Bytes of the largest block, in float32."""
        blocks = (self._decoder.get_submodule(f"layers.{layer}") for layer in range(self.layers))
        return max(sum(p.nelement() * p.element_size() for p in block.parameters()) for block in blocks)

    @property
    def embedding(self) -> str:
        """Canonical name of the token embedding."""
        return self._table[EMBEDDING].name

    @property
    def output_names(self) -> list[str]:
        """Canonical names of the output head, and of the embedding where that serves as one."""
        entries = self.source.architecture.tensor_table(self.source.config)
        heads = [entry for entry in entries if entry.role is Role.OUTPUT]
        return [name for entry in heads for name in (entry.name, entry.tied_to) if name is not None]

    def embed(self, tokens: IntArray, table: QuantizedTensor | None = None) -> torch.Tensor:
        """[n] token ids -> [n, hidden_size] on the CPU, read row by row: the embedding is never whole in memory.

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
        rows = _dequantized_rows(table or self.source.tensor(self.embedding), distinct)
        return torch.from_numpy(rows)[torch.from_numpy(places)]

    @contextmanager
    def block(self, layer: int) -> Iterator[torch.nn.Module]:
        """The block with its numbers; they are dropped at the end of the `with`."""
        with self._loaded(f"model.layers.{layer}.", self._decoder.get_submodule(f"layers.{layer}")) as module:
            yield module

    @contextmanager
    def final_norm(self) -> Iterator[torch.nn.Module]:
        """The norm before the output head."""
        with self._loaded(FINAL_NORM, self._decoder.get_submodule("norm")) as module:
            yield module

    def linears(self, layer: int) -> Mapping[str, tuple[TensorEntry, ...]]:
        """Name of a linear inside the block -> all entries that read its input; one name per distinct input."""
        prefix = f"model.layers.{layer}."
        groups: dict[str, list[tuple[str, TensorEntry]]] = {}
        for name, entry in self._table.items():
            if name.startswith(prefix) and entry.input_group is not None:
                module_name = name.removeprefix(prefix).removesuffix(".weight")
                groups.setdefault(entry.input_group, []).append((module_name, entry))
        return {members[0][0]: tuple(entry for _, entry in members) for members in groups.values()}

    @contextmanager
    def watching(
        self,
        block: torch.nn.Module,
        layer: int,
        sums_of: Callable[[str], Sums],
        see: Callable[[Sums, torch.Tensor], None],
    ) -> Iterator[list[tuple[tuple[TensorEntry, ...], Sums]]]:
        """Inside the `with`, `see(sums, inputs)` for what enters each group of linears that share an input.

        sums_of: makes the sums of a group, given the name of its first tensor.
        """
        groups: list[tuple[tuple[TensorEntry, ...], Sums]] = []
        handles = []
        for module_name, entries in self.linears(layer).items():
            sums = sums_of(entries[0].name)
            groups.append((entries, sums))
            module = block.get_submodule(module_name)
            handles.append(module.register_forward_pre_hook(_seeing(sums, see)))
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
            output = block(hidden[None].to(self.device), **arguments)
        states: torch.Tensor = output if isinstance(output, torch.Tensor) else output[0]
        if not bool(states.isfinite().all()):
            raise CalibrationError(
                f"blk.{layer}: its output holds NaN or Inf in chunk {chunk}; "
                "the model overflows on this text, or its weights are damaged"
            )
        return states[0].float().cpu()

    def replace(self, block: torch.nn.Module, layer: int, tensor: QuantizedTensor) -> None:
        """Give a loaded block the values of `tensor` in place of its own, until it is dropped."""
        import torch

        entry = next(entry for entry in self._table.values() if entry.name == tensor.name)
        values = torch.from_numpy(_in_checkpoint_order(entry, tensor)).to(self.device)
        block.load_state_dict({self.name_in_block(layer, tensor.name): values}, strict=False, assign=True)

    def name_in_block(self, layer: int, name: str) -> str:
        """What the block's own code calls a tensor: `blk.0.ffn_up.weight` -> `mlp.up_proj.weight`."""
        found = next(source for source, entry in self._table.items() if entry.name == name)
        return found.removeprefix(f"model.layers.{layer}.")

    def all_values(self) -> dict[str, torch.Tensor]:
        """Every tensor whole, float32, in the checkpoint's order, by canonical name: for training."""
        import torch

        return {
            entry.name: torch.from_numpy(_in_checkpoint_order(entry, self.source.tensor(entry.name)).copy())
            for entry in self._table.values()
            if entry.name in self.source.headers
        }

    def row_order(self, name: str) -> IntArray | None:
        """Canonical row of each row of the checkpoint's matrix, or None for a tensor that the model does not have."""
        entry = next((entry for entry in self._table.values() if entry.name == name), None)
        if entry is None:
            return None
        return _row_order(entry)

    def logits(self, tokens: torch.Tensor, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """[batch, length] token ids -> [batch, length, vocab_size] of the whole model with `tensors` for its own.

        tensors: canonical name -> float32 in the checkpoint's order, as `all_values` gives them; differentiable.
        """
        import torch

        state = {name: tensors[entry.name] for name, entry in self._table.items() if entry.name in tensors}
        output = torch.func.functional_call(self._model, state, (tokens,), {"use_cache": False}, tie_weights=True)
        logits: torch.Tensor = output.logits
        return logits

    def block_arguments(self, length: int) -> list[dict[str, object]]:
        """What the model's own forward gives each block beside hidden states, for one sequence of `length` tokens."""
        import torch

        recorders = torch.nn.ModuleList([_recorder() for _ in range(self.layers)])
        real_layers, real_norm = self._decoder.layers, self._decoder.norm
        self._decoder.layers, self._decoder.norm = recorders, torch.nn.Identity()
        try:
            embedded = torch.zeros(1, length, self.source.config.hidden_size, device=self.device)
            self._decoder(inputs_embeds=embedded, use_cache=False)
        finally:
            self._decoder.layers, self._decoder.norm = real_layers, real_norm
        return [recorder.arguments for recorder in recorders]  # type: ignore[misc]

    @contextmanager
    def _loaded(self, prefix: str, module: torch.nn.Module) -> Iterator[torch.nn.Module]:
        import torch

        state = {
            name.removeprefix(prefix): torch.from_numpy(_in_checkpoint_order(entry, self.source.tensor(entry.name))).to(
                self.device
            )
            for name, entry in self._table.items()
            if name.startswith(prefix)
        }
        missing = sorted(set(module.state_dict()) - set(state))
        if missing:
            raise CalibrationError(f"{prefix}{missing[0]}: the transformers model has it, this family's table does not")
        module.load_state_dict(state, assign=True)
        del state
        try:
            yield module
        finally:
            module.to("meta")

    def _give_rope_its_numbers(self, settings: object) -> None:
        """Rope's frequencies are buffers computed at construction, which the meta device left empty."""
        import torch

        rotary_class: type[torch.nn.Module] = type(self._decoder.get_submodule("rotary_emb"))
        rotary = rotary_class(config=settings).to(self.device)
        self._decoder.rotary_emb = rotary
        factors = self.source.config.rope.factors
        if factors is not None and self.source.config.rope_llama3 is None:
            # The container brought the divisors themselves; config.json has no words for them.
            divisors = torch.from_numpy(self.source.tensor(factors).dequantize().reshape(-1).copy())
            rotary.get_buffer("inv_freq").div_(divisors.to(self.device))


def _seeing(sums: Sums, see: Callable[[Sums, torch.Tensor], None]) -> Callable[..., None]:
    def hook(_module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        see(sums, arguments[0].float())

    return hook


def _row_order(entry: TensorEntry) -> IntArray:
    """Canonical row of each row of the checkpoint's matrix; of each number of a vector."""
    rows = np.arange(int(np.prod(entry.shape[:-1] or entry.shape)), dtype=np.int32)
    if isinstance(entry.source, PermutedHeads):
        rows = rows.reshape(entry.source.heads, -1, 2).swapaxes(1, 2).reshape(-1)
    return rows


def _in_checkpoint_order(entry: TensorEntry, tensor: QuantizedTensor) -> FloatArray:
    """Float32 values as the Hugging Face checkpoint orders them."""
    values = tensor.dequantize().reshape(entry.shape)
    if isinstance(entry.source, PermutedHeads):
        values = values[_row_order(entry)]
    return values if values.flags.writeable else values.copy()


def _usable_device(name: str) -> torch.device:
    import torch

    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise CalibrationError(f"device '{name}' cannot be used: {str(error).splitlines()[0]}; try cpu") from error
    return device


def _recorder() -> torch.nn.Module:
    import torch

    class Recorder(torch.nn.Module):
        """Stands where a block was and keeps what it was called with."""

        arguments: dict[str, object]

        def forward(self, hidden_states: torch.Tensor, **arguments: object) -> torch.Tensor:
            self.arguments = arguments
            return hidden_states

    return Recorder()


def _dequantized_rows(tensor: QuantizedTensor, rows: IntArray) -> FloatArray:
    """Float32 [len(rows), columns], decoding only those rows where every plane has one row per row."""
    if tensor.sidecars or any(plane.shape[:1] != (tensor.rows,) for plane in tensor.planes.values()):
        return tensor.dequantize()[rows]
    planes = {name: np.ascontiguousarray(plane[rows]) for name, plane in tensor.planes.items()}
    return tensor.format.dequantize(planes, tensor.columns).copy()
