# SPDX-License-Identifier: Apache-2.0
"""How many threads torch uses, for a while; and one product of its, to be timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lilliput.arrays import FloatArray


@contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """Let torch use so many threads inside the `with`; None leaves its own choice."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def linear_product(x: FloatArray, weight: FloatArray) -> Callable[[], object]:
    """X [tokens, columns] times weight [rows, columns], as a layer of a torch model runs it: call the answer."""
    import torch

    inputs, matrix = torch.from_numpy(x), torch.from_numpy(weight)
    return lambda: torch.nn.functional.linear(inputs, matrix)
