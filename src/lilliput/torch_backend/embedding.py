# SPDX-License-Identifier: Apache-2.0
"""Embeddings whose rows are stored in a number format and decoded when they are looked up."""

from __future__ import annotations

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
        scale: float | None = None,
    ) -> None:
        """A table without content, to be loaded. scale: what looked-up rows are multiplied by."""
        super().__init__(number_format, num_embeddings, embedding_dim)
        if number_format.row_step not in (1, None):
            raise FormatError(
                f"{number_format.name.upper()}: its rows share scales, so that single rows cannot be looked up; use "
                "int8_channel or another format with scales of each row"
            )
        self.num_embeddings, self.embedding_dim, self.padding_idx = num_embeddings, embedding_dim, padding_idx
        self.output_dtype = output_dtype
        self.scale = scale
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
        """A table of the same size and use, without content."""
        return cls(
            number_format,
            table.num_embeddings,
            table.embedding_dim,
            padding_idx=table.padding_idx,
            output_dtype=table.weight.dtype,
            scale=scale_of(table),
        )

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Ids [...] -> [..., embedding_dim] in `output_dtype`."""
        found = self.dequantized_rows(ids.reshape(-1)).view(*ids.shape, self.embedding_dim).to(self.output_dtype)
        return found if self.scale is None else found * self.scale

    def _apply(self, fn: object, recurse: bool = True) -> QuantizedEmbedding:
        """Casts change the type of what is looked up, as they do for a float table."""
        probe = torch.empty(0, dtype=self.output_dtype, device=self._plane(self.plane_names[0]).device)
        self.output_dtype = fn(probe).dtype  # type: ignore[operator]
        super()._apply(fn, recurse)  # type: ignore[arg-type]
        return self

    def extra_repr(self) -> str:
        """Shape and format."""
        return f"{self.num_embeddings}, {self.embedding_dim}, {self.number_format.name}"


def is_plain_embedding(module: torch.nn.Module) -> bool:
    """Whether a module looks rows up and at most scales them; others of the kind have a forward of their own."""
    if type(module) is torch.nn.Embedding:
        return module.max_norm is None
    return isinstance(module, torch.nn.Embedding) and type(module).__name__.endswith("ScaledWordEmbedding")


def scale_of(table: torch.nn.Embedding) -> float | None:
    """What an embedding multiplies its rows by: BART's and its kin's `embed_scale`; None for plain tables."""
    scale = getattr(table, "embed_scale", None)
    if isinstance(scale, torch.Tensor):
        return float(scale.item())
    return float(scale) if isinstance(scale, int | float) and scale != 1 else None
