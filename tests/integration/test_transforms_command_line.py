# SPDX-License-Identifier: Apache-2.0
"""Transforms from the command line to the file, its ledger and its logits."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from tiny_llama import TEXT, write_tiny_llama

from lilliput.calibration.block_stream import BlockStream
from lilliput.containers import open_model
from lilliput.pipeline.transform_model import decided, outlined
from lilliput.recipes.making import found_ledger, making
from lilliput.recipes.plan import Plan
from lilliput.runtime.session import EngineOptions, Session
from lilliput.transforms import parse_transform
from lilliput.workflows import Guidance, Progress, QuantizeOptions, quantize

torch = pytest.importorskip("torch")

Run = Callable[..., tuple[int, str, str]]
ALL = ("untie", "smooth_quant:0.5", "residual_rotation", "value_rotation", "awq_scaling")


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tied") / "tied"
    return write_tiny_llama(folder, hidden=64, ffn=96, layers=2, heads=2, kv_heads=1, vocab=300, is_tied=True)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT * 30)
    return path


def words_of(transforms: tuple[str, ...]) -> list[str]:
    return ["--threads", "1", "--tokens", "2048", *(word for name in transforms for word in ("--transform", name))]


def logits(path: Path) -> np.ndarray:
    with closing(open_model(path)) as source:
        session = Session(source, EngineOptions(threads=1, activations="f32", kv_format="f32"))
        return session.forward(list(range(20, 60)), "all")


def test_a_rewritten_model_in_floats_says_what_the_original_said(
    run: Run, tied: Path, text: Path, tmp_path: Path
) -> None:
    output = tmp_path / "f32.gguf"
    code, _, error = run("quantize", tied, "--to", "F32", "-o", output, "--text", text, *words_of(ALL))
    assert code == 0, error
    wanted, found = logits(tied), logits(output)
    # Float32 sums of up to 96 terms through two layers, on either side.
    assert np.abs(found - wanted).max() <= 2 * 2 * 600 * 2.0**-24 * np.abs(wanted).max()
    assert not np.array_equal(found, wanted)


def test_the_models_own_code_sees_the_rewritten_model(tied: Path) -> None:
    names = ("untie", "residual_rotation", "value_rotation")
    with closing(open_model(tied)) as original:
        source = outlined(original, [parse_transform(name) for name in names])
        plan = Plan("test", "tied", ())
        turned = decided(source, plan, None, lambda _: None, threads=1).source
        tokens = torch.arange(20, 60)[None]
        with torch.inference_mode():
            found, wanted = (
                stream.logits(tokens, stream.all_values()) for stream in (BlockStream(turned), BlockStream(original))
            )
        assert "output.weight" in BlockStream(turned).all_values()
    # Float32 sums of up to 96 terms through two layers, on either side.
    assert float((found - wanted).abs().max()) <= 2 * 2 * 600 * 2.0**-24 * float(wanted.abs().max())


@pytest.mark.parametrize("effort", ["fast", "balanced"])
def test_every_transform_reaches_the_file_and_the_ledger(
    run: Run, tied: Path, text: Path, tmp_path: Path, effort: str
) -> None:
    output = tmp_path / f"{effort}.gguf"
    words = ("quantize", tied, "--to", "Q4_0", "-o", output, "--text", text, "--effort", effort, *words_of(ALL))
    code, out, error = run(*words, "--json")
    assert code == 0, error
    ledger = json.loads(Path(json.loads(out)["ledger"]).read_text())
    assert [entry["transform"] for entry in ledger["transforms"] if entry["edge"] == "blk.0.ffn_norm"] == [
        "smooth_quant", "awq_scaling",
    ]  # fmt: skip
    by_name = {(entry["transform"], entry["edge"]): entry for entry in ledger["transforms"]}
    assert by_name["smooth_quant", "blk.1.ffn_up"]["strength"] == 0.5
    assert by_name["residual_rotation", "residual"]["strength"] is None
    searched = by_name["awq_scaling", "blk.1.ffn_up"]
    assert 0.0 <= searched["strength"] <= 1.0
    assert searched["loss_ratio"] <= 1.0
    assert "output.weight" in {entry["name"] for entry in ledger["entries"]}
    assert all(entry["tokens"] for entry in ledger["entries"] if entry["name"].startswith("blk.1.ffn_down"))
    assert ledger["fingerprints"]["original"] != ledger["fingerprints"]["model"]
    assert not np.array_equal(logits(output), logits(tied))
    with closing(open_model(output)) as source:
        command = making(source, found_ledger(source)[0]).command
    assert " ".join(word for name in ALL for word in ("--transform", name)) in command
    code, out, _ = run(*words)
    assert code == 0
    assert "up to date" in out
    code, _, error = run(*words[:-1], "awq_scaling:0.5")
    assert code == 1  # another strength is another file, and --force was not given
    assert "exists" in error


class Stopped(BaseException):
    """As sudden as a signal inside one process can be."""


def test_a_run_that_was_killed_ends_in_the_same_bytes_at_another_thread_count(
    tied: Path, text: Path, tmp_path: Path
) -> None:
    chunks, layers = 4, 2
    names = ("smooth_quant:0.5", "value_rotation", "awq_scaling")
    seen: list[int] = []

    def stop(done: int, total: int) -> None:
        # Collecting statistics and writing count other totals.
        if total == (2 * layers + 1) * chunks and done >= 3 * chunks:
            raise Stopped

    def count(done: int, total: int) -> None:
        if total == (2 * layers + 1) * chunks:
            seen.append(done)

    def made(output: Path, threads: int, progress: Progress | None = None) -> bytes:
        options = QuantizeOptions(effort="balanced", transforms=names, threads=threads, tokens=512 * chunks)
        quantize(tied, "Q4_0", output, guidance=Guidance(text=(text,)), options=options, progress=progress)
        return output.read_bytes()

    killed = tmp_path / "killed" / "model.gguf"
    killed.parent.mkdir()
    with pytest.raises(Stopped):
        made(killed, 2, stop)
    assert made(killed, 1, count) == made(tmp_path / "model.gguf", 1)
    assert seen[0] > chunks, "the finished block was done again"


def test_plan_shows_transforms_and_the_bytes_of_an_untied_head(run: Run, tied: Path, text: Path) -> None:
    code, out, _ = run(
        "plan", tied, "--to", "Q4_0", "--text", text, "--json", *words_of(("untie", "smooth_quant:0.4"))[4:]
    )
    assert code == 0
    plan = json.loads(out)
    assert [item["name"] for item in plan["transforms"]] == ["untie", "smooth_quant"]
    assert plan["transforms"][1]["strength"] == 0.4
    assert "output_norm" in plan["transforms"][1]["edges"]
    head = next(row for row in plan["tensors"] if row["name"] == "output.weight")
    assert head["bytes"] > 0
    assert head["source_name"] == "lm_head.weight"
    code, out, _ = run("plan", tied, "--to", "Q4_0", "--text", text, "--transform", "smooth_quant:0.4")
    assert code == 0
    assert "smooth_quant at strength 0.4 at blk.0.attn_norm" in out
    assert "not at output_norm: token_embd.weight is both the embedding and the output head (tied)" in out


def test_a_model_that_is_quantized_already_is_warned_of_behind_a_transform_too(
    run: Run, tied: Path, tmp_path: Path
) -> None:
    quantized = tmp_path / "q8_0.gguf"
    assert run("quantize", tied, "--to", "Q8_0", "-o", quantized)[0] == 0
    code, out, _ = run("plan", quantized, "--to", "Q4_0", "--transform", "value_rotation", "--json")
    assert code == 0
    assert any("are already quantized" in warning for warning in json.loads(out)["warnings"])


def test_a_recipe_may_name_transforms(run: Run, tied: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "turned.yaml"
    recipe.write_text("base: Q4_0\ntransforms: [untie, residual_rotation]\nrules: []\n")
    code, out, error = run("plan", tied, "--to", recipe, "--transform", "value_rotation", "--json")
    assert code == 0, error
    names = [item["name"] for item in json.loads(out)["transforms"]]
    assert names == ["untie", "residual_rotation", "value_rotation"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--transform", "awq"], "unknown transform 'awq'; known: awq_scaling, smooth_quant, residual_rotation"),
        (["--transform", "awq_scaling"], "give --text, --statistics or --imatrix"),
        (["--transform", "residual_rotation"], "residual_rotation: output_norm.weight: token_embd.weight is both"),
        (["--to", "RECIPE"], "recipe.yaml:2: transforms: unknown transform 'rotate'"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_clear_line_and_no_file(
    run: Run, tied: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("base: Q4_0\ntransforms: rotate\n")
    output = tmp_path / "out.gguf"
    words = [str(recipe) if word == "RECIPE" else word for word in words]
    for command in (("plan", tied), ("quantize", tied, "-o", output)):
        code, out, error = run(*command, *words)
        assert code == 1
        assert message in error
        assert error.count("\n") == 1
        assert not out
    assert not output.exists()


def test_ready_statistics_serve_scaling_and_are_refused_for_rotations(
    run: Run, model: Path, text: Path, tmp_path: Path
) -> None:
    statistics = tmp_path / "stats.safetensors"
    assert run("calibrate", model, "--text", text, "--tokens", "1024", "-o", statistics)[0] == 0
    output = tmp_path / "scaled.gguf"
    words = ("quantize", model, "--to", "Q4_0", "--statistics", statistics, "-o", output)
    code, _, error = run(*words, "--transform", "awq_scaling")
    assert code == 0, error
    assert "another file of this model" not in error
    code, _, error = run(*words, "--transform", "value_rotation", "--force")
    assert code == 1
    assert "'value_rotation' mixes the inputs of layers" in error
