# SPDX-License-Identifier: Apache-2.0
"""Tiny models as ONNX folders, and one way to run them: prefill, then token by token with the cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from random_models import RandomModel, random_model
from reference_program import ProgramSource, encoded_tensor, run_program

from lilliput.architectures.architecture import Json
from lilliput.arrays import FloatArray
from lilliput.containers.container import Contents
from lilliput.containers.onnx.container import Onnx
from lilliput.containers.publish import publish
from lilliput.recipes.plan import VECTOR_ROLES

if TYPE_CHECKING:
    import onnxruntime


def quantized_model(fields: dict[str, Json], format_name: str, *, seed: int = 0) -> RandomModel:
    """A random model whose matrices are in a number format; what plans leave alone stays F32."""
    model = random_model(fields, seed=seed)
    roles = {entry.name: entry.role for entry in model.architecture.tensor_table(model.config)}
    tensors = {
        name: tensor
        if len(tensor.shape) < 2 or roles[name] in VECTOR_ROLES
        else encoded_tensor(name, tensor.dequantize(), format_name)
        for name, tensor in model.tensors.items()
    }
    return replace(model, tensors=tensors)


def contents_of(model: RandomModel) -> Contents:
    return Contents(model.architecture, model.config, None, model.provenance, tuple(model.headers.values()))


def write(model: RandomModel, target: Path, container: Onnx | None = None) -> Path:
    """The graph of a folder that our own reader has verified."""
    publish(container or Onnx(), contents_of(model), model.tensors.values(), target)
    return target / "model.onnx"


def expected_and_bound(model: RandomModel, tokens: Sequence[int]) -> tuple[NDArray[np.floating], float]:
    """Float64 logits of the quantized weights, and four times what a plain float32 forward misses them by."""
    source = ProgramSource(model.architecture.program(model.config), model.tensors)
    expected = run_program(source, tokens, range(len(tokens)))
    missed = np.abs(run_program(source, tokens, range(len(tokens)), np.float32) - expected).max()
    assert 0 < missed < 1e-3
    return expected, 4 * missed


class Runner:
    """One sequence under way in ONNX Runtime."""

    def __init__(self, path: Path, level: onnxruntime.GraphOptimizationLevel | None = None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        if level is not None:
            options.graph_optimization_level = level
        # Warnings speak of constants that are folded.
        options.log_severity_level = 3
        self.session: onnxruntime.InferenceSession = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        inputs = self.session.get_inputs()
        self._inputs = {item.name for item in inputs}
        self._past = {
            item.name: np.zeros((1, item.shape[1], 0, item.shape[3]), np.float32)
            for item in inputs
            if item.name.startswith("past_key_values.")
        }
        self.length = 0

    def forward(self, tokens: Sequence[int], padding: int = 0) -> FloatArray:
        """Logits [tokens, vocabulary]. padding: tokens on the left that nobody may look at."""
        count = len(tokens) + padding
        end = self.length + count
        mask = np.ones((1, end), np.int64)
        mask[:, :padding] = 0
        positions = np.maximum(np.arange(self.length, end) - padding, 0)
        feed = {
            "input_ids": np.array([[0] * padding + list(tokens)], np.int64),
            "attention_mask": mask,
            "position_ids": positions[None].astype(np.int64),
            **self._past,
        }
        names = [item.name for item in self.session.get_outputs()]
        found = dict(
            zip(names, self.session.run(names, {k: v for k, v in feed.items() if k in self._inputs}), strict=True)
        )
        self._past = {name: found[name.replace("past_key_values", "present")] for name in self._past}
        self.length = end
        logits: FloatArray = found["logits"][0, padding:]
        return logits
