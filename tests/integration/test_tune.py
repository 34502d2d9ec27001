# SPDX-License-Identifier: Apache-2.0
"""End-to-end tuning starts from exactly what was quantized, lowers the divergence, and stores what it measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_llama import TEXT, write_tiny_llama

from lilliput import workflows
from lilliput.arrays import IntArray
from lilliput.calibration.data import calibration_chunks
from lilliput.checkpoints.model_source import ModelSource
from lilliput.errors import CalibrationError
from lilliput.pipeline.quantize_tensors import Done, quantize_tensor
from lilliput.pipeline.trained_weight import TrainedWeight
from lilliput.pipeline.tune import TuneOptions, _Training, tune, tuned_rows
from lilliput.recipes.plan import Plan, resolve
from lilliput.records import NO_INPUTS

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelSource]:
    folder = write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny", layers=1, ffn=256)
    with workflows.opened(folder) as opened:
        yield opened


def quantized(source: ModelSource, preset: str) -> tuple[Plan, Done]:
    """Everything that has inputs, by the baseline."""
    plan = resolve(source, preset, statistics_present=False)
    rows = [row for row in plan.rows if row.name.startswith("blk.") and row.method == "searched_scales"]
    return plan, {row.name: quantize_tensor(source.tensor(row.name), row, NO_INPUTS, threads=1) for row in rows}


@pytest.fixture(scope="module")
def chunks(source: ModelSource, tmp_path_factory: pytest.TempPathFactory) -> IntArray:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT * 12)
    return calibration_chunks(source.vocabulary(), [path], chunk_size=64)


@pytest.mark.parametrize("preset", ["Q2_K", "Q4_0", "IQ4_XS", "IQ2_S"])
def test_training_starts_from_the_stored_values(source: ModelSource, preset: str) -> None:
    _, done = quantized(source, preset)
    tensor, _ = done["blk.0.ffn_up.weight"]
    weight = TrainedWeight(tensor, trains_rounding=True)
    # Scale times code in another order of multiplications: one float32 rounding each, against values below 1.
    np.testing.assert_allclose(weight.value().numpy(), tensor.dequantize(), atol=1e-6)
    assert weight.stored().dequantize().tobytes() == tensor.dequantize().tobytes()


def test_tuning_lowers_the_divergence_on_text_it_has_not_seen(source: ModelSource, chunks: IntArray) -> None:
    plan, done = quantized(source, "Q2_K")
    rows = {row.name: row for row in tuned_rows(plan, done)}
    options = TuneOptions(epochs=2, batch=2)
    training = _Training(source, rows, done, chunks, options)
    result, ratio = training.run()
    assert ratio < 1.0
    # What is stored has the divergence that was measured.
    before, after = (_Training(source, rows, state, chunks, options) for state in (done, result))
    assert after.held_out_divergence() == pytest.approx(ratio * before.held_out_divergence(), rel=1e-4)


def test_training_that_gains_nothing_changes_no_byte(source: ModelSource, chunks: IntArray) -> None:
    plan, done = quantized(source, "Q4_0")
    # So large a rate ruins the model at once.
    result = tune(source, plan, done, chunks, TuneOptions(epochs=1, batch=2, rate=10.0))
    for name, (tensor, _) in done.items():
        assert result[name][0].dequantize().tobytes() == tensor.dequantize().tobytes()
        assert "tuning gained nothing" in result[name][1].reason


def test_a_model_that_does_not_fit_in_memory_is_refused(
    source: ModelSource, chunks: IntArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, done = quantized(source, "Q4_0")
    monkeypatch.setattr("os.sysconf", lambda name: 1)
    with pytest.raises(CalibrationError, match="--effort balanced"):
        tune(source, plan, done, chunks, TuneOptions())


def test_effort_best_says_in_the_ledger_what_tuning_did(source: ModelSource, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT * 60)
    output = tmp_path / "best.gguf"
    options = workflows.QuantizeOptions(effort="best", threads=1)
    result = workflows.quantize(source.path, "Q2_K", output, guidance=workflows.Guidance(text=(text,)), options=options)
    entries = {entry["name"]: entry for entry in json.loads(result.ledger.read_text())["entries"]}
    assert "tun" in entries["blk.0.ffn_up.weight"]["reason"]
    assert "tun" in entries["blk.0.attn_norm.weight"]["reason"]
    assert not output.with_name("best.gguf.work").exists()
    again = workflows.quantize(
        source.path, "Q2_K", tmp_path / "again.gguf", guidance=workflows.Guidance(text=(text,)),
        options=replace(options, threads=2),
    )  # fmt: skip
    assert again.output[0].read_bytes() == output.read_bytes()
