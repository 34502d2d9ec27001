# SPDX-License-Identifier: Apache-2.0
"""benchmarks/runtimes.py runs every runtime on files of ours, and they choose what our engine chooses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, environment_python

pytestmark = [pytest.mark.external, pytest.mark.filterwarnings("ignore")]
BENCHMARK = ROOT / "benchmarks" / "runtimes.py"
# All but those that compile for minutes.
CHOSEN = ("lilliput", "openvino-genai", "onnxruntime-genai", "torch bfloat16")
# One process per runtime; the largest logits of a random model lie close together, and each runtime rounds its own way.
CHOOSE = """
import json, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from peers.language_runtimes import RUNTIMES
runtime = RUNTIMES[sys.argv[2]]
generate = runtime.start(Path(sys.argv[3]) / runtime.file, 1, 64)
tokens = [int(generate(range(start, start + 40), 1)[0]) for start in range(100, 2100, 100)]
print("\\n" + json.dumps(tokens))
"""


@pytest.fixture(scope="module")
def python(request: pytest.FixtureRequest) -> Path:
    return environment_python(request, "language-runtimes")


@pytest.fixture(scope="module")
def run(python: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, object]], Path]:
    """The records of a short measurement, and the folder of its files."""
    keep = tmp_path_factory.mktemp("keep")
    sizes = ["--shape", "tiny", "--threads", "1", "--rounds", "1", "--prefill", "32", "--decode", "4"]
    places = ["--environments", str(python.parents[2]), "--keep", str(keep)]
    command = [sys.executable, str(BENCHMARK), *sizes, *places, "--runtimes", *CHOSEN]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()], keep / "tiny-2"


def test_every_runtime_has_a_line_for_each_test(run: tuple[list[dict[str, object]], Path]) -> None:
    records, _ = run
    assert not [record for record in records if "left_out" in record]
    names = {record["runtime"] for record in records}
    assert len(names) == 10
    assert len(records) == 2 * len(names)
    assert all(("ratio" in record) == (not str(record["runtime"]).startswith("lilliput")) for record in records)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("openvino-genai Q4_K_M", "lilliput Q4_K_M"), ("openvino-genai Q4_0", "lilliput Q4_0"),
        ("openvino-genai Q4_0, SDPA", "lilliput Q4_0"), ("onnxruntime-genai INT4_G32", "lilliput Q4_0"),
        ("onnxruntime-genai INT4_G128", "lilliput INT4_G128"),
    ],
)  # fmt: skip
def test_most_tokens_are_those_of_our_engine(
    run: tuple[list[dict[str, object]], Path], python: Path, theirs: str, ours: str
) -> None:
    def tokens(place: Path | str, name: str) -> list[int]:
        command = [str(place), "-c", CHOOSE, str(BENCHMARK.parent), name, str(run[1])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout.splitlines()[-1])

    found, expected = tokens(python, theirs), tokens(sys.executable, ours)
    # By chance one of 4,096 tokens is the same.
    assert sum(a == b for a, b in zip(found, expected, strict=True)) >= len(expected) // 2
