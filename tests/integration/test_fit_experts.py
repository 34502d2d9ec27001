# SPDX-License-Identifier: Apache-2.0
"""`fit` on mixtures: every expert is fitted and judged by what it sees itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from reference_program import encoded_tensor

from lilliput.calibration.block_stream import BlockStream
from lilliput.calibration.expert_inputs import STARVED_BELOW
from lilliput.calibration.input_sums import HessianSums
from lilliput.containers import open_model
from lilliput.evaluation.chunks import Chunks
from lilliput.formats import get_format
from lilliput.pipeline.quantize_tensors import experts_of_stack, quantize_tensor
from lilliput.pipeline.work_folder import WorkFolder
from lilliput.records import LayerInputs
from lilliput.search.candidates import (
    CandidateOptions,
    Candidates,
    candidate_row,
    make_candidates,
    stack_losses,
)
from lilliput.search.choices import RUNTIMES, choices_of
from lilliput.search.measure import Meter
from lilliput.search.predict import agreement, predicted_costs
from lilliput.search.sensitivity import measure_sensitivity

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from family_folders import write_family  # noqa: E402

FORMATS = ("f16", "q5_0", "q4_1", "q4_0")
STACK = "blk.1.ffn_down_exps.weight"
CHUNKS = np.random.default_rng(2).integers(3, 300, (24, 48)).astype(np.int32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family(tmp_path_factory.mktemp("experts") / "tiny", "mixtral")


def test_the_loss_of_a_stack_is_what_each_expert_loses_on_its_own_tokens() -> None:
    random = np.random.default_rng(1)
    values = random.standard_normal((3, 8, 32)).astype(np.float32)
    original, candidate = encoded_tensor("stack", values, "f32"), encoded_tensor("stack", values, "q4_0")
    inputs = []
    for tokens in (300, 100, 0):
        x = random.standard_normal((max(tokens, 1), 32)).astype(np.float32)
        hessian = x.T @ x / len(x)
        inputs.append(LayerInputs(tokens, np.diag(hessian).copy(), hessian) if tokens else LayerInputs())
    found = stack_losses(original, candidate, inputs, used=2)
    error = (candidate.dequantize() - original.dequantize()).reshape(3, 8, 32)
    for expert, tokens in ((0, 300), (1, 100)):
        wanted = np.einsum("ri,ij,rj->r", error[expert], inputs[expert].hessian, error[expert]) * 2 * tokens / 400
        np.testing.assert_allclose(found[8 * expert : 8 * expert + 8], wanted, rtol=1e-4)
    # Nobody asked the third one.
    assert not found[16:].any()


def test_an_expert_that_few_tokens_reach_is_judged_by_the_mean_of_all() -> None:
    values = np.random.default_rng(1).standard_normal((2, 8, 32)).astype(np.float32)
    original, candidate = encoded_tensor("stack", values, "f32"), encoded_tensor("stack", values, "q4_0")
    mean_square, few = np.linspace(1.0, 9.0, 32, dtype=np.float32), 4
    inputs = [
        LayerInputs(STARVED_BELOW, mean_square, np.diag(mean_square)),
        LayerInputs(few, np.zeros(32, np.float32), np.zeros((32, 32), np.float32)),
    ]
    found = stack_losses(original, candidate, inputs, used=1)[8:]
    error = (candidate.dequantize() - original.dequantize()).reshape(2, 8, 32)[1]
    all_seen = STARVED_BELOW + few
    mixed = mean_square * (STARVED_BELOW / all_seen) * STARVED_BELOW / all_seen
    np.testing.assert_allclose(found, (error**2 @ mixed) * few / all_seen, rtol=1e-4)


@pytest.fixture(scope="module")
def candidates(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Candidates:
    source = open_model(folder)
    choices = choices_of(source, RUNTIMES["llama.cpp"], FORMATS)
    with WorkFolder(tmp_path_factory.mktemp("work") / "candidates", "key") as store:
        return make_candidates(source, choices, CHUNKS, store, CandidateOptions("feedback"))


def test_each_expert_of_a_candidate_is_fitted_to_its_own_inputs(folder: Path, candidates: Candidates) -> None:
    source, layer = open_model(folder), 1
    stream = BlockStream(source)
    arguments = stream.block_arguments(CHUNKS.shape[1])
    with torch.no_grad():
        hidden = [stream.embed(chunk) for chunk in CHUNKS]
        with stream.block(0) as block:
            hidden = [stream.forward(block, 0, index, state, arguments[0]) for index, state in enumerate(hidden)]
        with (
            stream.block(layer) as block,
            stream.watching(block, layer, HessianSums, HessianSums.add, by_expert=True) as groups,
        ):
            for index, state in enumerate(hidden):
                stream.forward(block, layer, index, state, arguments[layer])
        inputs = [group.sums.layer_inputs() for group in groups if group.entries[0].name == STACK]
    assert all(each.tokens >= STARVED_BELOW for each in inputs)
    table = source.architecture.tensor_table(source.config)
    row = candidate_row(source, next(entry for entry in table if entry.name == STACK), get_format("q4_0"), "feedback")
    stored = source.tensor(STACK)
    made = candidates.get(STACK, row.format)
    for expert, (matrix, found) in enumerate(zip(experts_of_stack(stored), experts_of_stack(made.tensor), strict=True)):
        own, other = (
            quantize_tensor(matrix, replace(row, shape=matrix.shape), inputs[which], threads=1)[0]
            for which in (expert, (expert + 1) % len(inputs))
        )
        assert np.array_equal(found.planes["blocks"].ravel(), own.planes["blocks"].ravel())
        assert not np.array_equal(found.planes["blocks"].ravel(), other.planes["blocks"].ravel())
    np.testing.assert_array_equal(made.row_losses, stack_losses(stored, made.tensor, inputs, used=2))


def test_predicted_costs_of_a_mixture_follow_the_measured_ones(
    folder: Path, candidates: Candidates, tmp_path: Path
) -> None:
    source = open_model(folder)
    choices = choices_of(source, RUNTIMES["llama.cpp"], FORMATS)
    sensitivity = measure_sensitivity(source, CHUNKS, tmp_path)
    experts, rows, _ = source.headers[STACK].shape
    assert sensitivity.outputs[STACK].shape == (experts * rows,)
    costs = predicted_costs(source, choices, candidates, sensitivity)
    meter = Meter(source, choices, candidates, Chunks(CHUNKS[:6]), tmp_path / "measured.jsonl", threads=1)
    # Only experts change: their own costs are what is judged.
    stacks = [any("_exps" in name for name in choice.names) for choice in choices]
    drawn = [tuple(place if is_stack else 0 for is_stack in stacks) for place in range(1, len(FORMATS))]
    predicted = [costs.total(picks) for picks in drawn]
    measured = [meter.kl(picks).mean for picks in drawn]
    found = agreement(predicted, measured)
    assert found.r_squared > 0.9
    # Within a factor of three: a token that goes to another expert is no effect of second order.
    assert abs(found.bias) < np.log(3)
