# SPDX-License-Identifier: Apache-2.0
"""ONNX files beyond 2 GB, where a graph of protocol buffers ends and offsets need 64 bits."""

from __future__ import annotations

import gc
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from onnx_models import Runner, quantized_model, write
from reference_program import encoded_tensor, float_tensor

from lilliput.architectures import program as operations
from lilliput.containers.onnx.container import DATA

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore")]
pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")
ROWS, WIDTH = 72_000, 8_192


@dataclass(frozen=True)
class Table:
    """An architecture that looks up a row and multiplies it."""

    def program(self, config: object) -> operations.Program:
        body = (operations.Embed("x", "token_embd.weight"), operations.Linear("logits", "x", "output.weight"))
        return operations.Program({"x": WIDTH, "logits": 16}, (), body, "logits")


def test_weights_beyond_two_gigabytes_are_found_by_onnx_runtime(tmp_path: Path) -> None:
    # Every row differs; a few values are enough to tell, and quick to make.
    table = np.repeat(np.arange(ROWS, dtype=np.float32)[:, None], WIDTH, axis=1)
    table += np.linspace(-1, 1, WIDTH, dtype=np.float32)
    generator = np.random.default_rng(0)
    head = encoded_tensor("output.weight", generator.normal(0, 0.01, (16, WIDTH)).astype(np.float32), "int4_g32")
    base = quantized_model({"model_type": "llama"}, "f32")
    tensors = {"token_embd.weight": float_tensor("token_embd.weight", table), "output.weight": head}
    path = write(replace(base, architecture=Table(), tensors=tensors), tmp_path / "m.onnx")  # type: ignore[arg-type]
    assert (path.parent / DATA).stat().st_size > 1 << 31
    assert path.stat().st_size < 1 << 16
    tokens = [0, 5, ROWS // 2, ROWS - 1]
    expected = table[tokens].astype(np.float64) @ head.dequantize().astype(np.float64).T
    size = np.abs(table[tokens].astype(np.float64)) @ np.abs(head.dequantize().astype(np.float64)).T
    del table, tensors
    gc.collect()
    # The bound of a float32 dot product of WIDTH terms in any order.
    assert (np.abs(Runner(path).forward(tokens) - expected) <= WIDTH * 2.0**-24 * size).all()
