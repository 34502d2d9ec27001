# SPDX-License-Identifier: Apache-2.0
"""Our presets on mixtures of experts and on fused q, k and v: the types that llama-quantize gives each tensor."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from lilliput import workflows
from lilliput.containers import open_model
from lilliput.recipes.plan import resolve
from lilliput.records import Role

pytest.importorskip("torch")
pytest.importorskip("transformers")
import family_folders

pytestmark = pytest.mark.external
WIDE = {"hidden_size": 256, "intermediate_size": 256, "moe_intermediate_size": 256, "n_inner": 512}
PRESETS = ["Q2_K", "Q3_K_M", "Q4_0", "Q4_K_S", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "IQ3_M", "IQ4_XS"]


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [("mixtral", {"num_local_experts": 8, "num_hidden_layers": 8}), ("qwen3_moe", {}), ("gpt2", {})],
    ids=["eight experts", "other experts", "fused"],
)
def test_every_tensor_gets_the_type_that_llama_quantize_gives_it(
    llama_cpp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_type: str, fields: dict[str, int]
) -> None:
    monkeypatch.setitem(family_folders.FAMILIES, model_type, {**family_folders.FAMILIES[model_type], **WIDE, **fields})
    folder = family_folders.write_family(tmp_path / "tiny", model_type)
    workflows.quantize(folder, "F32", tmp_path / "f32.gguf")
    source = open_model(tmp_path / "f32.gguf")
    wrong = {}
    for preset in PRESETS:
        target = tmp_path / f"{preset}.gguf"
        command = [llama_cpp / "llama-quantize", tmp_path / "f32.gguf", target, preset, "2"]
        done = subprocess.run([*map(str, command)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        theirs = {name: header.format.name for name, header in open_model(target).headers.items()}
        rows = resolve(source, preset, statistics_present=False).rows
        # llama-quantize leaves tables of positions as they come; ours become F16.
        ours = {row.name: row.format.name for row in rows if row.role is not Role.POSITION_EMBEDDING}
        wrong |= {(preset, name): (ours[name], theirs[name]) for name in ours if ours[name] != theirs[name]}
    assert not wrong
