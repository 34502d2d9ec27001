# SPDX-License-Identifier: Apache-2.0
"""Models by hub id: downloaded once into huggingface_hub's own cache, offline afterwards.

`organization/name` is a folder of safetensors: config and tokenizer first, then the shards that the index names.
`organization/name:Q4_K_M` is the one GGUF file, or split, of that name. What was cut off continues where it stopped,
and what the hub knows the sha256 of is compared with it once.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from lilliput.checkpoints.shards import INDEX, OLD_GPTQ, SINGLE, read_json
from lilliput.errors import CheckpointError

# Config, tokenizer, card and licence: what a model needs beside its weights, none of the other frameworks' copies.
NEEDED = [
    "*.safetensors.index.json",
    "*.json",
    "*.jinja",
    "*.model",
    "*.txt",
    "*.py",
    "README.md",
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
    "USE_POLICY*",
]
# `consolidated` files are the same weights once more, in their makers' own layout.
NOT_NEEDED = ["consolidated*", "original/*", "onnx/*", "openvino/*", "gguf/*", "runs/*", "*/*.safetensors"]
# The cache names a large file by its sha256.
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PART = re.compile(r"-(?P<number>\d{5})-of-(?P<count>\d{5})$")
_CHUNK = 1 << 22


def download(repository: str, revision: str | None = None) -> Path:
    """The folder of a hub model, from the cache where it is there (HF_HOME, HF_TOKEN, HF_HUB_OFFLINE are honoured).

    Raises CheckpointError with one line: not found, gated, no such revision, no network, a damaged download.
    """
    started = time.time()
    with _one_line(repository, revision):
        folder = Path(
            snapshot_download(repository, revision=revision, allow_patterns=NEEDED, ignore_patterns=NOT_NEEDED)
        )
        # The commit of the first call, should the branch move between the two.
        commit = folder.name if re.fullmatch(r"[0-9a-f]{40}", folder.name) else revision
        wanted = _shards(folder) if (folder / INDEX).is_file() else _single_file(repository, commit)
        folder = Path(snapshot_download(repository, revision=commit, allow_patterns=wanted, ignore_patterns=NOT_NEEDED))
    for name in wanted:
        _check_content(folder / name, started)
    return folder


def download_description(repository: str, revision: str | None = None) -> Path:
    """The folder of a hub model with all but its weights. Raises CheckpointError with one line."""
    with _one_line(repository, revision):
        return Path(snapshot_download(repository, revision=revision, allow_patterns=NEEDED, ignore_patterns=NOT_NEEDED))


def download_file(repository: str, chosen: str, revision: str | None = None) -> Path:
    """One file of a hub model: by its name, or a GGUF by its quantization; the first part of a split, all fetched.

    Raises CheckpointError with one line; a name that is not there lists what is.
    """
    started = time.time()
    with _one_line(repository, revision):
        parts = _chosen_files(repository, _listed(repository, revision), chosen)
        paths = [Path(hf_hub_download(repository, name, revision=revision)) for name in parts]
    if len({path.parent for path in paths}) > 1:
        raise CheckpointError(f"{repository}: changed while it was fetched; run the command again")
    for path in paths:
        _check_content(path, started)
    return paths[0]


def _shards(folder: Path) -> list[str]:
    """Files that the index names."""
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{INDEX}: no 'weight_map' from tensors to files")
    return sorted({name for name in weight_map.values() if isinstance(name, str) and PurePosixPath(name).name == name})


def _single_file(repository: str, revision: str | None) -> list[str]:
    """The weights of a repository without an index. Raises CheckpointError, naming what is there instead."""
    names = _listed(repository, revision)
    found = [name for name in names if any(fnmatchcase(name, pattern) for pattern in (SINGLE, OLD_GPTQ))]
    if found:
        return found
    there = list(_quantizations(names))
    hint = (
        f"open one of its GGUF files: {', '.join(f'{repository}:{name}' for name in there[:4])}"
        if there
        else "pickled ones (*.bin) run code when read and are not fetched; GGUF files it has none"
    )
    raise CheckpointError(f"{repository}: has no safetensors weights on the hub; {hint}")


def _listed(repository: str, revision: str | None) -> list[str]:
    """Names of all files of a repository; of those in the cache where the hub cannot be asked."""
    try:
        info = HfApi().model_info(repository, revision=revision)
    except Exception as failure:  # transport errors of the HTTP library share no base
        if not _is_unreachable(failure):
            raise
        folder = Path(snapshot_download(repository, revision=revision, local_files_only=True))
        return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(item.rfilename for item in info.siblings or [])


def _is_unreachable(failure: Exception) -> bool:
    """Whether the network failed, rather than the hub having answered."""
    is_transport = type(failure).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2")
    return is_transport or (isinstance(failure, OSError) and not isinstance(failure, HfHubHTTPError))


def _chosen_files(repository: str, names: list[str], chosen: str) -> list[str]:
    """The file of that name, or all parts of the GGUF whose name ends in that quantization."""
    if chosen in names:
        return _all_parts(chosen, names)
    wanted = chosen.lower().removesuffix(".gguf")
    found: dict[str, list[str]] = {}
    quantizations = _quantizations(names)
    for name in filter(_is_model, names):
        stem = _PART.sub("", name.removesuffix(".gguf"))
        if re.search(rf"(^|[-._/]){re.escape(wanted)}$", stem.lower()):
            found.setdefault(stem, []).append(name)
    if not found:
        there = f"it has {', '.join(quantizations)}" if quantizations else "it has no GGUF files"
        raise CheckpointError(f"{repository}: no file '{chosen}' there; {there}")
    # The plainest name: `X-Q4_K_M` before `X-UD-Q4_K_M`.
    return _all_parts(found[min(found, key=lambda stem: (len(stem), stem))][0], names)


def _quantizations(names: list[str]) -> dict[str, None]:
    """What users call the GGUF files among these, in order."""
    return dict.fromkeys(_quantization(_PART.sub("", name.removesuffix(".gguf"))) for name in filter(_is_model, names))


def _is_model(name: str) -> bool:
    return name.endswith(".gguf") and not PurePosixPath(name).name.startswith("mmproj")


def _all_parts(name: str, names: list[str]) -> list[str]:
    stem = name.removesuffix(".gguf")
    if not name.endswith(".gguf") or _PART.search(stem) is None:
        return [name]
    return [other for other in names if other.endswith(".gguf") and _same_split(other, stem)]


def _same_split(other: str, stem: str) -> bool:
    return _PART.sub("", other.removesuffix(".gguf")) == _PART.sub("", stem)


def _quantization(stem: str) -> str:
    """What users call a file: the last part of its name."""
    found = re.search(r"(?:UD-)?(?:I?Q\d\w*|TQ\d\w*|MXFP4\w*|NVFP4|B?F16|F32)$", stem, re.IGNORECASE)
    return found[0] if found else stem


def _check_content(path: Path, started: float) -> None:
    """Compare a file that was fetched just now with the sha256 that the hub names it by. Raises CheckpointError."""
    blob = path.resolve()
    # Two seconds: the coarsest clock of a file system.
    if not blob.is_file() or _SHA256.fullmatch(blob.name) is None or blob.stat().st_mtime < started - 2:
        return
    digest = hashlib.sha256()
    with blob.open("rb") as file:
        while data := file.read(_CHUNK):
            digest.update(data)
    if digest.hexdigest() != blob.name:
        blob.unlink()
        raise CheckpointError(f"{path.name}: the download is damaged (its sha256 is another); run the command again")


@contextmanager
def _one_line(repository: str, revision: str | None) -> Iterator[None]:
    """Everything that may go wrong on the way, as one line."""
    try:
        yield
    except GatedRepoError as failure:
        raise CheckpointError(
            f"{repository}: access is restricted; accept its terms on the hub and set HF_TOKEN, or run `hf auth login`"
        ) from failure
    except RevisionNotFoundError as failure:
        raise CheckpointError(f"{repository}: no revision '{revision}' on the hub") from failure
    except RepositoryNotFoundError as failure:
        raise CheckpointError(
            f"{repository}: no such folder here and no such model on the hub (a private one needs HF_TOKEN)"
        ) from failure
    except HFValidationError as failure:
        raise CheckpointError(f"{repository}: not a valid hub id; write organization/name") from failure
    except LocalEntryNotFoundError as failure:
        raise CheckpointError(
            f"{repository}: not in the local cache and the hub cannot be reached; "
            "check the network, unset HF_HUB_OFFLINE, or give a folder"
        ) from failure
    except Exception as failure:
        if not _is_unreachable(failure) and not isinstance(failure, EntryNotFoundError | HfHubHTTPError):
            raise
        lines = str(failure).strip().splitlines()
        reason = lines[0] if lines else type(failure).__name__
        raise CheckpointError(f"{repository}: download failed: {reason}") from failure
