# SPDX-License-Identifier: Apache-2.0
"""Files: one door for everything that can be opened, and the list of what can be written (`registry`).

A kind of file is imported when one of it is opened: running a GGUF waits for nothing that only other kinds need.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from lilliput.checkpoints.model_source import ModelSource
from lilliput.containers.gguf import Gguf
from lilliput.errors import CheckpointError
from lilliput.models import BUILT_IN

if TYPE_CHECKING:
    from lilliput.containers.registry import CONTAINERS, FOLDERS, container_for, not_written

__all__ = ["CONTAINERS", "FOLDERS", "container_for", "not_written", "open_model"]

_HUB_ID = re.compile(r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::(?P<file>[\w.-]+(?:/[\w.-]+)*))?")


def open_model(path_or_id: str | Path, *, revision: str | None = None) -> ModelSource:
    """Open a Hugging Face folder, a GGUF file (any part of a split), our own safetensors file, or a hub id.

    A hub id may name one file: `organization/name:Q4_K_M` or `organization/name:file.gguf`.
    revision: branch, tag or commit of a hub id.
    Raises CheckpointError, ContainerError or UnsupportedModelError, one line each.
    """
    path = Path(path_or_id)
    if path.is_dir():
        return _open_folder(path)
    if path.is_file():
        return _open_file(path)
    name = str(path_or_id)
    found = _HUB_ID.fullmatch(name)
    if found is not None and (found["file"] is not None or path.suffix != ".gguf"):
        from lilliput.checkpoints.hub import download, download_file
        from lilliput.checkpoints.huggingface import HuggingFaceModel

        if found["file"] is not None:
            return _open_file(download_file(found["repository"], found["file"], revision))
        return HuggingFaceModel(download(name, revision), repository=name)
    hint = f"; did you mean '{near[0]}'?" if (near := _near(path)) else ""
    raise CheckpointError(
        f"{name}: no such file or folder, and not a hub id of the form organization/name or organization/name:Q4_K_M"
        + hint
    )


def _near(path: Path) -> list[str]:
    """Names like this one in its folder, or the built-in model's."""
    try:
        beside = {item.name: str(item) for item in path.parent.iterdir() if not item.name.startswith(".")}
    except OSError:
        beside = {}
    names = {BUILT_IN: BUILT_IN, **beside} if len(path.parts) == 1 else beside
    return [names[name] for name in get_close_matches(path.name, names, n=1, cutoff=0.75)]


def _open_folder(folder: Path) -> ModelSource:
    inside = sorted(path.name for path in folder.glob("*.gguf") if path.is_file())
    if inside and not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: this folder holds GGUF files; give one of them, such as {folder / inside[0]}")
    from lilliput.checkpoints.huggingface import HuggingFaceModel
    from lilliput.containers.onnx.container import Onnx

    if Onnx().recognises(folder):
        return Onnx().open(folder)
    return HuggingFaceModel(folder)


def _open_file(path: Path) -> ModelSource:
    # GGUF before the list of all containers is imported.
    if Gguf().recognises(path):
        return Gguf().open(path)
    from lilliput.checkpoints.shards import PICKLED_SUFFIXES
    from lilliput.containers import legacy_ggml
    from lilliput.containers.registry import CONTAINERS

    for container in CONTAINERS:
        if container.recognises(path):
            return container.open(path)
    if legacy_ggml.recognises(path):
        return legacy_ggml.LegacyModel(path)
    if path.suffix == ".onnx":
        from lilliput.containers.onnx.container import Onnx

        return Onnx().open(path)
    if path.suffix in PICKLED_SUFFIXES:
        raise CheckpointError(
            f"{path.name}: pickled weights; unpickling runs code from the file, so it is refused; "
            "convert them to safetensors first"
        )
    raise CheckpointError(f"{path.name}: not a model file; give a GGUF file or the folder that holds config.json")


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'lilliput.containers' has no attribute {name!r}")
    from lilliput.containers import registry

    return getattr(registry, name)
