# SPDX-License-Identifier: Apache-2.0
"""What names stand for: a model's by path, hub id or 'gulliver'; a text's by path or 'builtin'."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from lilliput.architectures.architecture import Task
from lilliput.checkpoints.model_source import ModelSource
from lilliput.containers import open_model
from lilliput.errors import CalibrationError, CheckpointError
from lilliput.models import BUILT_IN, gulliver

PathLike = str | os.PathLike[str]
BUILT_IN_TEXT = "builtin"


@contextmanager
def opened(model: PathLike | ModelSource, revision: str | None = None) -> Iterator[ModelSource]:
    """Open a model by path, hub id, or the built-in name 'gulliver'; release its maps at the end.

    One that is open already is left as it is.

    Raises CheckpointError for a revision of a path, and what opening raises.
    """
    if not isinstance(model, str | os.PathLike):
        yield model
        return
    name = located(model)
    if revision is not None and Path(name).exists():
        raise CheckpointError(
            f"{model}: a path here; --revision {revision} chooses among those of a hub id, leave it out"
        )
    with closing(open_model(name, revision=revision)) as source:
        yield source


def located(model: PathLike) -> str:
    """The path or hub id that a model's name stands for; only the built-in one's differs."""
    name = str(model)
    # A folder of that name in the working directory is what its owner means.
    return str(gulliver()) if name == BUILT_IN and not Path(name).exists() else name


def task_of(model: PathLike, revision: str | None = None) -> Task:
    """What a model is for, from its headers."""
    with opened(model, revision) as source:
        return source.config.task


def text_files(text: Sequence[Path]) -> list[Path]:
    """The files to read; an empty list means the built-in mix. Raises CalibrationError."""
    if len(text) == 1 and is_builtin(text[0]):
        return []
    for path in text:
        if not path.is_file():
            found = "is a folder" if path.is_dir() else "no such text file"
            raise CalibrationError(f"{path}: {found}; give a text, JSONL or chat file, or 'builtin'")
    return list(text)


def is_builtin(text: PathLike) -> bool:
    """Whether the built-in mix is meant; a file of that name in the working directory is what its owner means."""
    return str(text) == BUILT_IN_TEXT and not Path(text).exists()
