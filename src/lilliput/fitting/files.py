# SPDX-License-Identifier: Apache-2.0
"""What `fit` does with files and folders: what tells them apart, one run a folder, results renamed into place."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import lilliput
from lilliput import workflows
from lilliput.errors import PublishError
from lilliput.recipes.ledger import text_versions
from lilliput.recipes.making import FINGERPRINT_KEY


def file_fingerprint(path: Path) -> str:
    """What `quantize` wrote into the file about itself; of a folder, all its files by name and size."""
    if path.is_dir():
        sizes = sorted((str(file.relative_to(path)), file.stat().st_size) for file in path.rglob("*"))
        return hashlib.sha256(repr(sizes).encode()).hexdigest()
    return str(workflows.inspect(path).metadata.get(FINGERPRINT_KEY))


def nbytes_of(path: Path) -> int:
    """Of a file, or of all files of a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def digest(path: Path) -> str:
    """sha256 hex of a file's content; a name that is no file stands for itself ("builtin")."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else path.name


def versions() -> str:
    """Ours, and those of the packages that run the model on the text."""
    return " ".join([lilliput.__version__, *(f"{name} {at}" for name, at in text_versions().items())])


def absolute(path: str) -> str:
    """A path that holds from any folder; names that are no path (hub ids, builtin) stay."""
    return str(Path(path).resolve()) if Path(path).exists() else path


def move(source: Path, target: Path) -> None:
    """Rename into place, across file systems through a copy beside the target. Raises PublishError."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.replace(source, target)
        except OSError:
            part = target.with_name(f".{target.name}.partial")
            shutil.copyfile(source, part)
            os.replace(part, target)
    except OSError as failure:
        raise PublishError(f"{target}: cannot be written: {failure.strerror or failure}") from failure


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the work folder; a second run on it is refused. Raises PublishError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
    except OSError as failure:
        raise PublishError(f"{folder}: cannot be used as work folder: {failure.strerror or failure}") from failure
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as taken:
            raise PublishError(f"{folder}: another run works in this folder; wait for it or give --work") from taken
        yield
    finally:
        os.close(lock)
        # A run that was refused before it began leaves nothing.
        with suppress(OSError):
            folder.rmdir()
