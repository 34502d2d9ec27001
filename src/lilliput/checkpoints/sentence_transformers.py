# SPDX-License-Identifier: Apache-2.0
"""What a folder of sentence-transformers says beside config.json: how hidden states become one vector."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from lilliput.architectures.architecture import Json
from lilliput.checkpoints.shards import read_json, read_json_value
from lilliput.errors import CheckpointError

KEY = "sentence_transformers"


def described_modules(folder: Path) -> dict[str, Json]:
    """`{"sentence_transformers": {module: its config.json}}` from modules.json; empty for other folders.

    Raises CheckpointError for a module outside the folder.
    """
    if not (folder / "modules.json").is_file():
        return {}
    modules: dict[str, Json] = {}
    listed = read_json_value(folder / "modules.json")
    for module in listed if isinstance(listed, list) else []:
        if not isinstance(module, dict):
            raise CheckpointError(f"modules.json: expected objects with 'type' and 'path', found {module!r}")
        kind = str(module.get("type", "")).rpartition(".")[2]
        path = PurePosixPath(str(module.get("path", "")))
        if path.is_absolute() or ".." in path.parts:
            raise CheckpointError(f"modules.json: module {kind} lies at '{path}', outside the model's folder")
        file = folder / path / "config.json"
        modules[kind] = read_json(file) if kind == "Pooling" and file.is_file() else {}  # type: ignore[assignment]
    return {KEY: modules}
