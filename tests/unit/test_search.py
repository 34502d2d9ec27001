# SPDX-License-Identifier: Apache-2.0
"""Choices, predictions and the searches by real KL, on made-up problems whose true costs are known."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_llama import write_tiny_llama

from lilliput.containers import open_model
from lilliput.containers.gguf import Gguf
from lilliput.containers.onnx.container import Onnx
from lilliput.errors import FormatError, RecipeError
from lilliput.formats import get_format
from lilliput.search import speed_costs
from lilliput.search.choices import RUNTIMES, Choice, Picks, candidate_formats, choices_of, formats_by_tensor
from lilliput.search.evolve import Refined, SearchOptions, evolve
from lilliput.search.frontier import Point, pareto, picks_from
from lilliput.search.measure import MeasuredKl, Meter, read_measurements
from lilliput.search.predict import CostTable, agreement, fitted_factors
from lilliput.search.problem import Limits, Problem
from lilliput.search.reinforce import reinforce
from lilliput.search.speed_costs import SpeedTable

WINDOWS = 8
SEARCHES = (evolve, reinforce)


def made_up(seed: int = 0, choices: int = 10) -> tuple[Problem, Callable[[Picks], float]]:
    """A problem whose predictions are wrong by a factor a tensor, and the true KL of a configuration."""
    draw = np.random.default_rng(seed)
    formats = tuple(get_format(name) for name in ("q8_0", "q6_k", "q4_k", "q3_k", "q2_k"))
    found, costs = [], []
    for place in range(choices):
        weights = 256 * int(draw.integers(8, 64))
        sizes = tuple(int(item.bits_per_weight * weights / 8) // 32 * 32 for item in formats)
        found.append(Choice((f"blk.{place}.ffn_up.weight",), formats, sizes))
        level = float(draw.lognormal(0.0, 1.0))
        costs.append(tuple(level * 4.0**-item.bits_per_weight for item in formats))
    truth = np.exp(draw.normal(0.0, 0.8, choices))
    problem = Problem(tuple(found), CostTable(tuple(costs)), overhead=1000)
    true_costs = problem.costs.scaled(truth.tolist())
    return problem, true_costs.total


class FakeMeter(Meter):
    """Measures a made-up truth, the same in every window, and counts."""

    def __init__(self, truth: Callable[[Picks], float]) -> None:
        self._truth = truth
        self.measured: list[Picks] = []

    @property
    def windows(self) -> int:
        return WINDOWS

    def kl(self, picks: Picks, windows: int | None = None) -> MeasuredKl:
        self.measured.append(picks)
        return MeasuredKl(np.full(windows or WINDOWS, self._truth(picks)), 1)


def limits_of(problem: Problem) -> Limits:
    return Limits((problem.file_bytes(problem.smallest) + problem.file_bytes(problem.largest)) // 2)


@pytest.mark.parametrize("search", SEARCHES)
def test_a_search_finds_lower_kl_than_wrong_predictions_and_stays_within_the_limits(
    search: Callable[..., Refined],
) -> None:
    problem, truth = made_up()
    limits = limits_of(problem)
    start = problem.solve(limits)
    meter = FakeMeter(truth)
    found = search(problem, limits, start, meter, SearchOptions(evaluations=60))
    assert found.kl == pytest.approx(truth(found.picks))
    assert found.kl < 0.97 * truth(start)
    assert all(problem.is_within(picks, limits) for picks in meter.measured)
    assert found.evaluations <= 60 + 8
    assert [step.kl for step in found.history] == sorted((step.kl for step in found.history), reverse=True)


@pytest.mark.parametrize("search", SEARCHES)
def test_a_search_takes_the_same_way_again(search: Callable[..., Refined]) -> None:
    problem, truth = made_up(3)
    limits = limits_of(problem)
    runs = [
        search(problem, limits, problem.solve(limits), FakeMeter(truth), SearchOptions(evaluations=20, seed=5))
        for _ in range(2)
    ]
    assert runs[0] == runs[1]


@pytest.mark.parametrize("search", SEARCHES)
def test_a_search_without_room_to_move_gives_its_start(search: Callable[..., Refined]) -> None:
    problem, truth = made_up(1, choices=2)
    limits = Limits(problem.file_bytes(problem.smallest))
    found = search(problem, limits, problem.smallest, FakeMeter(truth), SearchOptions(evaluations=10))
    assert found.picks == problem.smallest


def test_infeasible_sizes_name_the_smallest_file() -> None:
    problem, _ = made_up()
    least = problem.file_bytes(problem.smallest)
    with pytest.raises(RecipeError, match=f"{least:,}"):
        problem.solve(Limits(least - 1))
    assert problem.solve(Limits(least)) == problem.smallest


def test_speed_limits_hold_and_infeasible_ones_name_the_fastest() -> None:
    problem, _ = made_up()
    # Narrow formats run faster, but for the narrowest, which is slow to decode.
    seconds = tuple((8.0, 6.0, 4.0, 3.0, 9.0) for _ in problem.choices)
    timed = Problem(problem.choices, problem.costs, problem.overhead, SpeedTable(seconds))
    limits = Limits(problem.file_bytes(problem.largest), seconds=45.0)
    picks = timed.solve(limits)
    assert timed.seconds(picks) <= 45.0
    with pytest.raises(RecipeError, match="nothing here runs at"):
        timed.solve(Limits(problem.file_bytes(problem.largest), seconds=29.0))


def with_loads(problem: Problem, factors: tuple[float, ...]) -> Problem:
    """The same problem, its formats taking so many times their bytes in memory."""
    choices = tuple(
        replace(choice, loads=tuple(int(size * factor) for size, factor in zip(choice.sizes, factors, strict=True)))
        for choice in problem.choices
    )
    return replace(problem, choices=choices)


def test_memory_limits_hold_where_the_smallest_file_is_not_what_takes_least() -> None:
    # The narrowest format is written out to twice its bytes, more than the one before it.
    problem = with_loads(made_up()[0], (1.0, 1.0, 1.0, 1.0, 2.0))
    most = (problem.memory_bytes(problem.lightest) + problem.memory_bytes(problem.largest)) // 2
    limits = Limits(problem.file_bytes(problem.largest), memory_bytes=most)
    picks = problem.solve(limits)
    assert problem.memory_bytes(picks) <= most
    assert 4 not in picks
    full = problem.filled(problem.lightest, limits)
    assert problem.memory_bytes(problem.lightest) < problem.memory_bytes(full) <= most
    both = replace(limits, file_bytes=(problem.file_bytes(picks) + problem.file_bytes(problem.smallest)) // 2)
    assert problem.is_within(problem.solve(both), both)
    with pytest.raises(
        RecipeError, match=f"the least with these formats is {problem.memory_bytes(problem.lightest):,}"
    ):
        problem.solve(replace(limits, memory_bytes=problem.memory_bytes(problem.lightest) - 1))


def test_memory_and_speed_limits_hold_together() -> None:
    problem = with_loads(made_up()[0], (1.0, 1.0, 1.0, 1.0, 2.0))
    seconds = tuple((8.0, 6.0, 4.0, 3.0, 9.0) for _ in problem.choices)
    timed = replace(problem, speed=SpeedTable(seconds))
    most = (timed.memory_bytes(timed.lightest) + timed.memory_bytes(timed.largest)) // 2
    limits = Limits(timed.file_bytes(timed.largest), seconds=45.0, memory_bytes=most)
    assert timed.is_within(timed.solve(limits), limits)


@pytest.mark.parametrize(("name", "most"), [("lilliput", 2.0), ("llama.cpp", 1.0)])
def test_only_this_engine_is_taken_to_write_codebook_formats_out(name: str, most: float, tmp_path: Path) -> None:
    source = open_model(write_tiny_llama(tmp_path / "model", ffn=256))
    choices = choices_of(source, RUNTIMES[name], ("iq2_xxs", "q8_0"))
    for choice in choices:
        wide, narrow = ((choice.loads or choice.sizes)[place] / choice.sizes[place] for place in (0, 1))
        assert wide == pytest.approx(1.0, abs=0.25)
        assert narrow >= 1.0
        assert (narrow > 1.1) == (most > 1.0)


def test_a_larger_budget_never_has_a_higher_predicted_kl() -> None:
    problem, _ = made_up()
    low, high = problem.file_bytes(problem.smallest), problem.file_bytes(problem.largest)
    found = [problem.predicted(problem.solve(Limits(size))) for size in range(low, high, (high - low) // 20)]
    assert found == sorted(found, reverse=True)


def test_measurements_correct_wrong_predictions() -> None:
    problem, truth = made_up(2)
    draw = np.random.default_rng(0)
    configurations = [tuple(int(p) for p in draw.integers(0, 5, len(problem.choices))) for _ in range(60)]
    measured = {picks: truth(picks) for picks in configurations}
    corrected = problem.costs.scaled(fitted_factors(problem.costs, measured, prior=0.01).tolist())
    fresh = [tuple(int(p) for p in draw.integers(0, 5, len(problem.choices))) for _ in range(40)]
    wanted = [truth(picks) for picks in fresh]
    before = agreement([problem.costs.total(picks) for picks in fresh], wanted)
    after = agreement([corrected.total(picks) for picks in fresh], wanted)
    assert after.r_squared > before.r_squared
    assert abs(after.bias) < abs(before.bias)


def test_candidates_fit_the_rows_and_unknown_names_are_refused() -> None:
    assert {item.name for item in candidate_formats(512)} >= {"q4_k", "iq3_s", "q8_0", "f16"}
    assert all(96 % item.block_size == 0 for item in candidate_formats(96))
    assert [item.name for item in candidate_formats(96, ("q4_k", "q8_0"))] == ["q8_0"]
    with pytest.raises(FormatError, match="unknown number format"):
        candidate_formats(256, ("q4_x",))


def test_vllm_gets_one_format_for_fused_matrices(tmp_path: Path) -> None:
    source = open_model(write_tiny_llama(tmp_path / "model", layers=1, is_tied=True))
    free = choices_of(source, RUNTIMES["llama.cpp"])
    fused = choices_of(source, RUNTIMES["vllm"], container=Gguf())
    assert all(len(choice.names) == 1 for choice in free)
    assert {len(choice.names) for choice in fused} == {1, 2, 3}
    assert {name for choice in fused for name in choice.names} == {choice.names[0] for choice in free}
    chosen = formats_by_tensor(fused, tuple(1 for _ in fused))
    assert chosen["blk.0.attn_q.weight"] is chosen["blk.0.attn_v.weight"]


def test_a_folder_has_its_own_formats_and_sizes_and_keeps_what_its_readers_want_as_floats(tmp_path: Path) -> None:
    source = open_model(write_tiny_llama(tmp_path / "model", layers=1))
    choices = choices_of(source, RUNTIMES["vllm"], ("bf16", "int8_channel", "int4_g32"))
    roles = {name.split(".")[-2] for choice in choices for name in choice.names}
    assert roles == {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"}
    down = next(choice for choice in choices if choice.names == ("blk.0.ffn_down.weight",))
    header = source.headers["blk.0.ffn_down.weight"]
    weights = header.rows * header.columns
    # Codes, scales (float32, as this model's own floats are) and the shape as two int64.
    expected = {"bf16": 2 * weights, "int8_channel": weights + 4 * header.rows + 16}
    expected["int4_g32"] = weights // 2 + 4 * (weights // 32) + 16
    assert {item.name: size for item, size in zip(down.formats, down.sizes, strict=True)} == expected
    with pytest.raises(RecipeError, match="compressed-tensors file cannot hold"):
        choices_of(source, RUNTIMES["vllm"], ("q4_k",))
    with pytest.raises(RecipeError, match=r"not '\.gguf'"):
        RUNTIMES["onnxruntime"].container(Path("a.gguf"))


@pytest.mark.parametrize(("ffn", "advice"), [(96, "add Q8_0"), (84, "add F16")])
def test_rows_that_no_candidate_divides_are_refused_with_one_that_does(ffn: int, advice: str, tmp_path: Path) -> None:
    source = open_model(write_tiny_llama(tmp_path, hidden=256, ffn=ffn))
    with pytest.raises(RecipeError, match=rf"ffn_down.weight: rows of {ffn} weights fit none.*{advice}"):
        choices_of(source, RUNTIMES["llama.cpp"], ("q4_k", "q6_k"))


def test_a_tied_head_is_one_choice_and_vectors_are_none(tmp_path: Path) -> None:
    tied = choices_of(open_model(write_tiny_llama(tmp_path / "a", is_tied=True)), RUNTIMES["llama.cpp"])
    untied = choices_of(open_model(write_tiny_llama(tmp_path / "b")), RUNTIMES["llama.cpp"])
    names = {name for choice in tied for name in choice.names}
    assert "token_embd.weight" in names
    assert "output.weight" not in names
    assert {name for choice in untied for name in choice.names} - names == {"output.weight"}
    assert not any("norm" in name for name in names)


def test_cut_lines_of_measurements_are_done_again(tmp_path: Path) -> None:
    file = tmp_path / "measured.jsonl"
    whole = json.dumps({"configuration": "a", "window_sums": [1.0, 2.0]})
    file.write_text(f'\n{whole}\n{{"configuration": "b", "window_su\n{whole.replace("a", "c", 1)[:-9]}')
    assert read_measurements(file) == {"a": [1.0, 2.0]}


def point_at(size: int, kl: float) -> Point:
    return Point(size, 4.0, kl, kl, kl, kl, None, "exact", {"blk.0.ffn_up.weight": "q4_k"})


def test_the_frontier_keeps_only_what_nothing_beats() -> None:
    points = [point_at(300, 0.1), point_at(100, 0.9), point_at(200, 0.95), point_at(250, 0.5), point_at(100, 1.0)]
    assert [(item.bytes, item.kl) for item in pareto(points)] == [(100, 0.9), (250, 0.5), (300, 0.1)]


def test_a_recorded_configuration_of_other_candidates_is_refused() -> None:
    problem, _ = made_up(choices=1)
    assert picks_from(problem.choices, {"blk.0.ffn_up.weight": "q4_k"}) == (2,)
    with pytest.raises(RecipeError, match="no candidate"):
        picks_from(problem.choices, {"blk.0.ffn_up.weight": "iq2_s"})


def test_candidates_for_onnx_runtime_are_what_its_files_hold(tmp_path: Path) -> None:
    source = open_model(write_tiny_llama(tmp_path / "m"))
    for choice in choices_of(source, RUNTIMES["onnxruntime"]):
        assert len(choice.formats) >= 8
        assert all(Onnx().holds(item) and item.can_encode for item in choice.formats)
        assert list(choice.sizes) == sorted(choice.sizes, reverse=True)
    named = choices_of(source, RUNTIMES["onnxruntime"], ("int4_g32",))
    assert all([item.name for item in choice.formats] == ["int4_g32"] for choice in named)


def test_a_busy_machine_is_told_by_how_slowly_it_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed_costs, "PROBE_BYTES", 1000)
    clock = iter([0.0, 1.0, 10.0, 12.0, 20.0, 20.5, 30.0, 31.0])
    monkeypatch.setattr(speed_costs.time, "perf_counter", lambda: next(clock))
    probe = speed_costs.MemoryProbe(tmp_path / "memory.json")
    assert [probe.slowdown() for _ in range(3)] == [1.0, 2.0, 1.0]
    # The best rate, 2000 bytes a second, outlives the process.
    assert speed_costs.MemoryProbe(tmp_path / "memory.json").slowdown() == 2.0
