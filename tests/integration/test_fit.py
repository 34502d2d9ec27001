# SPDX-License-Identifier: Apache-2.0
"""`fit` from end to end on a small model: budgets hold, killed runs continue, other points come without a search."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_llama import TEXT, write_tiny_llama

from lilliput import workflows
from lilliput.calibration.data import calibration_chunks
from lilliput.containers import open_model
from lilliput.errors import CalibrationError, LilliputError, PublishError, RecipeError
from lilliput.evaluation.chunks import Chunks
from lilliput.fitting import FitOptions, Goal, fit, fit_again, plan_fit
from lilliput.formats import get_format
from lilliput.pipeline.work_folder import WorkFolder
from lilliput.recipes import machine
from lilliput.recipes.ledger import ledger_path
from lilliput.reports.frontier import read_frontier
from lilliput.search import measure
from lilliput.search.candidates import CandidateOptions, make_candidates
from lilliput.search.choices import RUNTIMES, choices_of
from lilliput.search.measure import Meter
from lilliput.search.predict import agreement, measured_costs, predicted_costs
from lilliput.search.sensitivity import measure_sensitivity

torch = pytest.importorskip("torch")
# The package's own name for it is the function.
fit_module = importlib.import_module("lilliput.fitting.fit")
explore_module = importlib.import_module("lilliput.fitting.explore")

FORMATS = ("q8_0", "q5_0", "q4_0", "iq4_nl")
OPTIONS = FitOptions(effort="fast", formats=FORMATS, search="evolution", evaluations=4, threads=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    return write_tiny_llama(folder, hidden=64, ffn=96, heads=2, kv_heads=1, vocab=300, context=64)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT * 40)
    return path


def sizes(model: Path) -> tuple[int, int]:
    """Bytes of the smallest and the largest file of FORMATS."""
    found = [workflows.plan(model, name).bytes for name in ("Q4_0", "Q8_0")]
    return found[0], found[1]


@pytest.fixture(scope="module")
def fitted(model: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the middle size, its search beside it."""
    output = tmp_path_factory.mktemp("fitted") / "model.gguf"
    fit(model, Goal(size=sum(sizes(model)) // 2), output, text=[text], options=OPTIONS)
    return output


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_file_has_the_size_that_was_asked_for(model: Path, fitted: Path) -> None:
    wanted = sum(sizes(model)) // 2
    # The smallest step: a 32 x 64 matrix from one format to the next.
    assert 0.98 * wanted <= fitted.stat().st_size <= wanted
    ledger = json.loads((fitted.parent / "model.gguf.ledger.json").read_text())
    assert ledger["output"] == ["model.gguf"]
    assert any("predicted to add" in entry["reason"] for entry in ledger["entries"])
    assert {entry["format"] for entry in ledger["entries"]} <= {*map(str.upper, FORMATS), "F32"}


def test_the_same_command_again_changes_nothing(model: Path, text: Path, fitted: Path) -> None:
    before = fitted.stat().st_mtime_ns
    again = fit(model, Goal(size=sum(sizes(model)) // 2), fitted, text=[text], options=OPTIONS)
    assert again.is_up_to_date
    assert again.bytes == fitted.stat().st_size
    assert fitted.stat().st_mtime_ns == before
    with pytest.raises(PublishError, match="--force"):
        fit(model, Goal(size=sizes(model)[1]), fitted, text=[text], options=OPTIONS)


def test_another_point_comes_from_the_work_folder_without_measuring_candidates(fitted: Path, tmp_path: Path) -> None:
    work = fitted.with_name("model.gguf.fit")
    stages: list[str] = []

    @contextmanager
    def stage(name: str) -> Iterator[workflows.Progress]:
        stages.append(name)
        yield lambda _done, _total: None

    before = {path.name: path.stat().st_mtime_ns for path in (work / "candidates").glob("*.safetensors")}
    wanted = fitted.stat().st_size - 3000
    result = fit_again(
        work, Goal(size=wanted), tmp_path / "small.gguf", options=replace(OPTIONS, force=True), stages=stage
    )
    assert result.output.stat().st_size <= wanted
    assert "searching" not in stages
    assert before == {path.name: path.stat().st_mtime_ns for path in (work / "candidates").glob("*.safetensors")}
    frontier = json.loads((work / "frontier.json").read_text())
    assert len(frontier["frontier"]) >= 3
    assert all(point["kl"] > 0 for point in frontier["measured"])
    drawn = read_frontier(work / "frontier.json")
    assert len(drawn.points) == len(frontier["frontier"])
    assert set(drawn.sensitivity) == set(frontier["frontier"][0]["formats"])


def test_a_kl_target_is_met_on_the_selection_text(model: Path, text: Path, fitted: Path, tmp_path: Path) -> None:
    work = fitted.with_name("model.gguf.fit")
    points = json.loads((work / "frontier.json").read_text())["frontier"]
    wanted = float(np.sqrt(points[0]["kl"] * points[-1]["kl"]))
    result = fit_again(work, Goal(max_kld=wanted), tmp_path / "kl.gguf", options=replace(OPTIONS, force=True))
    assert 0.9 * wanted <= result.selection.value <= wanted
    with pytest.raises(RecipeError, match="--max-kld 1e-09"):
        fit_again(work, Goal(max_kld=1e-9), tmp_path / "never.gguf", options=OPTIONS)


def test_goals_out_of_reach_name_the_nearest(fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A machine that is always as fast: rates go into a copy of the work folder.
    monkeypatch.setattr(explore_module, "decode_seconds", lambda *_: 1e-3)
    work = Path(shutil.copytree(fitted.with_name("model.gguf.fit"), tmp_path / "work"))
    with pytest.raises(RecipeError, match="the smallest with these formats"):
        fit_again(work, Goal(size=1000), tmp_path / "a.gguf", options=OPTIONS)
    with pytest.raises(RecipeError, match=r"--bpw 1: the smallest mix of these formats has \d.\d+ bits per weight"):
        fit_again(work, Goal(bits_per_weight=1.0), tmp_path / "a.gguf", options=OPTIONS)
    with pytest.raises(RecipeError, match="the cache of 64 tokens takes"):
        fit_again(work, Goal(ram=20_000, context=64), tmp_path / "b.gguf", options=OPTIONS)
    with pytest.raises(
        RecipeError, match=r"nothing here runs at 1000000000.0 tokens a second: .* predicted to make 1000\.0"
    ):
        fit_again(work, Goal(min_speed=1e9), tmp_path / "c.gguf", options=OPTIONS)
    with pytest.raises(RecipeError, match="needs a target"):
        Goal()


def test_memory_counts_the_cache(model: Path, fitted: Path, tmp_path: Path) -> None:
    work = fitted.with_name("model.gguf.fit")
    # 2 layers, keys and values, 32 values each in 2 bytes, 64 tokens.
    cache = 2 * 2 * 32 * 2 * 64
    most = sizes(model)[0] + cache + 2000
    result = fit_again(work, Goal(ram=most, context=64), tmp_path / "ram.gguf", options=OPTIONS)
    assert result.ram_bytes == result.bytes + cache
    assert result.ram_bytes <= most


def test_a_speed_target_holds_when_measured(fitted: Path, tmp_path: Path) -> None:
    work = fitted.with_name("model.gguf.fit")
    goal = Goal(size=fitted.stat().st_size, min_speed=1.0)
    result = fit_again(work, goal, tmp_path / "speed.gguf", options=OPTIONS)
    assert result.tokens_per_second is not None
    assert result.tokens_per_second >= 1.0
    rates = json.loads((work / "speed-1.json").read_text())
    assert set(rates) == set(FORMATS)
    assert all(rate > 0 for rate in rates.values())


def test_bits_per_weight_are_not_exceeded(fitted: Path, tmp_path: Path) -> None:
    work = fitted.with_name("model.gguf.fit")
    result = fit_again(work, Goal(bits_per_weight=6.0), tmp_path / "bpw.gguf", options=OPTIONS)
    assert 5.8 <= result.bits_per_weight <= 6.0


def test_a_changed_text_is_refused_and_a_short_one_too(model: Path, fitted: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text(TEXT * 39)
    options = replace(OPTIONS, work=fitted.with_name("model.gguf.fit"), force=True)
    with pytest.raises(RecipeError, match="another search \\(different: text\\)"):
        fit(model, Goal(size=10**6), tmp_path / "a.gguf", text=[other], options=options)
    other.write_text(TEXT)
    with pytest.raises(CalibrationError, match="give more text"):
        fit(model, Goal(size=10**6), tmp_path / "a.gguf", text=[other], options=OPTIONS)


def test_a_folder_without_a_search_or_of_another_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no finished search"):
        fit_again(tmp_path, Goal(size=10**6), tmp_path / "a.gguf")
    (tmp_path / "identity.json").write_text(json.dumps({"schema": 1, "request": {"model": "gulliver"}}))
    with pytest.raises(RecipeError, match="another version"):
        fit_again(tmp_path, Goal(size=10**6), tmp_path / "a.gguf")


KILLED = """
import os, signal, sys
from contextlib import contextmanager
from pathlib import Path
from lilliput.fitting import FitOptions, Goal, fit
model, text, output, size, stage, step = sys.argv[1:]
@contextmanager
def stages(name):
    def progress(done, total):
        if name == stage and done >= int(step):
            os.kill(os.getpid(), signal.SIGKILL)
    yield progress
formats = ("q8_0", "q5_0", "q4_0", "iq4_nl")
options = FitOptions(effort="fast", formats=formats, search="evolution", evaluations=4, threads=1)
fit(model, Goal(size=int(size)), output, text=[Path(text)], options=options, stages=stages)
"""


@pytest.mark.parametrize(("stage", "step"), [("making candidates", 20), ("quantizing", 1)])
def test_a_killed_search_continues_and_ends_in_the_same_bytes(
    model: Path, text: Path, fitted: Path, tmp_path: Path, stage: str, step: int
) -> None:
    output, size = tmp_path / "model.gguf", sum(sizes(model)) // 2
    command = [sys.executable, "-c", KILLED, str(model), str(text), str(output), str(size), stage, str(step)]
    killed = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    assert not output.exists()
    fit(model, Goal(size=size), output, text=[text], options=OPTIONS)
    assert digest(output) == digest(fitted)


def test_a_search_killed_after_its_file_was_put_in_place_finishes_without_force(
    model: Path, text: Path, fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, goal = tmp_path / "model.gguf", Goal(size=sum(sizes(model)) // 2)

    def killed(path: Path) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(importlib.import_module("lilliput.fitting.fit"), "nbytes_of", killed)
        with pytest.raises(KeyboardInterrupt):
            fit(model, goal, output, text=[text], options=OPTIONS)
    assert ledger_path(output).exists()
    found = fit(model, goal, output, text=[text], options=OPTIONS)
    assert not found.is_up_to_date
    assert digest(output) == digest(fitted)
    assert fit(model, goal, output, text=[text], options=OPTIONS).is_up_to_date


KILLED_ANYWHERE = """
import os, random, signal, sys, threading, time
from contextlib import contextmanager
from pathlib import Path
from lilliput.fitting import FitOptions, Goal, fit
model, text, output, size, seed = sys.argv[1:]
draw = random.Random(int(seed))
left = draw.randint(1, 60)
def kill_soon():
    time.sleep(draw.uniform(0.0, 0.05))
    os.kill(os.getpid(), signal.SIGKILL)
def progress(done, total):
    global left
    left -= 1
    if left == 0:
        threading.Thread(target=kill_soon, daemon=True).start()
@contextmanager
def stages(name):
    yield progress
formats = ("q8_0", "q5_0", "q4_0", "iq4_nl")
options = FitOptions(effort="fast", formats=formats, search="evolution", evaluations=4, threads=1)
fit(model, Goal(size=int(size)), output, text=[Path(text)], options=options, stages=stages)
"""


def test_kills_at_random_moments_one_after_another_change_nothing(
    model: Path, text: Path, fitted: Path, tmp_path: Path
) -> None:
    output, size = tmp_path / "model.gguf", sum(sizes(model)) // 2
    ends = []
    for seed in range(3):
        command = [sys.executable, "-c", KILLED_ANYWHERE, str(model), str(text), str(output), str(size), str(seed)]
        done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, check=False)
        ends.append(done.returncode)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr.decode()[-2000:]
    assert -signal.SIGKILL in ends
    fit(model, Goal(size=size), output, text=[text], options=OPTIONS)
    assert digest(output) == digest(fitted)


def test_the_plan_of_a_search_tells_what_it_takes_without_beginning(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "SECONDS_PER_PROBE", 0.0)
    monkeypatch.setenv("LILLIPUT_CACHE", str(tmp_path / "cache"))
    smallest, largest = sizes(model)
    planned = plan_fit(model, Goal(size=sum(sizes(model)) // 2), text=[text], options=OPTIONS)
    # The preset keeps its embedding wider than a search has to.
    assert 0.8 * smallest < planned.smallest < smallest
    assert planned.largest == pytest.approx(largest, rel=0.01)
    assert planned.candidates == planned.tensors * len(FORMATS)
    assert list(planned.cost.seconds) == ["start", "candidates", "sensitivity", "measuring", "quantize"]
    assert all(seconds > 0 for seconds in planned.cost.seconds.values())
    assert planned.to_json()["seconds"]["total"] == pytest.approx(sum(planned.cost.seconds.values()))  # type: ignore
    assert {path.name for path in tmp_path.iterdir()} == {"cache"}
    # A search that has more to choose among, or more text, takes longer.
    wider = plan_fit(model, Goal(bits_per_weight=6), text=[text], options=replace(OPTIONS, formats=("f16", *FORMATS)))
    assert wider.cost.seconds["candidates"] > planned.cost.seconds["candidates"]
    assert wider.cost.disk_bytes > planned.cost.disk_bytes
    with pytest.raises(RecipeError, match=f"{planned.smallest:,}"):
        plan_fit(model, Goal(size=1000), text=[text], options=OPTIONS)


def test_large_models_are_compared_on_a_part_of_the_text_and_measured_on_all(
    model: Path, text: Path, fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_module, "MEASURED_WORK", 1.0)
    # What the original predicts goes to a file without a name when it is large.
    monkeypatch.setattr(measure, "KEPT_BYTES", 0)
    goal, options = Goal(size=sizes(model)[1]), replace(OPTIONS, search="none")
    result = fit(model, goal, tmp_path / "a.gguf", text=[text], options=options)
    lines = (result.work / "measured.jsonl").read_text().split("\n")
    windows = {len(json.loads(line)["window_sums"]) for line in lines if line}
    assert windows == {fit_module.FEWEST_EXPLORED}
    assert not list(result.work.glob("original*"))


@pytest.mark.parametrize(
    ("runtime", "suffix", "formats"),
    [("vllm", ".compressed-tensors", ("bf16", "int8_channel", "int4_g32")), ("onnxruntime", ".onnx", ())],
)
def test_folders_of_other_runtimes_are_fitted_to_a_size(
    model: Path, text: Path, tmp_path: Path, runtime: str, suffix: str, formats: tuple[str, ...]
) -> None:
    options = replace(OPTIONS, runtime=runtime, formats=formats, search="none")
    planned = plan_fit(model, Goal(bits_per_weight=16), text=[text], options=options)
    size, output = (2 * planned.smallest + planned.largest) // 3, tmp_path / f"model{suffix}"
    result = fit(model, Goal(size=size), output, text=[text], options=options)
    assert result.output.is_dir()
    assert result.bytes == sum(path.stat().st_size for path in output.rglob("*"))
    assert 0.95 * size <= result.bytes <= size
    assert 0 < result.held_out.value < 0.1
    ledger = json.loads((tmp_path / f"model{suffix}.ledger.json").read_text())
    assert {entry["format"] for entry in ledger["entries"]} - {"F32"}
    again = fit(model, Goal(size=size), output, text=[text], options=options)
    assert again.is_up_to_date
    with pytest.raises(RecipeError, match="--min-speed"):
        fit(model, Goal(min_speed=1.0), tmp_path / f"fast{suffix}", text=[text], options=options)


def test_predictions_agree_with_measured_kl(model: Path, text: Path, tmp_path: Path) -> None:
    """At 4 bits and more the second-order form holds: each configuration within a factor, all of them correlated."""
    source = open_model(model)
    chunks = calibration_chunks(source.vocabulary(), [text], chunk_size=64)
    choices = choices_of(source, RUNTIMES["llama.cpp"], ("f16", *FORMATS))
    with WorkFolder(tmp_path / "work", "key") as folder:
        sensitivity = measure_sensitivity(source, chunks[:24], tmp_path)
        candidates = make_candidates(source, choices, chunks[:24], folder, CandidateOptions("searched_scales"))
        costs = predicted_costs(source, choices, candidates, sensitivity)
        meter = Meter(source, choices, candidates, Chunks(chunks[24:40]), tmp_path / "measured.jsonl", threads=1)
        draw = np.random.default_rng(0)
        # From almost nothing to much: neighbouring formats, at each of four levels.
        drawn = [tuple(int(p) for p in draw.integers(n % 4, n % 4 + 2, len(choices))) for n in range(12)]
        found = agreement([costs.total(picks) for picks in drawn], [meter.kl(picks).mean for picks in drawn])
        steps: list[tuple[int, int]] = []
        scaled = measured_costs(
            choices, candidates, lambda picks: meter.kl(picks).mean, lambda done, total: steps.append((done, total))
        )
        fallback = agreement([scaled.total(picks) for picks in drawn], [meter.kl(picks).mean for picks in drawn])
    assert steps == [(done, len(choices) + 1) for done in range(2, len(choices) + 2)]
    assert fallback.r_squared > 0.9
    assert found.r_squared > 0.9
    assert abs(found.bias) < 0.7
    assert get_format("q8_0") in choices[0].formats


def test_an_unknown_runtime_or_search_is_refused(model: Path, text: Path, tmp_path: Path) -> None:
    for options in (
        replace(OPTIONS, runtime="tensorrt"),
        replace(OPTIONS, search="luck"),
        replace(OPTIONS, sensitivity="guess"),
    ):  # type: ignore[arg-type]
        with pytest.raises(LilliputError, match="known:"):
            fit(model, Goal(size=10**6), tmp_path / "a.gguf", text=[text], options=options)
