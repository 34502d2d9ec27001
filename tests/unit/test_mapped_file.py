# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
import psutil
import pytest

from lilliput.checkpoints.mapped_file import MappedFile, planes_of_bytes
from lilliput.errors import CheckpointError
from lilliput.formats import get_format


def test_released_bytes_leave_memory_and_stay_readable(tmp_path: Path) -> None:
    size = 64 << 20
    path = tmp_path / "x"
    path.write_bytes(bytes([7]) * size)
    file = MappedFile(path, CheckpointError)
    resident = psutil.Process().memory_info
    before = resident().rss
    assert int(file.data.max()) == 7
    touched = resident().rss
    file.release(3, size - 3)
    released = resident().rss
    assert touched - before > size // 2
    assert released - before < size // 4
    assert int(file.data[size // 2]) == 7


def test_an_empty_file_has_no_bytes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"")
    file = MappedFile(tmp_path / "x", CheckpointError)
    assert file.size == 0
    file.release(0, 0)
    file.close()
    with pytest.raises(ValueError, match="closed"):
        _ = file.data


def test_planes_are_views_of_the_map_and_outlive_it(tmp_path: Path) -> None:
    values = np.arange(64, dtype=np.float32)
    (tmp_path / "x").write_bytes(values.tobytes())
    file = MappedFile(tmp_path / "x", CheckpointError)
    planes = planes_of_bytes(get_format("f32"), 2, 32, file.data)
    assert np.shares_memory(planes["blocks"], file.data)
    assert not np.asarray(planes["blocks"]).flags.writeable
    file.close()
    assert np.array_equal(get_format("f32").dequantize(planes, 32).reshape(-1), values)
