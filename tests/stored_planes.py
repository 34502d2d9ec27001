# SPDX-License-Identifier: Apache-2.0
"""Random stored bytes for any number format."""

from __future__ import annotations

import numpy as np

from lilliput.formats import BlockFormat, Encoded, NumberFormat, Planes
from lilliput.formats.ordered_groups import OrderedGroups


def random_planes(number_format: NumberFormat, rows: int, columns: int, seed: int = 11) -> Planes:
    """Bytes without meaning: any pattern may come up, NaN and infinity included."""
    generator = np.random.default_rng(seed)
    return {
        name: generator.integers(0, 256, spec.nbytes, dtype=np.uint8).view(spec.dtype).reshape(spec.shape)
        for name, spec in number_format.stored_planes(rows, columns).items()
    }


def finite_planes(number_format: NumberFormat, rows: int, columns: int, seed: int) -> Planes:
    """Random stored bytes of [rows, columns] that decode to finite values: every block drawn until it does.

    Formats that are no runs of blocks: random weights, rounded.
    """
    generator = np.random.default_rng(seed)
    if isinstance(number_format, OrderedGroups):
        planes = finite_planes(number_format.base, rows, columns, seed)
        return number_format.reordered(planes, generator.permutation(columns))
    if not isinstance(number_format, BlockFormat):
        weight = generator.standard_normal((rows, columns)).astype(np.float32)
        parameters = number_format.widest_parameters(weight)
        return number_format.pack(Encoded(number_format.nearest_codes(weight, parameters), parameters))
    needed = rows * columns // number_format.block_size
    spec = number_format.stored_planes(1, number_format.block_size)["blocks"]
    found: list[np.ndarray] = []
    count = 0
    while count < needed:
        blocks = generator.integers(0, 256, (2 * needed + 8, spec.nbytes), dtype=np.uint8)
        with np.errstate(all="ignore"):
            values = number_format.dequantize({"blocks": blocks}, number_format.block_size)
        kept = blocks[np.isfinite(values).all(axis=1)]
        found.append(kept)
        count += len(kept)
    whole = number_format.stored_planes(rows, columns)["blocks"]
    return {"blocks": np.concatenate(found)[:needed].reshape(-1).view(whole.dtype).reshape(whole.shape)}
