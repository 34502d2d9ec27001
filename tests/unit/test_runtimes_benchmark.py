# SPDX-License-Identifier: Apache-2.0
"""benchmarks/runtimes.py: what it reports. The measurements themselves need the runtimes (external suite)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import runtimes
from peers.language_runtimes import RUNTIMES


def measured(prefill: list[float]) -> runtimes.Measured:
    found = runtimes.Found(Path(sys.executable), {"x": "1.0"})
    return runtimes.Measured(found, 1.0, 2.0, 3, {"prefill": prefill}, {"prefill": prefill})


def test_ratios_are_taken_within_rounds() -> None:
    ours, theirs = "lilliput Q4_0", "onnxruntime-genai INT4_G32"
    # The ratio of medians would be 1.
    both = {ours: measured([1.0, 10.0, 4.0]), theirs: measured([3.0, 20.0, 4.0])}
    first, second = runtimes.summary(both, {"prefill": 512, "decode": 0})
    assert "ratio" not in first
    assert (second["ratio"], second["beside"], second["rounds"]) == (2.0, ours, 3)
    assert (second["median"], second["min"], second["max"]) == (128.0, 25.6, 170.667)


def test_a_peer_without_our_row_beside_it_has_no_ratio() -> None:
    (only,) = runtimes.summary({"torch int8": measured([1.0])}, {"prefill": 512, "decode": 0})
    assert "ratio" not in only


def test_every_peer_is_compared_with_a_row_of_ours() -> None:
    besides = {runtime.beside for runtime in RUNTIMES.values() if runtime.beside is not None}
    assert all(RUNTIMES[name].beside is None for name in besides)


def test_what_is_not_installed_is_not_found() -> None:
    assert runtimes.find(["no-such-distribution"], [Path(sys.executable)]) is None
    here = runtimes.find(["numpy"], [Path(sys.executable)])
    assert here is not None
    assert here.versions.keys() == {"numpy"}


def test_a_runtime_that_gives_other_than_the_tokens_asked_for_is_stopped() -> None:
    with pytest.raises(SystemExit, match="1 tokens came instead of 2"):
        runtimes.checked(lambda ids, count: [7], [1], 2)
