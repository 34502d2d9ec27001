# SPDX-License-Identifier: Apache-2.0
"""Small texts beside the weights that must travel inside a single file, since files are often passed on alone."""

from __future__ import annotations

from pathlib import Path

from lilliput.architectures.architecture import Json

# Metadata key of an embedded file: this and its name.
PREFIX = "lilliput.side_file."
_EMBEDDED = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY", "generation_config.json")
_MAX_BYTES = 1 << 18


def embedded_files(side_files: tuple[Path, ...]) -> dict[str, Json]:
    """Licence texts and generation_config.json as metadata. Tokenizer files and the card are not: keys hold them."""
    found: dict[str, Json] = {}
    for path in side_files:
        if path.name.startswith(_EMBEDDED) and path.is_file() and path.stat().st_size <= _MAX_BYTES:
            try:
                found[PREFIX + path.name] = path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue
    return found
