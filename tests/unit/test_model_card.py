# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest

from lilliput.checkpoints.model_card import read_provenance

CARD = """---
license: other
license_name: small-licence
license_link: LICENSE
language: [en, no]
tags:
- chat
base_model:
- some-org/Base-7B-v0.3
- https://huggingface.co/other-org/Second-1.5B-Instruct
- https://example.org/third
datasets: some-org/texts
pipeline_tag: text-generation
---
# Prose
"""


def test_a_model_card_becomes_ggufs_general_keys(tmp_path: Path) -> None:
    folder = tmp_path / "Base-7B-Instruct-v0.3"
    folder.mkdir()
    (folder / "README.md").write_text(CARD)
    (folder / "LICENSE").write_text("text")
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "top_k": 20, "do_sample": True}))
    provenance = read_provenance(folder, {})
    assert provenance.general == {
        "name": "Base 7B Instruct v0.3",
        "basename": "Base",
        "size_label": "7B",
        "finetune": "Instruct",
        "version": "v0.3",
        "license": "other",
        "license.name": "small-licence",
        "license.link": "LICENSE",
        "base_model.count": 3,
        "base_model.0.name": "Base 7B v0.3",
        "base_model.0.organization": "some-org",
        "base_model.0.version": "v0.3",
        "base_model.0.repo_url": "https://huggingface.co/some-org/Base-7B-v0.3",
        "base_model.1.name": "Second 1.5B Instruct",
        "base_model.1.organization": "other-org",
        "base_model.1.repo_url": "https://huggingface.co/other-org/Second-1.5B-Instruct",
        "base_model.2.repo_url": "https://example.org/third",
        "languages": ["en", "no"],
        "tags": ["chat", "text-generation"],
        "dataset.count": 1,
        "dataset.0.name": "texts",
        "dataset.0.repo_url": "https://huggingface.co/datasets/some-org/texts",
        "sampling.temp": 0.6,
        "sampling.top_k": 20,
    }
    assert [path.name for path in provenance.side_files] == ["LICENSE", "README.md", "generation_config.json"]


@pytest.mark.parametrize(
    "card", ["", "no front matter", "---\n: : :\n---\n", "---\n- a list\n---\n", "---\nlicense: {a: b}\n---\n"]
)
def test_a_card_that_says_nothing_readable_is_no_error(tmp_path: Path, card: str) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "README.md").write_text(card)
    assert read_provenance(folder, {}).general == {"name": "my model"}


def test_a_damaged_generation_config_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text("{")
    assert "sampling.temp" not in read_provenance(tmp_path, {}).general


def test_the_hubs_cache_folder_is_not_taken_for_a_name(tmp_path: Path) -> None:
    folder = tmp_path / "models--some-org--Tiny-1B" / "snapshots" / "0a1b2c"
    folder.mkdir(parents=True)
    general = read_provenance(folder, {}).general
    assert (general["name"], general["organization"]) == ("Tiny 1B", "some-org")


def test_no_local_path_reaches_the_metadata(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    general = read_provenance(folder, {"_name_or_path": "/home/someone/secret/checkpoint"}).general
    assert "/" not in json.dumps(general)
    assert "secret" not in json.dumps(general)
