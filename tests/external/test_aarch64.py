# SPDX-License-Identifier: Apache-2.0
"""The NEON kernels, compiled for aarch64 and run under emulation, compute what the scalar ones do."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

pytestmark = [pytest.mark.external, pytest.mark.timeout(3600)]  # a first build compiles everything twice
FOLDER = Path(__file__).with_name("aarch64")
BUILD_FOLDER = Path(__file__).resolve().parents[2] / "build" / "aarch64"


@pytest.fixture(scope="session")
def emulator(request: pytest.FixtureRequest) -> list[str]:
    from conftest import environment_python

    return [str(environment_python(request, "aarch64")), "-I", str(FOLDER / "emulate.py")]


@pytest.fixture(scope="session")
def conformance(emulator: list[str]) -> str:
    """The executable."""
    command = [emulator[0], "-I", str(FOLDER / "build.py"), "--folder", str(BUILD_FOLDER)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.splitlines()[-1]


def output_of(command: list[str]) -> tuple[int, str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_neon_kernels_compute_what_scalar_ones_do(emulator: list[str], conformance: str) -> None:
    status, output = output_of([*emulator, conformance, "neon_dotprod"])
    failed = [line for line in output.splitlines() if not line.startswith("ok")]
    assert status == 0, "\n".join(failed[:40])
    assert "best: neon_dotprod" in output


def test_a_processor_without_dot_products_takes_the_scalar_path(emulator: list[str], conformance: str) -> None:
    status, output = output_of([*emulator, conformance, "neon_dotprod", "--without-dotprod"])
    assert status == 2
    assert "best: scalar" in output
    assert "cannot run neon_dotprod" in output


def test_all_of_the_neon_dot_products_are_instructions(emulator: list[str], conformance: str) -> None:
    code = Path(conformance).read_bytes()
    words = memoryview(code[: len(code) // 4 * 4]).cast("I")
    # SDOT (vector) and SDOT (by element), all registers: A64 encodings.
    assert sum(word & 0xFFE0FC00 == 0x4E809400 for word in words) > 100
