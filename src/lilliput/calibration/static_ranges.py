# SPDX-License-Identifier: Apache-2.0
"""Ranges of static inputs: a pass of the float model over text, and what each layer's weight is told of its inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lilliput.activations import RangeObserver, StaticInputs
from lilliput.activations.stored_range import range_arrays
from lilliput.arrays import Array, FloatArray, IntArray
from lilliput.calibration.collect import CalibrationOptions, collect_sums, pair_sums
from lilliput.checkpoints.model_source import ModelSource
from lilliput.errors import CalibrationError
from lilliput.progress import Progress
from lilliput.records import TensorPlan


class _Observed:
    """The range of what enters a linear. name: the tensor that errors name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.tokens = 0
        self.observer = RangeObserver()

    def add(self, inputs: FloatArray) -> None:
        rows = np.ascontiguousarray(inputs.reshape(-1, inputs.shape[-1]), dtype=np.float32)
        try:
            self.observer.observe(rows)
        except CalibrationError as error:
            raise CalibrationError(f"{self.name}: {error}") from error
        self.tokens += len(rows)


def static_ranges(
    source: ModelSource,
    rows: Sequence[TensorPlan],
    chunks: IntArray,
    options: CalibrationOptions,
    progress: Progress | None = None,
) -> dict[str, Mapping[str, Array]]:
    """Tensor name -> the arrays beside its weight, for each row with static inputs.

    chunks: token ids [chunks, chunk_size].  Raises CalibrationError for a layer that the text never reached.
    """
    wanted = {row.name: row.inputs for row in rows if row.inputs is not None}
    if not wanted:
        return {}
    walk = collect_sums if source.config.decoder is None else pair_sums
    seen = walk(source, chunks, options, _Observed, progress)
    return {name: _arrays(name, inputs, seen.get(name)) for name, inputs in wanted.items()}


def _arrays(name: str, inputs: StaticInputs, seen: _Observed | None) -> Mapping[str, Array]:
    if seen is None or not seen.tokens:
        raise CalibrationError(f"{name}: the text never reached this layer, so its inputs have no range; give another")
    return range_arrays(inputs.inputs, seen.observer.fixed_scale(inputs.inputs, inputs.ranges))
