# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import pytest
from header_models import header_model

from lilliput.formats import get_format
from lilliput.recipes import machine
from lilliput.recipes.estimate import (
    ATTENTION_OPERATIONS,
    FIRST_READERS,
    CostEstimate,
    TextWork,
    block_bytes,
    estimate,
    method_seconds,
)
from lilliput.recipes.machine import MachineSpeeds, MethodCost
from lilliput.recipes.plan import Plan, resolve, weights_of
from lilliput.records import Role, TensorHeader, TensorPlan


class KnownSpeeds(MachineSpeeds):
    """A machine of round numbers."""

    def _speeds(self, name: str, count: int, measure: object) -> tuple[float, ...]:
        if name.startswith("q"):
            return (1e-6, 1e-9)[:count]
        return ({"start": 4.0, "write": 1e8, "decode": 1e7}.get(name, 1e9),)


def one_pass(plan: Plan, tokens: int) -> float:
    """Seconds at 1e9 operations a second: matrices of the blocks, and attention over half a chunk of 512."""
    blocks = [row for row in plan.rows if row.name.startswith("blk.") and len(row.shape) > 1]
    attention = sum(ATTENTION_OPERATIONS * 512 * row.shape[-1] for row in blocks if row.role is Role.ATTENTION_OUTPUT)
    return 2 * (sum(map(weights_of, blocks)) + attention) * tokens / 1e9


def cost_of(tmp_path: Path, preset: str = "Q4_K_M", *, tokens: int = 0, stored: str = "bf16") -> CostEstimate:
    model = header_model(stored_format=stored)
    plan = resolve(model, preset, statistics_present=True)
    speeds = KnownSpeeds(2, guided=True, cache=tmp_path / "machine.json")
    return estimate(plan, model.headers, file_bytes=10**8, speeds=speeds, text=TextWork(tokens))


def test_time_is_work_over_speed_stage_by_stage(tmp_path: Path) -> None:
    plan = resolve(header_model(), "Q4_K_M", statistics_present=True)
    cost = cost_of(tmp_path, tokens=1000)
    matrices = sum(weights_of(row) for row in plan.rows if len(row.shape) > 1)
    vectors = plan.weights - matrices
    assert list(cost.seconds) == ["start", "read", "calibrate", "quantize", "write", "verify"]
    assert cost.seconds["read"] == pytest.approx((2 * matrices + 4 * vectors) / 1e9)
    assert cost.seconds["calibrate"] == pytest.approx(one_pass(plan, 1000))
    assert cost.seconds["quantize"] == pytest.approx(matrices / 1e6 + vectors / 1e7 + 2 * plan.weights / 1e7)
    assert cost.seconds["write"] == pytest.approx(1.0)
    assert cost.seconds["verify"] == pytest.approx(plan.weights / 1e7)
    assert not {"start", "calibrate"} & set(cost_of(tmp_path).seconds)


def test_hessians_cost_their_sums_and_one_factorization_for_all_that_share_an_input(tmp_path: Path) -> None:
    model = header_model()
    plan = resolve(model, "Q4_K_M", statistics_present=True, method="feedback")
    speeds = KnownSpeeds(2, guided=True, cache=tmp_path / "machine.json")
    text = TextWork(1000, passes=2, sees_hessians=True)
    cost = estimate(plan, model.headers, file_bytes=1, speeds=speeds, text=text)
    first = [row for row in plan.rows if row.role in FIRST_READERS]
    squares = sum(row.shape[-1] ** 2 for row in first if row.name.startswith("blk."))
    assert cost.seconds["calibrate"] == pytest.approx(2 * one_pass(plan, 1000) + 2 * squares * 1000 / 1e9)
    matrices = [row for row in plan.rows if len(row.shape) > 1]
    chosen = [row for row in matrices if row.method == "feedback"]
    assert len(chosen) > len(first) > 4
    expected = sum(weights_of(row) * 1e-6 for row in matrices)
    expected += sum(weights_of(row) * row.shape[-1] * 1e-9 for row in chosen)
    expected += sum(row.shape[-1] ** 3 / 1e9 for row in first)
    vectors = plan.weights - sum(map(weights_of, matrices))
    assert cost.seconds["quantize"] == pytest.approx(expected + vectors / 1e7 + 2 * plan.weights / 1e7)


def test_following_the_float_model_and_tuning_are_counted(tmp_path: Path) -> None:
    model = header_model()
    plan = resolve(model, "Q4_K_M", statistics_present=True, method="feedback")
    speeds = KnownSpeeds(2, guided=True, cache=tmp_path / "machine.json")

    def cost(text: TextWork) -> CostEstimate:
        return estimate(plan, model.headers, file_bytes=1, speeds=speeds, text=text)

    plain, both = cost(TextWork(1000, passes=2)), cost(TextWork(1000, passes=3))
    assert both.seconds["calibrate"] - plain.seconds["calibrate"] == pytest.approx(one_pass(plan, 1000))
    tuned = cost(TextWork(1000, sees_hessians=True, tuned_epochs=6, tuned_bytes_per_weight=56))
    assert tuned.seconds["tune"] == pytest.approx(6 * 4 * 2 * plan.weights * 1000 / 1e9)
    assert tuned.peak_ram_bytes > 56 * plan.weights
    assert "tune" not in plain.seconds


def test_disk_holds_the_files_and_the_ledger(tmp_path: Path) -> None:
    assert 10**8 < cost_of(tmp_path).disk_bytes < 10**8 + 100_000


def test_ram_grows_with_the_largest_tensor_not_with_the_model(tmp_path: Path) -> None:
    def peak(layers: int, vocab_size: int) -> int:
        model = header_model(layers=layers, vocab_size=vocab_size)
        plan = resolve(model, "Q4_K_M", statistics_present=True)
        speeds = KnownSpeeds(2, guided=True, cache=tmp_path / "machine.json")
        return estimate(plan, model.headers, file_bytes=1, speeds=speeds).peak_ram_bytes

    assert peak(4, 32000) == peak(40, 32000)
    assert peak(4, 128000) > peak(4, 32000)


def test_speeds_are_measured_once_and_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "SECONDS_PER_PROBE", 0.0)
    monkeypatch.setattr(machine, "WRITE_SAMPLE_BYTES", 1000)
    cache = tmp_path / "folder" / "machine.json"
    speeds = MachineSpeeds(1, guided=False, cache=cache)
    first = (speeds.flops(), speeds.weights_decoded_per_second(), speeds.bytes_written_per_second())
    assert all(speed > 0 for speed in first)
    again = MachineSpeeds(1, guided=False, cache=cache)
    monkeypatch.setattr(machine, "_rate", lambda *_: pytest.fail("measured again"))
    assert (again.flops(), again.weights_decoded_per_second(), again.bytes_written_per_second()) == first
    assert [path.name for path in cache.parent.iterdir()] == ["machine.json"]


@pytest.mark.parametrize(("busy", "kept"), [(False, machine.KEPT_SECONDS), (True, machine.KEPT_BUSY_SECONDS)])
def test_old_speeds_are_measured_anew_and_those_of_a_busy_machine_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, busy: bool, kept: float
) -> None:
    monkeypatch.setattr(machine, "_is_busy", lambda: busy)
    now, rates = 1e9, iter((1.0, 2.0))
    monkeypatch.setattr(machine.time, "time", lambda: now)
    cache = tmp_path / "machine.json"

    def found() -> tuple[float, float]:
        speeds = MachineSpeeds(1, guided=False, cache=cache)
        speed = speeds.other("work", lambda: next(rates))
        assert speeds.was_busy == busy
        return speed, speeds.age_seconds()

    assert found() == (1.0, 0.0)
    now += kept - 1
    assert found() == (1.0, kept - 1)
    now += 2
    assert found() == (2.0, 0.0)
    # A clock that was set back tells no age.
    now -= 10
    rates = iter((3.0,))
    assert found()[0] == 3.0


@pytest.mark.parametrize("content", ["", "[]", '{"x, threads 1: flops 2048": [1.0]}', '{"a": "b"}', "{"])
def test_a_damaged_cache_is_measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    monkeypatch.setattr(machine, "SECONDS_PER_PROBE", 0.0)
    cache = tmp_path / "machine.json"
    cache.write_text(content)
    assert MachineSpeeds(1, guided=False, cache=cache).flops() > 0
    assert len(json.loads(cache.read_text())) == 1


def test_the_cache_folder_can_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LILLIPUT_CACHE", str(tmp_path))
    assert machine.cache_folder() == tmp_path
    monkeypatch.delenv("LILLIPUT_CACHE")
    assert machine.cache_folder().name == "lilliput"


def test_a_method_cost_splits_into_what_grows_with_columns_and_what_does_not() -> None:
    assert MethodCost(2.0, 0.5).seconds(3, 4) == 3 * 4 * (2.0 + 4 * 0.5)


def test_probes_of_a_method_are_within_sense_and_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "SECONDS_PER_PROBE", 0.0)
    model = header_model()
    plan = resolve(model, "Q4_K", statistics_present=True, method="feedback")
    row = next(row for row in plan.rows if row.method == "feedback")
    speeds = MachineSpeeds(1, guided=True, cache=tmp_path / "machine.json")
    cost = speeds.method_cost(row, model.headers[row.name])
    # Between a nanosecond and a millisecond a weight, whatever the machine is busy with.
    assert 1e-9 < cost.seconds(64, 256) / (64 * 256) < 1e-3
    assert speeds.engine_flops(row.format) > 0
    monkeypatch.setattr(machine, "_hessian_costs", lambda *_: pytest.fail("measured again"))
    assert (
        MachineSpeeds(1, guided=True, cache=tmp_path / "machine.json").method_cost(row, model.headers[row.name]) == cost
    )


def test_every_expert_has_a_hessian_of_its_own(tmp_path: Path) -> None:
    speeds = KnownSpeeds(2, guided=True, cache=tmp_path / "machine.json")

    def cost(shape: tuple[int, ...]) -> tuple[int, float]:
        name, wanted = "blk.0.ffn_down.weight", get_format("q4_k")
        row = TensorPlan(name, name, shape, Role.FFN_DOWN, wanted, "feedback", "")
        header = TensorHeader(name, shape, get_format("bf16"))
        return block_bytes([row], sees_hessians=True), method_seconds(row, header, speeds)

    (one, one_second), (eight, eight_seconds) = cost((64, 512)), cost((8, 64, 512))
    # Weights in float32, two Hessians each; a single factorization at a time.
    assert eight - one == 4 * 7 * (64 * 512 + 2 * 512**2)
    assert eight_seconds == pytest.approx(8 * one_second, rel=0.01)
