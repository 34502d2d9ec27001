# SPDX-License-Identifier: Apache-2.0
"""What the documents tell a reader to type: Python runs, command lines have the options that they show."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.main import get_command

from lilliput.cli import app

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(document: Path, language: str) -> list[str]:
    return [found[2] for found in BLOCK.finditer(document.read_text()) if found[1] == language]


def test_the_python_of_the_readme_runs(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.setenv("LILLIPUT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("lilliput.recipes.machine.SECONDS_PER_PROBE", 0.0)
    monkeypatch.setattr("lilliput.recipes.machine._import_seconds", lambda: 1.0)
    monkeypatch.chdir(tmp_path)
    # The built-in model would take long; a folder of its name stands before it.
    shutil.copytree(model, tmp_path / "gulliver")
    text = tmp_path / "benchmarks" / "data" / "documentation.txt"
    text.parent.mkdir(parents=True)
    text.write_text((ROOT / "benchmarks" / "data" / text.name).read_text()[:8000])
    [code] = blocks(ROOT / "README.md", "python")
    exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "small.gguf").is_file()


@pytest.mark.parametrize(
    "document", ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
)
def test_documented_command_lines_have_the_options_that_they_show(document: str) -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    for block in (*blocks(ROOT / document, "sh"), *blocks(ROOT / document, "bash")):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["lilliput"]:
                commands[words[1]].make_context(words[1], words[2:])
