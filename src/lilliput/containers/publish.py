# SPDX-License-Identifier: Apache-2.0
"""Put finished files in place: all of them and whole, or nothing.

Everything is written into a hidden folder beside the target, synced, reopened and compared, and only then renamed, so
that a reader of the target never sees half a file and a failure or Ctrl-C leaves nothing behind.
"""

from __future__ import annotations

import fcntl
import glob
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lilliput.containers.container import Container, Contents, PartLayout, Split
from lilliput.containers.part_writer import disk_error
from lilliput.errors import PublishError
from lilliput.records import QuantizedTensor

# Room left on the disk beyond the files themselves, for the ledger and the file system's own needs.
_SPARE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Published:
    """Files in place. digests: tensor name -> sha256 of its stored arrays."""

    paths: tuple[Path, ...]
    nbytes: int
    digests: dict[str, str]


def publish(
    container: Container,
    contents: Contents,
    tensors: Iterable[QuantizedTensor],
    target: Path,
    *,
    split: Split | None = None,
    overwrite: bool = False,
) -> Published:
    """Write a model to `target` (of a split: its name without the part numbers), verified.

    tensors: in the order of `contents.headers`; taken one at a time.
    Raises PublishError: the output exists, the folder cannot be written, the disk is or becomes full.
    Raises ContainerError: a tensor that the container cannot hold, or that reads back differently.
    A container that is a folder is renamed as one.
    Side files are not copied: a GGUF carries licence texts and sampling defaults in its metadata, and our own layout
    all of them; `copy_side_files` puts them into a folder when asked.
    """
    parts = container.layout(contents, target.name, split or Split())
    check_target(target, parts, overwrite=overwrite)
    with staging_folder(target) as staging:
        written = container.write(parts, tensors, staging)
        container.verify(written)
        # Once more: another run may have finished the same output meanwhile.
        _check_absent(target, parts, overwrite=overwrite)
        if written.paths[0].parent == staging:
            paths = _rename_all(written.paths, target.parent)
        else:
            paths = _rename_folder(written.paths, target, staging)
    return Published(paths, sum(path.stat().st_size for path in paths), dict(written.digests))


def check_target(target: Path, parts: tuple[PartLayout, ...], *, overwrite: bool) -> None:
    """Everything that can be known before the work starts. Raises PublishError."""
    folder = target.parent
    if any((folder / part.file_name).is_dir() for part in parts):
        raise PublishError(f"{target} is a folder; give a file name")
    _check_absent(target, parts, overwrite=overwrite)
    nearest = folder
    while not nearest.exists():
        nearest = nearest.parent
    if not nearest.is_dir():
        raise PublishError(f"{nearest} is a file, not a folder; choose another place")
    disk = shutil.disk_usage(nearest)
    # What the system shows as folders, such as /proc, has no size at all.
    if disk.total == 0:
        raise PublishError(f"{target}: {nearest} is no disk and keeps no files; choose another place")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise PublishError(f"{target}: no permission to write in {nearest}; choose another place")
    needed = sum(part.size for part in parts) + _SPARE_BYTES
    if needed > disk.free:
        raise PublishError(
            f"{target.name} needs {needed / 1e6:,.1f} MB, {nearest} has {disk.free / 1e6:,.1f} MB free; "
            "free some space or choose another place"
        )


def _check_absent(target: Path, parts: tuple[PartLayout, ...], *, overwrite: bool) -> None:
    existing = [part.file_name for part in parts if (target.parent / part.file_name).exists()]
    if existing and not overwrite:
        raise PublishError(f"{existing[0]} exists already; pass --force to replace it or choose another output")
    if parts[0].file_name == f"{target.name}/{Path(parts[0].file_name).name}":
        _check_folder(target, {Path(part.file_name).name for part in parts})


def _check_folder(target: Path, names: set[str]) -> None:
    """Refuse to replace a folder that holds anything but an earlier output. Raises PublishError."""
    if target.is_file():
        raise PublishError(f"{target} is a file, and the output is a folder; choose another output")
    earlier = re.compile(r"model-\d{5}-of-\d{5}\.safetensors|model\.safetensors(\.index\.json)?")
    inside = sorted(path.name for path in target.iterdir()) if target.is_dir() else []
    strange = [name for name in inside if name not in names and not earlier.fullmatch(name)]
    if strange:
        raise PublishError(f"{target} holds {strange[0]}, which is no part of the output; choose another output")


def half_published(paths: Sequence[Path], target: Path) -> Path | None:
    """Where the first of `paths` still is, if a run was killed while it renamed this set into place; else None.

    The folder that such a run leaves held all of them, so what is no longer in it was moved into place.
    """
    waiting = {path.name for path in paths if not path.exists()}
    if len(waiting) in (0, len(paths)):
        return None
    for left in target.parent.glob(f".{glob.escape(target.name)}.*.partial"):
        first = left / paths[0].name
        if first.is_file() and {path.name for path in left.iterdir()} == waiting and not _is_locked(left):
            return first
    return None


@contextmanager
def staging_folder(target: Path) -> Iterator[Path]:
    """A hidden folder beside `target` that is gone afterwards, whatever happens; so are folders made for it in vain.

    What a killed run left there for the same target is removed first: its lock died with it.
    """
    missing = [folder for folder in (target.parent, *target.parent.parents) if not folder.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for left in target.parent.glob(f".{glob.escape(target.name)}.*.partial"):
            _remove_if_abandoned(left)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
        lock = os.open(staging, os.O_RDONLY)
        # File systems without locks still publish; they only keep what a killed run leaves.
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as failure:
        raise disk_error(str(target.parent), failure) from failure
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        os.close(lock)
        for folder in missing:
            # Not empty: the files are in place.
            with suppress(OSError):
                folder.rmdir()


def _remove_if_abandoned(staging: Path) -> None:
    """Remove a staging folder that no running process holds the lock of."""
    if not _is_locked(staging):
        shutil.rmtree(staging, ignore_errors=True)


def _is_locked(staging: Path) -> bool:
    """Whether a running process holds the lock of a staging folder, or nobody can tell."""
    try:
        descriptor = os.open(staging, os.O_RDONLY)
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def write_text(target: Path, text: str) -> None:
    """Write a small text file (a ledger, a card) whole or not at all. Raises PublishError."""
    with staging_folder(target) as staging:
        part = staging / target.name
        try:
            with part.open("x", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as failure:
            raise disk_error(target.name, failure) from failure
        _rename_all((part,), target.parent)


def copy_side_files(side_files: Iterable[Path], folder: Path) -> tuple[Path, ...]:
    """Copy licence, card, generation_config and tokenizer files into a folder, keeping what is there already."""
    copied: list[Path] = []
    for source in side_files:
        target = folder / source.name
        if target.exists():
            continue
        try:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        except OSError as failure:
            raise disk_error(str(target), failure) from failure
        copied.append(target)
    return tuple(copied)


def _rename_all(sources: tuple[Path, ...], folder: Path) -> tuple[Path, ...]:
    """Move finished files into place, the first part last: it is what readers open."""
    placed: list[Path] = []
    try:
        for source in reversed(sources):
            # Files that this replaces stay whole until the very call, and are gone after it.
            os.replace(source, folder / source.name)
            placed.append(folder / source.name)
    except BaseException as failure:
        for path in placed:
            path.unlink(missing_ok=True)
        if isinstance(failure, OSError):
            raise disk_error(str(folder), failure) from failure
        raise
    _sync_folder(folder)
    return tuple(reversed(placed))


def _rename_folder(sources: tuple[Path, ...], target: Path, staging: Path) -> tuple[Path, ...]:
    """Move a finished folder into place; an earlier one goes to `staging`, and comes back when that fails."""
    made, replaced = sources[0].parent, staging / f"{target.name}.replaced"
    try:
        _sync_folder(made)
        if target.exists():
            os.replace(target, replaced)
        os.replace(made, target)
    except BaseException as failure:
        if replaced.exists() and not target.exists():
            os.replace(replaced, target)
        if isinstance(failure, OSError):
            raise disk_error(str(target), failure) from failure
        raise
    _sync_folder(target.parent)
    return tuple(target / source.name for source in sources)


def _sync_folder(folder: Path) -> None:
    """Make the renames survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        # Some network file systems cannot sync a folder; the files themselves are synced.
        pass
    finally:
        os.close(descriptor)
