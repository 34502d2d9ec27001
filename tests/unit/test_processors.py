# SPDX-License-Identifier: Apache-2.0
"""How many threads the engine takes by default."""

from __future__ import annotations

from pathlib import Path

import pytest

from lilliput.errors import RuntimeModelError
from lilliput.runtime import processors
from lilliput.runtime.processors import default_threads, usable_cores


@pytest.fixture
def eight_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processors.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


def describe(system: Path, *, siblings: dict[int, str] | None = None, cpu_max: str | None = None) -> Path:
    for processor, shared in (siblings or {}).items():
        folder = system / f"devices/system/cpu/cpu{processor}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(shared + "\n")
    if cpu_max is not None:
        (system / "fs/cgroup").mkdir(parents=True)
        (system / "fs/cgroup/cpu.max").write_text(cpu_max)
    return system


@pytest.mark.usefixtures("eight_processors")
def test_processors_count_where_nothing_says_more(tmp_path):
    assert usable_cores(tmp_path) == 8


@pytest.mark.usefixtures("eight_processors")
def test_two_processors_of_one_core_count_once(tmp_path):
    siblings = {processor: f"{processor % 4},{processor % 4 + 4}" for processor in range(8)}
    assert usable_cores(describe(tmp_path, siblings=siblings)) == 4


@pytest.mark.usefixtures("eight_processors")
@pytest.mark.parametrize(
    ("cpu_max", "expected"),
    [("150000 100000\n", 2), ("50000 100000\n", 1), ("max 100000\n", 8), ("3200000 100000\n", 8), ("broken", 8)],
)
def test_a_containers_share_limits_the_count(tmp_path, cpu_max, expected):
    assert usable_cores(describe(tmp_path, cpu_max=cpu_max)) == expected


def test_the_environment_decides_if_it_is_a_number(monkeypatch):
    monkeypatch.setenv("LILLIPUT_THREADS", "3")
    assert default_threads() == 3
    for bad in ("0", "many", "-1", "256"):
        monkeypatch.setenv("LILLIPUT_THREADS", bad)
        with pytest.raises(RuntimeModelError, match=f"LILLIPUT_THREADS is '{bad}'"):
            default_threads()
