# SPDX-License-Identifier: Apache-2.0
"""Progress on terminals of any width."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from lilliput.cli import output


def shown(width: int, done: int, total: int, monkeypatch: pytest.MonkeyPatch) -> str:
    stream = io.StringIO()
    terminal = Console(file=stream, force_terminal=True, width=width, color_system=None)
    monkeypatch.setattr(output, "console", lambda: terminal)
    with output.progress("measuring held-out text") as advance:
        advance(done, total)
    return stream.getvalue()


@pytest.mark.parametrize("width", [34, 60, 160])
def test_progress_keeps_its_numbers_on_narrow_terminals(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(width, 172, 222, monkeypatch)
    assert "measuring held-out text" in text
    assert "172/222" in text
    assert ("━" in text) == (width >= output.LEAST_FOR_BAR)


def test_progress_in_weights_is_a_percentage(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "12 %" in shown(100, 1_000_000_000, 8_000_000_000, monkeypatch)
