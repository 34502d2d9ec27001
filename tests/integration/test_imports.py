# SPDX-License-Identifier: Apache-2.0
"""What a run waits for: modules that it does not need are not imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import lilliput
from lilliput import workflows

# Of other projects; a text needs numpy, regex and the Rust tokenizers.
HEAVY = {
    *("flatbuffers", "gguf", "huggingface_hub", "jinja2", "matplotlib", "onnx", "onnxruntime", "psutil", "rich"),
    *("safetensors", "torch", "transformers", "yaml"),
    # All of numpy, its tests and its Fortran compiler included.
    *("array_api_compat.numpy", "numpy.f2py"),
}
# typer reads the options of a command; newer versions do it with pydantic.
COMMAND_LINE = {"typer", "pydantic"}
# Our own that a run has no use for.
OTHER_ROOMS = {
    f"lilliput.{room}"
    for room in (
        *("calibration", "checkpoints.huggingface", "containers.litert", "containers.onnx", "containers.registry"),
        *("evaluation", "methods", "pipeline", "recipes", "search", "sequences", "transforms", "workflows"),
    )
}


@pytest.fixture(scope="module")
def file(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("imports") / "tiny.gguf"
    workflows.quantize(model, "Q8_0", path, options=workflows.QuantizeOptions(threads=1))
    return path


def imported_by(code: str, *arguments: str) -> set[str]:
    """Names of the modules that a fresh interpreter has after `code`."""
    program = f"import json, sys\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True, timeout=60
    )
    return set(json.loads(run.stdout.splitlines()[-1]))


def test_running_a_gguf_imports_only_what_a_run_needs(file: Path) -> None:
    found = imported_by(
        "from lilliput.generating import GenerateOptions, generate\n"
        "assert generate(sys.argv[1], 'The ', options=GenerateOptions(max_tokens=1)).token_ids",
        str(file),
    )
    assert not found & (HEAVY | COMMAND_LINE | OTHER_ROOMS)
    assert "lilliput.runtime.session" in found


def test_the_run_command_adds_only_what_reads_its_options(file: Path) -> None:
    found = imported_by(
        "from lilliput.cli import main\nassert main(['run', sys.argv[1], '--prompt', 'The ', '-n', '1']) == 0",
        str(file),
    )
    assert not found & (HEAVY | OTHER_ROOMS)


def test_help_imports_neither_numpy_nor_a_room() -> None:
    found = imported_by("from lilliput.cli import main\nassert main(['--help']) == 0")
    assert not found & (HEAVY | OTHER_ROOMS | {"numpy", "lilliput._native", "lilliput.formats", "lilliput.containers"})


def test_the_package_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "lilliput", "--version"]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout == f"lilliput {lilliput.__version__}\n"
