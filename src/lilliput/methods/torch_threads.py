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


def layer_pass(x: FloatArray, weight: FloatArray) -> Callable[[], object]:
    """One layer of a float model, x [tokens, width] and weight [width, width]: call the answer to run it.

    A norm, the product, a gate and the residual stream: what a linear layer has around it in a block, on average.
    """
    import torch

    inputs, matrix = torch.from_numpy(x), torch.from_numpy(weight)

    def run() -> object:
        with torch.inference_mode():
            output = torch.nn.functional.linear(torch.nn.functional.rms_norm(inputs, inputs.shape[-1:]), matrix)
            return torch.addcmul(inputs, torch.nn.functional.silu(output), output)

    return run
