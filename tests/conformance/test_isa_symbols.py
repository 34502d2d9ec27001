# SPDX-License-Identifier: Apache-2.0
"""Objects compiled for different instruction sets share no function."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "check_isa_symbols.py"
OBJECT = "CMakeFiles/lilliput_avx2.dir/native/kernels/isa/leak.o"


def check(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(TOOL), *arguments], capture_output=True, text=True, check=False)


@pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed")
def test_no_kernel_function_is_shared_between_instruction_sets() -> None:
    if not list(ROOT.glob("build/*/CMakeFiles/lilliput_scalar.dir")):
        pytest.skip("the native core was not built in this tree")
    done = check()
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("nm") is None or shutil.which("g++") is None, reason="needs nm and g++")
def test_an_untagged_inline_function_is_named(tmp_path: Path) -> None:
    source, output = tmp_path / "leak.cpp", tmp_path / OBJECT
    output.parent.mkdir(parents=True)
    source.write_text("inline int leak(int a) { return a + 1; }\nint (*pointer)(int) = &leak;\n", encoding="utf-8")
    subprocess.run(["g++", "-O1", "-c", str(source), "-o", str(output)], check=True)
    done = check(str(tmp_path))
    assert done.returncode == 1
    assert "leak.o: leak(int) lacks the namespace avx2" in done.stderr
