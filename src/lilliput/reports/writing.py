# SPDX-License-Identifier: Apache-2.0
"""Finished pages and cards in place: all of them and whole, or none."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from lilliput.errors import PublishError


def check_outputs(paths: tuple[Path, ...], *, overwrite: bool) -> None:
    """Everything that can be known before the work starts. Raises PublishError."""
    if len({path.resolve() for path in paths}) < len(paths):
        raise PublishError(f"{paths[0]}: page and card cannot be one file; give two names")
    for path in paths:
        if path.is_dir():
            raise PublishError(f"{path} is a folder; give a file name")
        if not path.parent.is_dir():
            raise PublishError(f"{path.parent}: no such folder; make it first or choose another place for {path.name}")
        if path.exists() and not overwrite:
            raise PublishError(f"{path} exists already; pass --force to replace it or choose another name")


def write_all(contents: Mapping[Path, str], *, overwrite: bool) -> None:
    """Write every text under a temporary name beside its target, then rename them. Raises PublishError."""
    check_outputs(tuple(contents), overwrite=overwrite)
    with ExitStack() as stack:
        staged = [(_staged(path, content, stack), path) for path, content in contents.items()]
        for temporary, path in staged:
            try:
                temporary.replace(path)
            except OSError as error:
                raise PublishError(f"{path}: cannot be written: {error.strerror or error}") from error


def _staged(path: Path, content: str, stack: ExitStack) -> Path:
    """The finished text under a hidden name, which goes away when it was not renamed."""
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        temporary = Path(name)
        stack.callback(temporary.unlink, missing_ok=True)
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp gives 0600; a report is for everybody whom the umask allows.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
    except OSError as error:
        raise PublishError(f"{path}: cannot be written: {error.strerror or error}") from error
    return temporary
