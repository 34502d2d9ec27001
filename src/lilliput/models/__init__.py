# SPDX-License-Identifier: Apache-2.0
"""The built-in model, shipped as package data."""

from __future__ import annotations

from pathlib import Path

from lilliput.errors import CheckpointError

BUILT_IN = "gulliver"


def gulliver() -> Path:
    """Folder of Gulliver, the small Llama-architecture model that this project trained. Raises CheckpointError."""
    folder = Path(__file__).parent / BUILT_IN
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"the built-in model is not installed ({folder.name}/config.json is missing); reinstall lilliput"
        )
    return folder
