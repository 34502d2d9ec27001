# SPDX-License-Identifier: Apache-2.0
"""Our encoders' squared errors are at most 1.01 times llama-quantize's on the same tensors, by every measure."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from lilliput.formats import FORMATS

ROOT = Path(__file__).resolve().parent.parent.parent
GOLDEN = json.loads((ROOT / "tests/golden/llama_quantize_errors.json").read_text())["sums"]


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("encoders_benchmark", ROOT / "benchmarks/encoders.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", GOLDEN)
def test_squared_errors_are_within_one_per_cent_of_llama_quantize(name: str, benchmark: ModuleType) -> None:
    for label, case in benchmark.synthetic_cases().items():
        theirs = GOLDEN[name][label]
        ours = benchmark.error_sums(case, benchmark.our_values(FORMATS[name], case, True))
        ours["plain"] = benchmark.error_sums(case, benchmark.our_values(FORMATS[name], case, False))["plain"]
        assert {measure: ours[measure] / theirs[measure] <= 1.01 for measure in theirs} == dict.fromkeys(theirs, True)
