# SPDX-License-Identifier: Apache-2.0
"""A tiny model, and the command line called as a function."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_llama import write_tiny_llama

from lilliput.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of random weights, as a Hugging Face folder."""
    return write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Call `lilliput` with these words; gives exit status, stdout, stderr."""
    monkeypatch.setenv("LILLIPUT_CACHE", str(tmp_path / "cache"))

    def call(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
