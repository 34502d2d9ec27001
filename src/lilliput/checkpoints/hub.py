# SPDX-License-Identifier: Apache-2.0
"""Models by hub id: downloaded once into huggingface_hub's own cache, offline afterwards."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from lilliput.errors import CheckpointError

# Weights, config, tokenizer, card and licence: what a model needs, none of the other frameworks' copies.
NEEDED = [
    "*.safetensors",
    "*.safetensors.index.json",
    "*.json",
    "*.jinja",
    "*.model",
    "*.txt",
    "README.md",
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
    "USE_POLICY*",
]
# `consolidated` files are the same weights once more, in their makers' own layout.
NOT_NEEDED = ["consolidated*", "original/*", "onnx/*", "openvino/*", "gguf/*", "runs/*", "*/*.safetensors"]


def download(repository: str, revision: str | None = None) -> Path:
    """The folder of a hub model, from the cache where it is there (HF_HOME, HF_TOKEN, HF_HUB_OFFLINE are honoured).

    Raises CheckpointError with one line: not found, gated, no such revision, no network.
    """
    folder = _snapshot(repository, revision)
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"{repository}: has no safetensors weights on the hub; pickled ones (*.bin) run code when read and are not "
            "fetched, and GGUF files are opened from disk: download the one you want and give its path"
        )
    return folder


def _snapshot(repository: str, revision: str | None) -> Path:
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=NEEDED, ignore_patterns=NOT_NEEDED))
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
    except (HfHubHTTPError, OSError) as failure:
        lines = str(failure).strip().splitlines()
        reason = lines[0] if lines else type(failure).__name__
        raise CheckpointError(f"{repository}: download failed: {reason}") from failure
