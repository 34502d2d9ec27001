# SPDX-License-Identifier: Apache-2.0
"""Methods that need Hessians, on encoder-decoders: inputs of the float model, then one tensor after the other.

In memory: the model in float32 and the Hessians of all its distinct inputs, which is twice to four times its size.
Unlike the loop over blocks, layers are fitted to the float model's inputs, not to those of the quantized layers before.
"""

from __future__ import annotations

from collections.abc import Sequence

from lilliput.calibration.input_sums import HessianSums
from lilliput.calibration.pair_inputs import Pair, pair_inputs
from lilliput.checkpoints.model_source import ModelSource
from lilliput.methods.torch_threads import torch_threads
from lilliput.pipeline.quantize_tensors import Done, quantize_tensor
from lilliput.progress import Progress
from lilliput.recipes.ledger import LedgerEntry
from lilliput.recipes.plan import Plan
from lilliput.records import QuantizedTensor


def quantize_pairs(
    source: ModelSource, plan: Plan, pairs: Sequence[Pair], *, threads: int, progress: Progress | None = None
) -> Done:
    """Quantize every tensor that has inputs.

    progress: called with (pairs done, pairs in all).  Raises CalibrationError, FormatError naming the tensor.
    """
    import torch

    rows = {row.name: row for row in plan.rows}
    done: dict[str, tuple[QuantizedTensor, LedgerEntry]] = {}
    with torch.inference_mode(), torch_threads(threads):
        groups = pair_inputs(source, pairs, HessianSums, HessianSums.add, progress)
        while groups:
            entries, sums = groups.pop(0)
            inputs = sums.layer_inputs()
            for row in (rows[entry.name] for entry in entries if entry.name in rows):
                done[row.name] = quantize_tensor(source.tensor(row.name), row, inputs, threads=threads)
    return done
