# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import pytest
from header_models import header_model

from lilliput.recipes import estimate as module
from lilliput.recipes.estimate import CostEstimate, MachineSpeeds, TextWork, estimate
from lilliput.recipes.plan import resolve


class KnownSpeeds(MachineSpeeds):
    """A machine of round numbers."""

    def _speed(self, name: str, measure: object) -> float:
        if name.startswith("q"):
            return 1e6
        return {"flops": 1e9, "write": 1e8, "decode": 1e7, "hash": 1e9}.get(name, 1e9)


def cost_of(tmp_path: Path, preset: str = "Q4_K_M", *, tokens: int = 0, stored: str = "bf16") -> CostEstimate:
    model = header_model(stored_format=stored)
    plan = resolve(model, preset, statistics_present=True)
    speeds = KnownSpeeds(2, guided=True, cache=tmp_path / "machine.json")
    return estimate(plan, model.headers, file_bytes=10**8, speeds=speeds, text=TextWork(tokens))


def test_time_is_work_over_speed_stage_by_stage(tmp_path: Path) -> None:
    plan = resolve(header_model(), "Q4_K_M", statistics_present=True)
    cost = cost_of(tmp_path, tokens=1000)
    matrices = sum(module.weights_of(row) for row in plan.rows if len(row.shape) > 1)
    vectors = plan.weights - matrices
    assert list(cost.seconds) == ["read", "calibrate", "quantize", "write", "verify"]
    assert cost.seconds["read"] == pytest.approx((2 * matrices + 4 * vectors) / 1e9)
    assert cost.seconds["calibrate"] == pytest.approx(2 * plan.weights * 1000 / 1e9)
    assert cost.seconds["quantize"] == pytest.approx(matrices / 1e6 + vectors / 1e7 + 2 * plan.weights / 1e7)
    assert cost.seconds["write"] == pytest.approx(1.0)
    assert cost.seconds["verify"] == pytest.approx(plan.weights / 1e7)
    assert "calibrate" not in cost_of(tmp_path).seconds


def test_following_the_float_model_and_tuning_are_counted(tmp_path: Path) -> None:
    model = header_model()
    plan = resolve(model, "Q4_K_M", statistics_present=True, method="feedback")
    speeds = KnownSpeeds(2, guided=True, cache=tmp_path / "machine.json")

    def cost(text: TextWork) -> CostEstimate:
        return estimate(plan, model.headers, file_bytes=1, speeds=speeds, text=text)

    plain, both = cost(TextWork(1000)), cost(TextWork(1000, follows_float=True))
    one_pass = 2 * plan.weights * 1000 / 1e9
    assert both.seconds["calibrate"] - plain.seconds["calibrate"] == pytest.approx(one_pass)
    tuned = cost(TextWork(1000, tuned_epochs=6, tuned_bytes_per_weight=56))
    assert tuned.seconds["tune"] == pytest.approx(6 * 4 * one_pass)
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
    monkeypatch.setattr(module, "SECONDS_PER_PROBE", 0.0)
    monkeypatch.setattr(module, "WRITE_SAMPLE_BYTES", 1000)
    cache = tmp_path / "folder" / "machine.json"
    speeds = MachineSpeeds(1, guided=False, cache=cache)
    first = (speeds.flops(), speeds.weights_decoded_per_second(), speeds.bytes_written_per_second())
    assert all(speed > 0 for speed in first)
    again = MachineSpeeds(1, guided=False, cache=cache)
    monkeypatch.setattr(module, "_rate", lambda *_: pytest.fail("measured again"))
    assert (again.flops(), again.weights_decoded_per_second(), again.bytes_written_per_second()) == first
    assert [path.name for path in cache.parent.iterdir()] == ["machine.json"]


@pytest.mark.parametrize("content", ["", "[]", '{"a": "b"}', "{"])
def test_a_damaged_cache_is_measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    monkeypatch.setattr(module, "SECONDS_PER_PROBE", 0.0)
    cache = tmp_path / "machine.json"
    cache.write_text(content)
    assert MachineSpeeds(1, guided=False, cache=cache).flops() > 0
    assert len(json.loads(cache.read_text())) == 1


def test_the_cache_folder_can_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LILLIPUT_CACHE", str(tmp_path))
    assert module.cache_folder() == tmp_path
    monkeypatch.delenv("LILLIPUT_CACHE")
    assert module.cache_folder().name == "lilliput"
