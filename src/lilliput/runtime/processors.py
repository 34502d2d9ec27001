# SPDX-License-Identifier: Apache-2.0
"""How many threads are worth running here: processors allowed, cores behind them, share that a container grants."""

from __future__ import annotations

import math
import os
from pathlib import Path

from lilliput.errors import RuntimeModelError

MOST_THREADS = 255
_SYSTEM = Path("/sys")


def default_threads() -> int:
    """LILLIPUT_THREADS, or the cores that this process may use. Raises RuntimeModelError."""
    wanted = os.environ.get("LILLIPUT_THREADS", "")
    if not wanted:
        return usable_cores()
    if not wanted.isdigit() or not 1 <= int(wanted) <= MOST_THREADS:
        raise RuntimeModelError(f"LILLIPUT_THREADS is '{wanted}', must be a number from 1 to {MOST_THREADS}")
    return int(wanted)


def usable_cores(system: Path = _SYSTEM) -> int:
    """Cores behind the processors of this process's affinity, within its control group's share of time.

    Two processors of one core share its multipliers, so that the second adds little to matrix products.
    system: where sysfs is mounted.
    """
    processors = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = {_core_of(processor, system) for processor in processors}
    return max(1, min(len(cores), _granted(system), MOST_THREADS))


def _core_of(processor: int, system: Path) -> str:
    """The processors that share a core, as the kernel lists them; the processor itself where it does not say."""
    siblings = system / f"devices/system/cpu/cpu{processor}/topology/thread_siblings_list"
    try:
        return siblings.read_text().strip()
    except OSError:
        return str(processor)


def _granted(system: Path) -> int:
    """Processors' worth of time that control group v2 grants, rounded up; no limit where it names none."""
    try:
        quota, period = (system / "fs/cgroup/cpu.max").read_text().split()
        return MOST_THREADS if quota == "max" else max(1, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):
        return MOST_THREADS
