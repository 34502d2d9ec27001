# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import errors
from model_files import write_folder

from lilliput import workflows
from lilliput.checkpoints import hub
from lilliput.containers import open_model
from lilliput.errors import CheckpointError


def test_a_hub_id_opens_the_downloaded_folder_and_names_its_origin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path / "snapshots" / "0123abc")
    asked: dict[str, object] = {}

    def fake(repository: str, **options: object) -> str:
        asked.update(options, repository=repository)
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", fake)
    model = open_model("some-org/Tiny-1B-Instruct", revision="v2")
    assert asked["repository"] == "some-org/Tiny-1B-Instruct"
    assert asked["revision"] == "v2"
    assert "*.bin" not in str(asked["allow_patterns"])
    assert model.provenance.general["name"] == "Tiny 1B Instruct"
    assert model.provenance.general["repo_url"] == "https://huggingface.co/some-org/Tiny-1B-Instruct"


def test_inspect_takes_a_hub_id_and_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "snapshots" / "0123abc")
    asked: list[object] = []

    def fake(repository: str, *, revision: str | None, **_: object) -> str:
        asked.append(revision)
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", fake)
    assert workflows.inspect("some-org/Tiny-1B-Instruct", revision="v2").tensors
    assert asked[0] == "v2"


def test_a_revision_of_a_path_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "tiny")
    with pytest.raises(CheckpointError, match="--revision v2 chooses among those of a hub id, leave it out"):
        workflows.inspect(folder, revision="v2")


def http(kind: type[errors.HfHubHTTPError]) -> errors.HfHubHTTPError:
    """The hub's error without the network's own response object."""
    failure = kind.__new__(kind)
    failure.args = ("first line\nsecond line",)
    return failure


@pytest.mark.parametrize(
    ("failure", "says"),
    [
        (http(errors.RepositoryNotFoundError), "no such model on the hub"),
        (http(errors.GatedRepoError), "accept its terms"),
        (http(errors.RevisionNotFoundError), "no revision 'v9'"),
        (errors.LocalEntryNotFoundError("x"), "not in the local cache"),
        (errors.HFValidationError("x"), "not a valid hub id"),
        (OSError("first line\nsecond line"), "download failed: first line$"),
    ],
)
def test_a_failed_download_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, failure: Exception, says: str) -> None:
    def fail(*_: object, **__: object) -> str:
        raise failure

    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(CheckpointError, match=says) as caught:
        open_model("org/name", revision="v9")
    assert "\n" not in str(caught.value)


def test_offline_and_not_cached_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = hub.snapshot_download
    monkeypatch.setattr(
        hub,
        "snapshot_download",
        lambda repository, **options: real(repository, cache_dir=tmp_path, local_files_only=True, **options),
    )
    with pytest.raises(CheckpointError, match="org/name: not in the local cache"):
        open_model("org/name")


def test_a_model_without_safetensors_says_what_is_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(CheckpointError, match=r"org/name: has no safetensors weights on the hub; pickled"):
        open_model("org/name")
