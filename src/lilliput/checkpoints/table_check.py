# SPDX-License-Identifier: Apache-2.0
"""A family's tensor table, built only from sizes that the file at hand can back."""

from __future__ import annotations

from pathlib import Path

from lilliput.architectures.architecture import Architecture, ModelConfig, TensorEntry
from lilliput.errors import LilliputError

# Far above any model's; what the table computes itself (rope factors) grows with it.
MAX_HEAD_DIM = 1 << 16


def checked_table(
    architecture: Architecture, config: ModelConfig, path: Path, tensors: int, error: type[LilliputError]
) -> tuple[TensorEntry, ...]:
    """The table, unless the metadata claims more layers than the file has tensors or an absurd head size.

    A table has several rows a layer, so a damaged count could otherwise fill the memory. Raises `error`.
    """
    if config.layers > tensors:
        raise error(f"{path.name}: claims {config.layers} layers and holds {tensors} tensors; the file is damaged")
    if config.head_dim > MAX_HEAD_DIM:
        raise error(f"{path.name}: claims heads of {config.head_dim} values; up to {MAX_HEAD_DIM} is possible")
    return architecture.tensor_table(config)
