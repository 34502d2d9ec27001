# SPDX-License-Identifier: Apache-2.0
"""Embeddings whose rows are stored in a number format and decoded when they are looked up."""

from __future__ import annotations

from typing import cast

import torch

from lilliput.errors import FormatError
from lilliput.formats import NumberFormat, Planes, get_format
from lilliput.torch_backend.stored_weight import StoredWeight
from lilliput.torch_backend.weight_planes import made_planes


class QuantizedEmbedding(StoredWeight):
    """A table of rows. bias: none; output_dtype: type of what is looked up, that of the table it was made from."""

    def __init__(
        self,
        number_format: NumberFormat,
        num_embeddings: int,
        embedding_dim: int,
        *,
        padding_idx: int | None = None,
        output_dtype: torch.dtype = torch.float32,
    ) -> None:
        """A table without content, to be loaded."""
        super().__init__(number_format, num_embeddings, embedding_dim)
        if number_format.row_step not in (1, None):
            raise FormatError(
                f"{number_format.name.upper()}: its rows share scales, so that single rows cannot be looked up; use "
                "int8_channel or another format with scales of each row"
            )
        self.num_embeddings, self.embedding_dim, self.padding_idx = num_embeddings, embedding_dim, padding_idx
        self.output_dtype = output_dtype
        self.bias = None

    @classmethod
    def from_float(cls, table: torch.nn.Embedding, number_format: NumberFormat | str) -> QuantizedEmbedding:
        """Quantize one table. Raises FormatError where its rows do not divide into the format's groups."""
        number_format = get_format(number_format) if isinstance(number_format, str) else number_format
        return cls.from_planes(table, number_format, made_planes(number_format, table.weight))

    @classmethod
    def from_planes(cls, table: torch.nn.Embedding, number_format: NumberFormat, planes: Planes) -> QuantizedEmbedding:
        """As `from_float`, with the weight quantized already."""
        made = cls.like(table, number_format)
        made.set_planes(planes)
        made.to(table.weight.device)
        made.prepare()
        return made.train(table.training)

    @classmethod
    def like(cls, table: torch.nn.Embedding, number_format: NumberFormat) -> QuantizedEmbedding:
        """A table of the same size and use, without content. Tables with a forward of their own keep it."""
        size = (table.num_embeddings, table.embedding_dim)
        kind = cls if type(table) is torch.nn.Embedding else with_forward_of(type(table))
        made = kind(number_format, *size, padding_idx=table.padding_idx, output_dtype=table.weight.dtype)
        if kind is not cls:
            ours = set(made.__dict__)
            made.__dict__.update({key: value for key, value in table.__dict__.items() if key not in ours})
            for name, buffer in table._buffers.items():
                made.register_buffer(name, buffer, persistent=name not in table._non_persistent_buffers_set)
        return made

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Ids [...] -> [..., embedding_dim] in `output_dtype`."""
        return self.dequantized_rows(ids.reshape(-1)).view(*ids.shape, self.embedding_dim).to(self.output_dtype)

    def _apply(self, fn: object, recurse: bool = True) -> QuantizedEmbedding:
        """Casts change the type of what is looked up, as they do for a float table."""
        probe = torch.empty(0, dtype=self.output_dtype, device=self._plane(self.plane_names[0]).device)
        self.output_dtype = fn(probe).dtype  # type: ignore[operator]
        super()._apply(fn, recurse)  # type: ignore[arg-type]
        return self

    def extra_repr(self) -> str:
        """Shape and format."""
        return f"{self.num_embeddings}, {self.embedding_dim}, {self.number_format.name}"


def with_forward_of(table: type[torch.nn.Embedding]) -> type[QuantizedEmbedding]:
    """A quantized table that looks up as `table` does: its forward asks torch.nn.Embedding's, which asks our weight."""
    known = _KINDS.get(table)
    if known is None:
        content = {
            "_float_class": table,
            "__doc__": f"A {table.__name__} whose rows are stored in a number format.",
        }
        bases = (_OwnForward, table, QuantizedEmbedding)
        known = _KINDS[table] = cast("type[QuantizedEmbedding]", type(f"Quantized{table.__name__}", bases, content))
    return known


_KINDS: dict[type[torch.nn.Embedding], type[QuantizedEmbedding]] = {}


class _OwnForward:
    """Goes before a table's class, so that its constructor is not run again."""

    _float_class: type[torch.nn.Embedding]

    def __init__(self, *arguments: object, **options: object) -> None:
        QuantizedEmbedding.__init__(cast("QuantizedEmbedding", self), *arguments, **options)  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        """Shape and format."""
        return QuantizedEmbedding.extra_repr(cast("QuantizedEmbedding", self))

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuilt, (self._float_class,), cast("QuantizedEmbedding", self).__getstate__())


def _rebuilt(table: type[torch.nn.Embedding]) -> QuantizedEmbedding:
    """An instance that is to be given its state, for copies and pickles."""
    kind = with_forward_of(table)
    return kind.__new__(kind)


def is_embedding(module: torch.nn.Module) -> bool:
    """Whether a module looks rows up, and leaves the table as it is while doing so."""
    return isinstance(module, torch.nn.Embedding) and module.max_norm is None
