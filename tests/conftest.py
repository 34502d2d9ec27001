# SPDX-License-Identifier: Apache-2.0
"""Fixtures and time limits shared by every suite."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"
# Seconds a test of each folder may take; an unlisted folder is an error.
TIMEOUTS = {"unit": 20, "conformance": 60, "properties": 60, "golden": 20, "integration": 300, "external": 900}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--llama-cpp", metavar="DIR", help="folder with llama.cpp's tools, for tests/external")
    parser.addoption("--environments", metavar="DIR", help="folder that tools/external_environment.py filled")
    parser.addoption("--minilm", metavar="DIR", help="folder of all-MiniLM-L6-v2, for tests/external")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.relative_to(ROOT / "tests").parts[0]
        if folder not in TIMEOUTS:
            raise pytest.UsageError(f"tests/{folder}: no time limit set in tests/conftest.py")
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIMEOUTS[folder]))


@pytest.fixture(scope="session")
def llama_cpp(request: pytest.FixtureRequest) -> Path:
    """The folder of llama.cpp's tools: as given, or where they are found on PATH."""
    folder = request.config.getoption("--llama-cpp")
    if folder is not None:
        return Path(str(folder))
    found = shutil.which("llama-quantize")
    if found is None:
        pytest.skip("pass --llama-cpp DIR to run against llama.cpp's tools, or put them on PATH")
    return Path(found).parent


@pytest.fixture(scope="session")
def onnx_runtimes(request: pytest.FixtureRequest) -> Path:
    """The python of the environment with onnxruntime-genai and OpenVINO."""
    return environment_python(request, "onnx-runtimes")


def environment_python(request: pytest.FixtureRequest, name: str) -> Path:
    """The python of an environment that is not ours; skips where it was not made."""
    folder = Path(str(request.config.getoption("--environments") or ROOT / ".environments"))
    python = folder / name / "bin" / "python"
    if not python.exists():
        pytest.skip(f"make it with: python tools/external_environment.py {name}")
    return python


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real models and texts that is not part of the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip("shared data not present beside the repository")
    return SHARED_DATA


@pytest.fixture(scope="session")
def stories_folder(shared_data: Path) -> Path:
    """stories260K as a Hugging Face folder."""
    return shared_data / "stories260K" / "hf"
