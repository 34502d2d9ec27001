# SPDX-License-Identifier: Apache-2.0
"""`lilliput report` from end to end on a tiny model; bad inputs: one clear line, nothing left behind."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from tiny_llama import TEXT, write_tiny_llama

from lilliput.cli import main
from lilliput.recipes.ledger import ledger_path, read_ledger

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A tiny model and two files of it; the second has lost its ledger."""
    folder = tmp_path_factory.mktemp("report")
    model = write_tiny_llama(folder / "tiny")
    files = folder / "tiny-Q8_0.gguf", folder / "tiny-Q3_K_S.gguf"
    for file, preset in zip(files, ("Q8_0", "Q3_K_S"), strict=True):
        assert main(["quantize", str(model), "--to", preset, "-o", str(file)]) == 0
    ledger_path(files[1]).unlink()
    return model, *files


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT * 30 + "</script><b>bold</b> &amp; " + TEXT * 10)
    return path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("LILLIPUT_CACHE", str(tmp_path / "cache"))

    def call(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name not in ("text.txt", "cache"))


def test_a_page_a_card_and_their_data_agree(
    run: Run, made: tuple[Path, Path, Path], text: Path, tmp_path: Path
) -> None:
    page, card = tmp_path / "report.html", tmp_path / "README.md"
    frontier = tmp_path / "frontier.json"
    frontier.write_text(json.dumps([{"bytes": 700_000, "kl": 0.3}, {"bytes": 900_000, "kl": 0.1}]))
    words = (*made, "--text", text, "--context", 64, "-o", page, "--card", card, "--frontier", frontier, "--json")
    code, out, _ = run("report", *words)
    assert code == 0
    found = json.loads(out)
    small = found["files"][1]
    assert small["label"] == "Q3_K_S"
    assert small["bytes"] == made[2].stat().st_size
    measured = small["measured"]["mean_kld"]
    assert measured["low"] < measured["value"] < measured["high"]
    assert found["files"][0]["measured"]["mean_kld"]["value"] < measured["value"]
    shown = page.read_text()
    assert f"{made[2].stat().st_size:,} bytes" in shown
    assert str(tmp_path) not in shown + card.read_text() + out
    assert "<b>bold</b>" not in shown
    assert yaml.safe_load(card.read_text().split("---\n")[1])["quantized_by"] == "lilliput"
    assert found["files"][0]["making"]["command"].startswith("lilliput quantize tiny --to Q8_0")
    assert len(found["frontier"]) == 2


def test_a_ledger_says_the_errors_that_are_computed_without_one(
    run: Run, made: tuple[Path, Path, Path], text: Path
) -> None:
    words = ("--text", text, "--context", 64, "--tokens", 512, "--json")
    with_ledger = json.loads(run("report", made[0], made[1], *words)[1])["files"][0]
    path = ledger_path(made[1])
    content = path.read_text()
    path.unlink()
    try:
        without = json.loads(run("report", made[0], made[1], *words)[1])["files"][0]
    finally:
        path.write_text(content)
    pairs = [
        (a["relative_error"], b["relative_error"])
        for a, b in zip(with_ledger["tensors"], without["tensors"], strict=True)
        if b["relative_error"] is not None
    ]
    assert len(pairs) > 10
    assert [a for a, _ in pairs] == pytest.approx([b for _, b in pairs], rel=1e-4)
    assert without["making"]["recipe"] == "Q8_0"
    assert read_ledger(path).recipe == "Q8_0"


def test_a_ledger_of_another_file_is_not_believed(run: Run, made: tuple[Path, Path, Path], text: Path) -> None:
    wrong = ledger_path(made[2])
    wrong.write_text(ledger_path(made[1]).read_text())
    words = ("report", made[0], made[2], "--text", text, "--context", 64, "--tokens", 512, "--json")
    try:
        found = json.loads(run(*words)[1])["files"][0]
        assert "belongs to another file" in found["making"]["notes"][0]
        wrong.write_text("{")
        assert "no ledger of lilliput" in json.loads(run(*words)[1])["files"][0]["making"]["notes"][0]
    finally:
        wrong.unlink()


def test_without_a_text_the_built_in_mix_is_measured_and_said_so(run: Run, made: tuple[Path, Path, Path]) -> None:
    found = json.loads(run("report", *made[:2], "--context", 32, "--tokens", 64, "--json", "--prompt", "rope and")[1])
    assert found["text"]["name"] == "built-in mix"
    assert any("--text" in note for note in found["notes"])
    assert any("too narrow" in note for note in found["notes"])
    assert found["files"][0]["continuation"]["prompt"] == "rope and"


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ((), "nothing to write"),
        (("-o", "{}/no/report.html"), "no such folder"),
        (("-o", "{}/report.html", "--card", "{}/report.html"), "cannot be one file"),
        (("-o", "{}/report.html", "--text", "{}/missing.txt"), "no such file"),
        (("-o", "{}/report.html", "--frontier", "{}/text.txt"), "not JSON"),
        (("-o", "{}/report.html", "--context", "4096"), "longer than the model's"),
        (("-o", "{}/text.txt"), "--force"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    run: Run, made: tuple[Path, Path, Path], text: Path, tmp_path: Path, extra: tuple[str, ...], named: str
) -> None:
    words = [word.format(tmp_path) for word in extra]
    code, _, err = run("report", *made[:2], *words)
    assert code == 1
    assert named in err
    assert err.count("\n") == 1
    assert left(tmp_path) == []


def test_a_file_of_another_model_is_refused(
    run: Run, made: tuple[Path, Path, Path], text: Path, tmp_path: Path
) -> None:
    other = write_tiny_llama(tmp_path / "other", vocab=300)
    code, _, err = run("report", made[0], other, "--text", text, "--context", 64, "-o", tmp_path / "report.html")
    assert code == 1
    assert re.search("vocabulary of 300", err)
    assert left(tmp_path) == ["other"]


def test_files_of_one_name_get_different_labels(run: Run, made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.gguf").write_bytes(made[1].read_bytes())
    files = (tmp_path / "a" / "same.gguf", tmp_path / "b" / "same.gguf")
    found = json.loads(run("report", made[0], *files, "--context", 32, "--tokens", 200, "--json")[1])
    assert [file["label"] for file in found["files"]] == ["same.gguf", "same.gguf (2)"]
    assert found["paired"][0]["verdict"] == "no difference"


def test_too_few_tokens_are_refused(run: Run, made: tuple[Path, Path, Path]) -> None:
    code, _, err = run("report", *made[:2], "--tokens", 2, "--json")
    assert code == 1
    assert "too few" in err


def test_a_split_file_finds_the_ledger_of_the_whole(run: Run, made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    whole = tmp_path / "tiny-Q8_0.gguf"
    assert run("quantize", made[0], "--to", "Q8_0", "-o", whole, "--split-max-size", "500KB")[0] == 0
    part = min(tmp_path.glob("*-of-*.gguf"))
    found = json.loads(run("report", made[0], part, "--context", 32, "--tokens", 200, "--json")[1])
    assert found["files"][0]["making"]["recipe"] == "Q8_0"
    assert len(found["files"][0]["making"]["sha256"]) > 1


def test_rewritten_weights_are_not_drawn_over_the_original(run: Run, made: tuple[Path, Path, Path]) -> None:
    rotated = made[0].parent / "tiny-rotated.gguf"
    words = ("quantize", made[0], "--to", "Q8_0", "--transform", "residual_rotation", "-o", rotated)
    code, _, err = run(*words)
    assert code == 0, err
    found = json.loads(run("report", made[0], rotated, "--context", 32, "--tokens", 200, "--json")[1])["files"][0]
    assert dict(found["making"]["transforms"])
    assert all(row["relative_error"] < 0.01 for row in found["tensors"] if len(row["shape"]) > 1)
    # Q8_0 leaves no stored value far from its weight; rotated ones would be.
    assert all(item["relative_error"] < 0.01 for item in found["pictures"])
    drawn = {item["tensor"] for item in found["pictures"]}
    assert "token_embd.weight" not in drawn
