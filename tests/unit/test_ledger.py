# SPDX-License-Identifier: Apache-2.0
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from header_models import header_model

from lilliput.errors import PublishError
from lilliput.recipes.ledger import Ledger, check_complete, entry_for, ledger_path
from lilliput.recipes.plan import Plan, resolve


@pytest.fixture
def plan() -> Plan:
    return resolve(header_model(layers=1), "Q4_K_M", statistics_present=True)


def ledger_of(plan: Plan) -> Ledger:
    return Ledger(
        recipe=plan.recipe,
        model="/home/someone/models/a-model",
        output=("/tmp/out.gguf",),
        bits_per_weight=plan.bits_per_weight,
        bytes=plan.tensor_bytes,
        fingerprints={"plan": plan.fingerprint},
        entries=tuple(entry_for(row) for row in plan.rows),
        datasets=("/data/calibration.txt",),
    )


def test_a_complete_ledger_passes(plan: Plan) -> None:
    check_complete(plan, [entry_for(row) for row in plan.rows])


def test_a_planned_tensor_that_was_not_done_fails_the_run(plan: Plan) -> None:
    with pytest.raises(PublishError, match=r"1 planned tensors were not done \(first: blk\.0\.attn_q\.weight\)"):
        check_complete(plan, [entry_for(row) for row in plan.rows if row.name != "blk.0.attn_q.weight"])


def test_a_tensor_that_was_not_planned_or_done_twice_fails_the_run(plan: Plan) -> None:
    entries = [entry_for(row) for row in plan.rows]
    with pytest.raises(PublishError, match=r"extra: was written but not planned"):
        check_complete(plan, [*entries, replace(entries[0], name="extra")])
    with pytest.raises(PublishError, match="was written twice"):
        check_complete(plan, [*entries, entries[0]])


def test_a_format_other_than_planned_fails_the_run_but_a_method_may_fall_back(plan: Plan) -> None:
    entries = [entry_for(row) for row in plan.rows]
    check_complete(plan, [replace(entries[0], method="round_to_nearest"), *entries[1:]])
    with pytest.raises(PublishError, match=r"planned as Q4_K .* done as F16"):
        check_complete(plan, [replace(entries[0], format="F16"), *entries[1:]])


def test_the_file_holds_basenames_and_null_for_what_is_not_finite(plan: Plan, tmp_path: Path) -> None:
    ledger = ledger_of(plan)
    ledger = replace(ledger, entries=(replace(ledger.entries[0], relative_error=math.nan), *ledger.entries[1:]))
    path = ledger_path(tmp_path / "out.gguf")
    ledger.write(path)
    assert [file.name for file in tmp_path.iterdir()] == ["out.gguf.ledger.json"]
    content = json.loads(path.read_text())
    assert (content["model"], content["output"], content["datasets"]) == ("a-model", ["out.gguf"], ["calibration.txt"])
    assert content["entries"][0]["relative_error"] is None
    assert content["versions"]["numpy"] == np.__version__
    assert "/home" not in path.read_text()


def test_a_ledger_that_cannot_be_written_leaves_nothing(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "out.json").mkdir()
    with pytest.raises(PublishError, match="the ledger cannot be written"):
        ledger_of(plan).write(tmp_path / "out.json")
    assert [file.name for file in tmp_path.iterdir()] == ["out.json"]
